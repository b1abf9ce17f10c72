"""What a checkpoint answered, and what it adds up to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DURATIONS = (
    (60, "under 1 min"),
    (600, "1 to 10 min"),
    (1800, "10 to 30 min"),
    (float("inf"), "over 30 min"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a checkpoint answered.

    Attributes:
        prompt: the human turn as the model read it, with its chat template.
        chosen: the most likely choice, or the generated text of an open question.
        generated: what the model wrote by itself; its start where it is long.
        correct: whether ``chosen`` is right.
        written_correct: whether what it wrote is the right answer, read by the rules of
            ``answers.py``.
        scores: log-probability of each choice; empty for open questions.
        problem: why the question could not be asked; it then counts neither way.
    """

    id: str
    task: str
    form: str
    duration: float | None
    prompt: str
    expected: str
    chosen: str
    generated: str
    correct: bool
    written_correct: bool
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class EvaluationReport:
    """The answers of one checkpoint, in the order of the questions."""

    name: str
    visuals: bool
    answers: list[Answer]
    version: str

    @property
    def asked(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.problem]

    @property
    def accuracy(self) -> float:
        return _share(self.asked, "correct")

    @property
    def written_accuracy(self) -> float:
        return _share(self.asked, "written_correct")

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing among the choices; an open question cannot be guessed."""
        return (
            statistics.fmean(1 / len(a.choices) if a.choices else 0.0 for a in self.asked)
            if self.asked
            else 0.0
        )

    def by_task(self) -> dict[str, EvaluationReport]:
        return self._split(lambda answer: answer.task or "all")

    def by_duration(self) -> dict[str, EvaluationReport]:
        return self._split(lambda answer: duration_class(answer.duration))

    def _split(self, key: Callable[[Answer], str]) -> dict[str, EvaluationReport]:
        groups: dict[str, list[Answer]] = {}
        for answer in self.answers:
            groups.setdefault(key(answer), []).append(answer)
        return {
            name: EvaluationReport(self.name, self.visuals, group, "")
            for name, group in sorted(groups.items())
        }


def duration_class(seconds: float | None) -> str:
    if seconds is None:
        return "no video"
    return next(label for limit, label in DURATIONS if seconds < limit)


def _share(answers: Sequence[Answer], what: str) -> float:
    return statistics.fmean(getattr(answer, what) for answer in answers) if answers else 0.0
