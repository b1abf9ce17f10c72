"""A tiny checkpoint with random weights, and a handful of questions about drawn media."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.evaluation.questions import Question
from pipeline.demo.drawing import COLOURS, invent_film, invent_picture, jpeg, write_film


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model.weights.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny") / "export"
    build_tiny(folder)
    return folder


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name, duration in (("short", 18), ("long", 70)):
        write_film(folder / f"{name}.mp4", invent_film(name, duration, 10, 2))
    (folder / "picture.jpg").write_bytes(jpeg(invent_picture("picture")))
    return folder


@pytest.fixture
def questions() -> list[Question]:
    colours = tuple(COLOURS)
    return [
        Question(
            "q0",
            "video",
            "short.mp4",
            "What colour is the background?",
            "red",
            (),
            colours,
            "colour",
            18.0,
        ),
        Question(
            "q1",
            "video",
            "long.mp4",
            "What colour is the square?",
            "blue",
            ("red", "blue"),
            (),
            "colour",
            70.0,
        ),
        Question(
            "q2", "image", "picture.jpg", "What colour is it?", "green", (), colours, "picture"
        ),
        Question("q3", "text", "", "What is 2 plus 2?", "4", (), (), "sum"),
        Question(
            "q4",
            "video",
            "short.mp4",
            "What colour is the square?",
            "white",
            (),
            colours,
            "colour",
            18.0,
        ),
    ]
