"""The arms of a study side by side: means over seeds, and what each gains over the reference."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from assets.deployment.ablation import REFERENCE, Arm, of_key
from assets.evaluation.report import EvaluationReport
from assets.records.intervals import student_reach

ALL = "all"
COLUMNS = ("arm", "compares", "seeds", "asked", "accuracy", "+-", "gain", "gain +-", "what")


@dataclass(frozen=True, slots=True)
class Scores:
    """What one run of an arm scored.

    Attributes:
        key: its partition.
        version: hash of its checkpoint and the questions.
        right, asked: questions, by group; `ALL` is every one.
        chance: expected accuracy of guessing.
    """

    key: str
    version: str
    right: Mapping[str, int]
    asked: Mapping[str, int]
    chance: float

    def accuracy(self, group: str) -> float:
        """Share of right answers."""
        return self.right[group] / self.asked[group] if self.asked[group] else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def scores_of(key: str, report: EvaluationReport) -> Scores:
    """The scores of one run: of all questions, of each kind of question and of each duration."""
    groups = {ALL: report, **report.by_task(), **report.by_duration()}
    return Scores(
        key,
        report.version,
        {name: sum(answer.correct for answer in group.asked) for name, group in groups.items()},
        {name: len(group.asked) for name, group in groups.items()},
        round(report.chance, 4),
    )


def arms_table(
    arms: Mapping[str, Arm], scores: Sequence[Scores], group: str = ALL
) -> list[dict[str, Any]]:
    """A row for each arm that was scored on a group of questions, the reference first.

    Intervals are of the mean over seeds, 95 % by Student's t; `gain` is the mean of the differences
    to the reference with the same seed. A single seed has no interval.
    """
    by_arm: dict[str, dict[int, float]] = {}
    asked: dict[str, int] = {}
    for one in scores:
        name, seed = of_key(one.key)
        if group in one.asked:
            by_arm.setdefault(name, {})[seed] = one.accuracy(group)
            asked[name] = one.asked[group]
    reference = by_arm.get(REFERENCE, {})
    rows = []
    for name, arm in arms.items():
        if name not in by_arm:
            continue
        found = by_arm[name]
        gains = [found[seed] - reference[seed] for seed in sorted(found.keys() & reference.keys())]
        row = {
            "arm": name,
            "compares": arm.compares,
            "what": arm.says,
            "seeds": len(found),
            "asked": asked[name],
            "accuracy": round(statistics.fmean(found.values()), 4),
            "+-": _reach(list(found.values())),
            "gain": round(statistics.fmean(gains), 4) if gains and name != REFERENCE else None,
            "gain +-": _reach(gains) if name != REFERENCE else None,
        }
        rows.append({column: row[column] for column in COLUMNS})
    return rows


def groups_of(scores: Sequence[Scores]) -> list[str]:
    """The groups of questions that any run was asked, `ALL` first."""
    return list(dict.fromkeys([ALL, *(group for one in scores for group in one.asked)]))


def _reach(values: Sequence[float]) -> float | None:
    reach = student_reach(values)
    return None if reach is None else round(reach, 4)
