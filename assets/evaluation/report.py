"""What a checkpoint's answers add up to, and several checkpoints side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.evaluation.answers import Answer
from assets.records.intervals import wilson

DURATIONS = (
    (60, "under 1 min"),
    (600, "1 to 10 min"),
    (1800, "10 to 30 min"),
    (float("inf"), "over 30 min"),
)


@dataclass(slots=True)
class EvaluationReport:
    """The answers of one checkpoint, in the order of the questions.

    Attributes:
        name: of the checkpoint.
        visuals: whether it was shown them, or grey pictures.
        version: hash of the checkpoint, the questions and their media, and which could be asked.
    """

    name: str
    visuals: bool
    answers: list[Answer]
    version: str

    @property
    def label(self) -> str:
        """The checkpoint, and whether it was shown nothing."""
        return f"{self.name}{'' if self.visuals else ', nothing shown'}"

    @property
    def asked(self) -> list[Answer]:
        """The answers to questions that could be asked."""
        return [answer for answer in self.answers if not answer.problem]

    @property
    def accuracy(self) -> float:
        """Share of right answers among those asked."""
        return _mean([answer.correct for answer in self.asked])

    @property
    def written_accuracy(self) -> float:
        """The same of what the model wrote by itself."""
        return _mean([answer.written_correct for answer in self.asked])

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing among the choices; an open question cannot be guessed."""
        return _mean([1 / len(a.choices) if a.choices else 0.0 for a in self.asked])

    def by_task(self) -> dict[str, EvaluationReport]:
        """A report for each kind of question."""
        return self._split(lambda answer: answer.task or "all")

    def by_duration(self) -> dict[str, EvaluationReport]:
        """A report for each class of durations."""
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
    """The class that a video's duration falls into."""
    if seconds is None:
        return "no video"
    return next(label for limit, label in DURATIONS if seconds < limit)


def accuracy_table(
    seen: Sequence[EvaluationReport], blind: EvaluationReport
) -> list[dict[str, Any]]:
    """A row for each kind of question and each duration, and one for all; a column for each
    checkpoint.

    `nothing shown` is the last checkpoint without its visuals, `gain` the last one's lead over the
    first.

    Args:
        seen: the checkpoints, on the same questions.
        blind: the last of them, with nothing shown.
    """
    rows = [_row("all", seen, blind)]
    for split in (EvaluationReport.by_task, EvaluationReport.by_duration):
        groups, blind_groups = [split(report) for report in seen], split(blind)
        rows += [
            _row(name, [group[name] for group in groups], blind_groups[name]) for name in groups[-1]
        ]
    return rows


def score_rows(report: EvaluationReport) -> list[dict[str, Any]]:
    """One checkpoint's scores: a row for all questions, each kind of them and each duration."""
    groups = {"all": report, **report.by_task(), **report.by_duration()}
    return [
        {
            "questions": name,
            "asked": len(group.asked),
            "right": round(group.accuracy, 3),
            "95 % (Wilson)": interval_text(
                sum(answer.correct for answer in group.asked), len(group.asked)
            ),
            "chance": round(group.chance, 3),
            "written": round(group.written_accuracy, 3),
        }
        for name, group in groups.items()
    ]


def _row(what: str, seen: Sequence[EvaluationReport], blind: EvaluationReport) -> dict[str, Any]:
    first, last = seen[0], seen[-1]
    return {
        "questions": what,
        "gain": round(last.accuracy - first.accuracy, 3),
        "asked": len(last.asked),
        "interval": interval_text(sum(answer.correct for answer in last.asked), len(last.asked)),
        "chance": round(last.chance, 3),
        **{report.name: round(report.accuracy, 3) for report in seen},
        "nothing shown": round(blind.accuracy, 3),
        "written": round(last.written_accuracy, 3),
    }


def interval_text(right: int, asked: int) -> str:
    """`0.55 to 0.69`."""
    low, high = wilson(right, asked)
    return f"{low:.2f} to {high:.2f}"


def score_columns(rows: Sequence[Mapping[str, Any]], last: str) -> list[dict[str, Any]]:
    """The last checkpoint's scores, in as many columns as a page is wide."""
    return [
        {
            "questions": row["questions"],
            last: row[last],
            "95 % (Wilson)": row["interval"],
            "nothing shown": row["nothing shown"],
            "chance": row["chance"],
            "asked": row["asked"],
        }
        for row in rows
    ]


def checkpoint_columns(
    rows: Sequence[Mapping[str, Any]], checkpoints: Sequence[str]
) -> list[dict[str, Any]]:
    """All checkpoints side by side, in as many columns as a page is wide."""
    return [
        {name: row[name] for name in ("questions", *checkpoints, "gain", "written")} for row in rows
    ]


def example_question(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One video question with what the model wrote, row by row; one that it got right where there
    is one. Empty where none could be asked.
    """
    videos = [answer for answer in answers if answer.duration is not None] or list(answers)
    if not videos:
        return []
    shown = next((answer for answer in videos if answer.written_correct), videos[0])
    told = {"question": shown.id, "task": shown.task, "prompt": shown.prompt}
    told["answers"] = shown.generated
    if shown.scores:
        ranked = sorted(zip(shown.scores, shown.choices, strict=True), reverse=True)
        told["likeliest"] = ", ".join(f"{choice} ({score:.1f})" for score, choice in ranked[:3])
    told["right answer"] = shown.expected
    return [{"what": what, "text": text} for what, text in told.items()]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
