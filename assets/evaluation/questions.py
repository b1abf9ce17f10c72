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
one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Form = Literal["options", "candidates", "open"]
MEDIA = ("video", "image", "text")
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
        if choices and (self.answer not in choices or len(set(choices)) != len(choices)):
            raise ValueError(
                f"question {self.id!r}: the answer {self.answer!r} must be one of distinct "
                f"{choices}"
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
    def facts(self) -> dict[str, Any]:
        """What decides its answer. Without subtitles it is what it was before there were any, so
        that answers of then still count.
        """
        facts = asdict(self)
        if not self.subtitles:
            del facts["subtitles"]
        return facts

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
    """Read a questions file.

    Raises:
        ValueError: a line that is not a question, a key that is not known, an id that occurs twice;
            it names the line.
    """
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            questions.append(parse_question(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not questions:
        raise ValueError(f"{path}: no questions")
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(f"{path}: the id {twice!r} occurs twice")
    return questions


def parse_question(values: Any) -> EvaluationQuestion:
    """A question from a JSON object. Raises ValueError that names what is wrong."""
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    known = EvaluationQuestion.__dataclass_fields__
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown keys {', '.join(unknown)} (known: {', '.join(known)})")
    if missing := sorted({"id", "media", "question", "answer"} - set(values)):
        raise ValueError(f"missing {', '.join(missing)}")
    lists = {name: tuple(map(str, values.get(name) or ())) for name in ("options", "candidates")}
    return EvaluationQuestion(**{"path": "", **values, **lists})


def write_questions(path: Path, questions: Iterable[EvaluationQuestion]) -> None:
    """Write a questions file that `read_questions` reads back."""
    lines = (
        json.dumps({k: v for k, v in asdict(q).items() if v not in ("", (), None)})
        for q in questions
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
