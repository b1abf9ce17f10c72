"""A question-answer row while it is written and checked, and the forms that models answer in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from assets.captions.describe import Described
from model.configuration import Section
from training.formats.hashing import data_version

LETTERS = "ABCD"
Form = Literal["oe", "mc"]
OPEN: Literal["oe"] = "oe"
CHOICE: Literal["mc"] = "mc"


class OpenRow(Section):
    """An open-ended question."""

    question: str
    answer: str
    clips: list[int]


class OpenRows(Section):
    """Some of them."""

    rows: list[OpenRow]


class ChoiceRow(Section):
    """A multiple-choice question."""

    question: str
    answer: str
    distractors: list[str]
    clips: list[int]


class ChoiceRows(Section):
    """Some of them."""

    rows: list[ChoiceRow]


@dataclass(slots=True)
class Row:
    """One row.

    Attributes:
        video: `source/id`.
        topic: and task, by name.
        form: open-ended or multiple choice.
        answer: without a letter.
        distractors: wrong options; empty for an open-ended question.
        clips: numbers of the clips that show the answer.
        start: of the first of them, in seconds.
        end: of the last of them.
        duration: of the video.
        prompt: key of the stored answer that the row stands in.
        reasons: checks that it did not pass.
        place: of the right option among all, from 0.
        judged: a person's verdict.
        id: unique, by what the row says.
    """

    video: str
    topic: str
    task: str
    form: Form
    question: str
    answer: str
    distractors: list[str]
    clips: list[int]
    start: float
    end: float
    duration: float
    prompt: str
    reasons: list[str] = field(default_factory=list)
    place: int = 0
    judged: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        # By what was written first: a correction does not make it another row.
        said = data_version([self.question, self.answer, sorted(self.distractors)])[:12]
        self.id = f"{self.video}#{self.topic}-{self.task}-{self.form}-{said}"

    @property
    def options(self) -> list[str]:
        """In their order; empty for an open-ended question."""
        return options_at(self, self.place)

    @property
    def written_answer(self) -> str:
        """As the row is taught: of multiple choice with its letter."""
        if self.form == OPEN:
            return self.answer
        return f"{LETTERS[self.place]}. {self.answer}"

    @property
    def content(self) -> str:
        """A hash of what a person judges."""
        return data_version([self.question, self.options, self.written_answer])[:16]


def options_at(row: Row, place: int) -> list[str]:
    """All options with the right one at `place`."""
    if row.form == OPEN:
        return []
    return [*row.distractors[:place], row.answer, *row.distractors[place:]]


def asked(question: str, options: list[str]) -> str:
    """A question with its options as lines."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines])


def make_row(
    video: Described,
    duration: float,
    topic: str,
    task: str,
    written: OpenRow | ChoiceRow,
    prompt: str,
) -> Row:
    """A row from what a model wrote. Its seconds are those of the clips that it names: a model's
    own are not believed.
    """
    clips = sorted(set(written.clips))
    known = {seen.clip.number: seen.clip for seen in video.captioned}
    inside = [known[number] for number in clips if number in known]
    distractors = written.distractors if isinstance(written, ChoiceRow) else []
    form: Form = CHOICE if isinstance(written, ChoiceRow) else OPEN
    return Row(
        video=video.video,
        topic=topic,
        task=task,
        form=form,
        question=written.question.strip(),
        answer=written.answer.strip(),
        distractors=[text.strip() for text in distractors],
        clips=clips,
        start=min((clip.start for clip in inside), default=0.0),
        end=max((clip.end for clip in inside), default=0.0),
        duration=duration,
        prompt=prompt,
        reasons=[] if inside and len(inside) == len(clips) else ["times_outside_the_video"],
    )


def table_row(row: Row, made_by: dict[str, str]) -> dict[str, Any]:
    """The row as `annotations` reads it, with its evidence."""
    source, _, identifier = row.video.partition("/")
    return {
        "id": row.id,
        "video": identifier,
        "data_source": source,
        "question": row.question,
        "options": row.options or None,
        "answer": row.written_answer,
        "question_type": f"{row.topic}/{row.task}",
        "duration": row.duration,
        "form": row.form,
        "evidence_clips": row.clips,
        "evidence_start": row.start,
        "evidence_end": row.end,
        "reasons": row.reasons,
        "prompt_key": row.prompt,
        "judged": row.judged,
        **made_by,
    }
