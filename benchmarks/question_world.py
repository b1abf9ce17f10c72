"""A model whose answers are known: it sees the drawn films as they are, and errs at a rate that is
known, too. `model_server.py` serves it.

It reads the pictures that it is sent, so its captions are true of what was really decoded. Whatever
it writes wrongly it remembers, by the words of the question.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from pipeline.demo.drawing import COLOURS
from training.formats.hashing import stable_hash

PALETTE = np.array(list(COLOURS.values()), np.int32)
NAMES = list(COLOURS)
_LINE = re.compile(r"clips? (\d+)(?: to \d+)? \(([\d.]+)-([\d.]+) s\): (\".*\")")
_SQUARE = re.compile(r"square \(([^)]*)\)")
_BACKGROUND = re.compile(r"on a (\w+) background")
# What may be wrong with a row, in turn.
ROW_ERRORS = ("wrong answer", "answer told", "two right options", "no video needed", "wrong time")
CAPTION_ERRORS = ("wrong background", "wrong colour")
SKY = "What colour does a clear sky have at noon?"


@dataclass
class Painter:
    """Answers prompts about the drawn films.

    Attributes:
        row_errors: share of rows that are written wrongly, and `caption_errors` of clips that are.
        wrong: question -> what is wrong with it.
        wrong_clips: (start, end) and summary of captions that are wrong -> what is.
    """

    row_errors: float = 0.0
    caption_errors: float = 0.0
    wrong: dict[str, str] = field(default_factory=dict)
    wrong_captions: dict[str, str] = field(default_factory=dict)

    def __call__(self, shape: str, text: str, jpegs: list[bytes], seed: int) -> Any:
        """The answer of one form to one prompt."""
        return getattr(self, f"_{shape}")(text, jpegs, seed)

    def _clip(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        seen = [_colours(jpeg) for jpeg in jpegs]
        background = Counter(ground for ground, _ in seen).most_common(1)[0][0]
        square = [colour for _, colour in seen]
        course = [c for n, c in enumerate(square) if n == 0 or c != square[n - 1]]
        error = _error(self.caption_errors, CAPTION_ERRORS, str(jpegs[0][:4000]))
        if error == "wrong background":
            background = _other(background)
        elif error == "wrong colour":
            course = [_other(colour) for colour in course]
        said = f"A square ({', then '.join(course)}) drifts on a {background} background"
        if error:
            self.wrong_captions[said] = error
        sides = ("temporality", "spatiality", "objects", "actions", "scene", "summary")
        return dict.fromkeys(sides, said)

    def _events(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        return {
            "events": [
                {"first_clip": n, "last_clip": n, "title": "A part", "summary": said}
                for n, _, _, said in _lines(text)
            ]
        }

    def _event(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        return {"text": " ".join(_sentence(said) for *_, said in _lines(text))}

    def _whole(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        return {"text": "A square drifts about and changes its colour."}

    def _open_rows(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, answer, clip, error = self._row(text, is_choice=False)
        if error == "wrong answer":
            answer = _wrong(answer)
        return {"rows": [{"question": question, "answer": answer, "clips": [clip]}]}

    def _choice_rows(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, answer, clip, error = self._row(text, is_choice=True)
        others = [_wrong(answer, n) for n in (1, 2, 3)]
        if question == SKY or error == "no video needed":
            others = ["green", "black", "red"]
        elif error == "wrong answer":
            answer, others[0] = others[0], answer
        elif error == "two right options":
            others[0] = f"the {answer}"
        row = {"question": question, "answer": answer, "distractors": others, "clips": [clip]}
        return {"rows": [row]}

    def _row(self, text: str, *, is_choice: bool) -> tuple[str, str, int, str]:
        """Question, right answer, clip, and what is to be wrong with the row."""
        topic = re.search(r"Topic: (\w+)\. Task: (.*)", text)
        assert topic is not None
        lines = _lines(text.rpartition("The whole video")[2])
        number, start, end, said = lines[stable_hash(topic[0], text) % len(lines)]
        form = "choice" if is_choice else "open"
        asked = f"Thinking of {topic[1]}, {topic[2].rstrip('.').lower()} ({form}):"
        if topic[1] == "scene":
            when = f"not only from {start:.2f} s to {end:.2f} s"
            question = f"{asked} what is the background like all the time, {when}?"
            answer = _ground(said)
        else:
            answer = _square(said)
            question = f"{asked} which colours has the square from {start:.2f} s to {end:.2f} s?"
        error = _error(self.row_errors, ROW_ERRORS, question + said)
        if error == "two right options" and not is_choice:
            error = "wrong answer"
        if error == "answer told":
            question = f"{question} It is {answer}."
        elif error == "no video needed":
            question, answer = f"{asked} {SKY}", "blue"
        elif error == "wrong time":
            question = f"{question} It is meant at second 86000."
        if error:
            self.wrong[question] = error
        return question, answer, number, error

    def _blind(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        question, options = _question(text)
        if SKY in question:
            return {"answer": _letter(options, "blue") or "blue"}
        guess = stable_hash("guess", question, str(seed))
        return {"answer": "ABCD"[guess % 4] if options else NAMES[guess % len(NAMES)]}

    def _reword(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, str]:
        question, _ = _question(text)
        return {"question": question.replace("which colours has", "what are the colours of")}

    def _second(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        question, options = _question(text)
        said = _lines(text)[0][3]
        right = "blue" if SKY in question else _square(said)
        if "background" in question:
            right = _ground(said)
        plain = [re.sub(r"^the ", "", option) for option in options]
        letters = [letter for letter, option in zip("ABCD", plain, strict=False) if option == right]
        return {"choices": letters, "answer": right}

    def _same(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, bool]:
        first, second = re.findall(r"(?:First|Second): <data>(.*)</data>", text)
        return {"same": json.loads(first) == json.loads(second)}

    def _contradiction(self, text: str, jpegs: list[bytes], seed: int) -> dict[str, Any]:
        statement = json.loads(re.findall(r"Statement: <data>(.*)</data>", text)[0])
        if "background like all the time" not in statement:
            return {"clips": []}
        said = statement.split()[-1]
        return {
            "clips": [number for number, *_, caption in _lines(text) if _ground(caption) != said]
        }


def _colours(jpeg: bytes) -> tuple[str, str]:
    """Background and square of a picture, by the nearest colours."""
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.int32)[::2, ::2]
    nearest = np.abs(pixels[:, :, None] - PALETTE).sum(-1).argmin(-1)
    counts = np.bincount(nearest.ravel(), minlength=len(NAMES))
    ground, square = np.argsort(-counts, kind="stable")[:2]
    return NAMES[ground], NAMES[square]


def _lines(text: str) -> list[tuple[int, float, float, str]]:
    """Number, seconds and text of the clips in a prompt."""
    return [
        (int(number), float(start), float(end), json.loads(said))
        for number, start, end, said in _LINE.findall(text)
    ]


def _question(text: str) -> tuple[str, list[str]]:
    """The question of a prompt, and its options."""
    found = re.search(r"<data>\s*(\".*?\")\s*</data>", text)
    assert found is not None
    first, *lines = json.loads(found[1]).split("\n")
    return first, [line[3:] for line in lines]


def _square(said: str) -> str:
    found = _SQUARE.search(said)
    return found[1] if found else ""


def _ground(said: str) -> str:
    found = _BACKGROUND.search(said)
    return found[1] if found else ""


def _sentence(said: str) -> str:
    return f"A square ({_square(said)}) drifts on a {_ground(said)} background."


def _other(colour: str, by: int = 1) -> str:
    return NAMES[(NAMES.index(colour) + by) % len(NAMES)]


def _wrong(answer: str, by: int = 1) -> str:
    """Another course of colours than `answer`."""
    return ", then ".join(_other(colour, by) for colour in answer.split(", then "))


def _letter(options: list[str], wanted: str) -> str:
    return next((letter for letter, o in zip("ABCD", options, strict=False) if o == wanted), "")


def _error(rate: float, kinds: tuple[str, ...], name: str) -> str:
    """What is to be wrong, for a share `rate` of all names."""
    if stable_hash("error", name) / 2**64 >= rate:
        return ""
    return kinds[stable_hash("kind", name) % len(kinds)]
