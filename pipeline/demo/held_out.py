"""The demo's held-out set: pictures and films that no training has, and questions about them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from pipeline.demo.drawing import invent_film, invent_picture, jpeg, write_film
from pipeline.demo.questions import Question, about_film, about_picture

PICTURES, SHORT_FILMS, LONG_FILMS = 24, 10, 6
TASKS = ("background", "figure colour", "first colour", "last colour", "colour at a second")
MOMENTS = 2


def write_held_out(folder: Path, seed: str, sentences: bool) -> dict[str, int]:
    """Write `questions.jsonl` and the media it names, relative to it; returns the number of
    questions.
    """
    rows: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for number in range(PICTURES):
        name = f"picture-{number:02d}"
        picture = invent_picture(f"{seed}/held out/{name}")
        (folder / "images" / f"{name}.jpg").write_bytes(jpeg(picture))
        rows += _rows(
            about_picture(picture),
            name,
            {"media": "image", "path": f"images/{name}.jpg"},
            sentences,
        )
    for kind, count, durations in (
        ("short", SHORT_FILMS, range(12, 36)),
        ("long", LONG_FILMS, range(60, 150, 10)),
    ):
        for number in range(count):
            name = f"{kind}-{number:02d}"
            dice = random.Random(f"{seed}/held out/{name}")
            film = invent_film(
                f"{seed}/held out/{name}", dice.choice(durations), 10, 2 if kind == "short" else 3
            )
            write_film(folder / "videos" / f"{name}.mp4", film)
            where = {
                "media": "video",
                "path": f"videos/{name}.mp4",
                "duration": float(film.duration),
            }
            rows += _rows(
                about_film(film, f"{seed}/held out/{name}", MOMENTS), name, where, sentences
            )
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"held-out questions": len(rows)}


def _rows(
    asked: list[Question], name: str, where: dict[str, Any], sentences: bool
) -> list[dict[str, Any]]:
    kind = where["media"]
    if sentences:
        asked = [question.in_a_sentence() for question in asked]
    return [
        {
            "id": f"{name}/{number}",
            **where,
            "task": f"{kind}: {question.task}",
            "question": question.text,
            "candidates": list(question.choices),
            "answer": question.answer,
        }
        for number, question in enumerate(asked)
        if question.task in TASKS
    ]
