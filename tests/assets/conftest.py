"""A tiny checkpoint with random weights, and a handful of questions about drawn media."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.evaluation.questions import EvaluationQuestion
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
def questions() -> list[EvaluationQuestion]:
    colours, film = tuple(COLOURS), {"media": "video", "path": "short.mp4", "duration": 18.0}
    ground, square = "What colour is the background?", "What colour is the square?"
    return [
        EvaluationQuestion(
            "q0", question=ground, answer="red", candidates=colours, task="colour", **film
        ),
        EvaluationQuestion(
            "q1",
            question=square,
            answer="blue",
            options=("red", "blue"),
            task="colour",
            **film | {"path": "long.mp4", "duration": 70.0},
        ),
        EvaluationQuestion(
            "q2",
            media="image",
            path="picture.jpg",
            question="What colour is it?",
            answer="green",
            candidates=colours,
            task="picture",
        ),
        EvaluationQuestion(
            "q3", media="text", path="", question="What is 2 plus 2?", answer="4", task="sum"
        ),
        EvaluationQuestion(
            "q4", question=square, answer="white", candidates=colours, task="colour", **film
        ),
    ]
