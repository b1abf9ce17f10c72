"""Questions that score a checkpoint, in one neutral form whatever the benchmark.

A file of questions is JSON Lines, one object a line:

    id          unique in the file
    media       "video", "image" or "text"
    path        the media file, relative to the questions file (or to the folder that is given
                when reading)
    question    the text, without options
    answer      the right answer: one of the options or candidates where there are any
    options     texts of lettered options (A, B, ...) that the prompt shows; optional
    candidates  texts among which the most likely answer counts although the prompt does not show
                them; optional
    task        what kind of question it is, for the table; optional
    duration    seconds, for the table; optional
    subtitles   the video's SRT or WebVTT file, relative as `path`; they stand above the question;
                optional

With neither options nor candidates the question is open: the generated answer must equal the right
one. An id, an answer, an option or a candidate may also be a number.
"""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from assets.fetching.table_rows import in_brief

Form = Literal["options", "candidates", "open"]
MEDIA = ("video", "image", "text")
CHOICES = ("options", "candidates")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTIONS_REQUEST = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class EvaluationQuestion:
    """One question; see the module's text for its fields. `path` is empty for text."""

    id: str
    media: str
    path: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    task: str = ""
    duration: float | None = None
    subtitles: str = ""

    def __post_init__(self) -> None:
        if not self.id.strip():
            raise ValueError("its id is empty; give every question an id of its own")
        if self.media not in MEDIA:
            raise ValueError(
                f"question {self.id!r}: unknown media {self.media!r} (known: {', '.join(MEDIA)})"
            )
        if (self.media == "text") != (not self.path):
            raise ValueError(f"question {self.id!r}: media {self.media!r} with path {self.path!r}")
        if self.subtitles and self.media != "video":
            raise ValueError(f"question {self.id!r}: subtitles without a video")
        if not self.question.strip() or not self.answer:
            raise ValueError(f"question {self.id!r} has no question or no answer")
        if self.options and self.candidates:
            raise ValueError(
                f"question {self.id!r} has both options and candidates; give one of them"
            )
        if len(self.options) > len(LETTERS):
            raise ValueError(
                f"question {self.id!r} has {len(self.options)} options; letters end at "
                f"{len(LETTERS)}"
            )
        choices = self.choices
        if len(set(choices)) != len(choices):
            twice = next(text for text in choices if choices.count(text) > 1)
            raise ValueError(
                f"question {self.id!r}: its {self.form} must be distinct, {_shown(twice)} stands "
                "there twice"
            )
        if choices and self.answer not in choices:
            raise ValueError(
                f"question {self.id!r}: the answer {_shown(self.answer)} must be one of its "
                f"{self.form}, letter by letter: {_shown(choices)}"
            )

    @property
    def form(self) -> Form:
        """How it is answered."""
        return "options" if self.options else "candidates" if self.candidates else "open"

    @property
    def choices(self) -> tuple[str, ...]:
        """The answers to choose from, shown or not; none for an open question."""
        return self.options or self.candidates

    @property
    def answer_texts(self) -> tuple[str, ...]:
        """What is rated: letters where options are shown, else the candidates themselves."""
        return tuple(LETTERS[: len(self.options)]) or self.candidates

    @property
    def prompt(self) -> str:
        """The human turn, without `<image>`: the question and, where they are shown, its lettered
        options.
        """
        if not self.options:
            return self.question
        lines = [
            f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)
        ]
        return "\n".join([self.question, *lines, OPTIONS_REQUEST])


def read_questions(path: Path) -> list[EvaluationQuestion]:
    """Read a questions file: UTF-8 with or without a byte order mark. Empty lines count for
    nothing.

    Raises:
        OSError: it cannot be read.
        ValueError: a line that is not a question, a key that is not known, an id that occurs twice;
            it names the line.
    """
    questions: list[EvaluationQuestion] = []
    lines: dict[str, int] = {}  # an id -> where it stands
    # As bytes: the lines of `str` also end at signs that may stand in a JSON text.
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            question = parse_question(_json_value(line))
            if first := lines.get(question.id):
                raise ValueError(
                    f"the id {in_brief(question.id)!r} occurs twice, first in line {first}; give "
                    "every question an id of its own"
                )
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        lines[question.id] = number
        questions.append(question)
    if not questions:
        raise ValueError(f"{path}: no questions; write each as a JSON object on a line of its own")
    return questions


def _json_value(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} of it is not UTF-8; save the file as UTF-8 text"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"not JSON ({error.msg} at character {error.pos + 1}); a question is one object on one "
            "line"
        ) from error
    except RecursionError as error:
        raise ValueError("too many brackets within brackets; a question is one object") from error


def parse_question(values: Any) -> EvaluationQuestion:
    """A question from a JSON object. An id, an answer and what can be chosen may be numbers, which
    become text; null is as good as a key that is left out.

    Raises:
        ValueError: names what is wrong.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    known = EvaluationQuestion.__dataclass_fields__
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown keys {in_brief(', '.join(unknown))} (known: {', '.join(known)})")
    given = {key: value for key, value in values.items() if value is not None}
    if missing := sorted({"id", "media", "question", "answer"} - set(given)):
        raise ValueError(f"missing {', '.join(missing)}")
    read: dict[str, Any] = {"path": ""}
    for key, value in given.items():
        if key in CHOICES:
            read[key] = _texts(key, value)
        elif key == "duration":
            read[key] = _seconds(value)
        else:
            read[key] = _text(key, value, number=key in ("id", "answer"))
    return EvaluationQuestion(**read)


def _text(key: str, value: Any, *, number: bool) -> str:
    """A text, or what a number is as text where one may stand."""
    if number and isinstance(value, int | float) and _is_finite(value):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text, found {_shown(value)}; write it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key} holds half of a character at {error.start + 1}, a \\ud8.. or \\udc.. without "
            "the other half; take it out"
        ) from error
    return value


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f'{key} must be a list as ["yes", "no"], found {_shown(value)}')
    return tuple(_text(f"{key}[{at}]", item, number=True) for at, item in enumerate(value))


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or not _is_finite(value) or value <= 0:
        raise ValueError(
            f"duration must be a number of seconds above 0, found {_shown(value)}; 62 is 1:02"
        )
    return float(value)


def _is_finite(value: int | float) -> bool:
    """Whether it is a number that a float can be; True and False are none."""
    return not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    """A value as it stands in the file, in brief."""
    return in_brief(json.dumps(value, ensure_ascii=False))


def write_questions(path: Path, questions: Iterable[EvaluationQuestion]) -> None:
    """Write a questions file that `read_questions` reads back."""
    lines = (
        json.dumps({k: v for k, v in asdict(q).items() if v not in ("", (), None)})
        for q in questions
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
