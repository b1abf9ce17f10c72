"""The table of the long-video benchmark: in which rows a question counts, and what stands there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from assets.evaluation.report import duration_class
from benchmarks.longvideo_corpus import Held
from benchmarks.longvideo_gates import Answered
from model.config import PRESETS as MODELS
from model.config import MemoryConfig

FEW = 64  # frames of a model that sees a few of each film


def labels_of(one: Held, number: int, memory: MemoryConfig = MODELS["tiny"].memory) -> list[str]:
    """The rows of the table that a question counts in."""
    asked, seconds = one.questions[number], one.film.duration
    labels = [
        "all",
        f"group: {asked.task.partition(':')[0]}",
        f"task: {asked.task}",
        f"length: {duration_class(seconds)}",
    ]
    if asked.evidence is None:
        return [*labels, "evidence: the whole film"]
    start, end = asked.evidence
    quarter = min(3, int((start + end) / 2 * 4 / seconds))
    labels.append(f"evidence: {('first', 'second', 'third', 'fourth')[quarter]} quarter")
    if end - start <= 10:  # longer ones are in any selection of frames
        kept = max(1, min(memory.max_query_frames, int(seconds * memory.temporal_ratio)))
        for what, count in (("frames that forgetting keeps", kept), (f"{FEW} frames", FEW)):
            frames = np.linspace(0, seconds - 1, count, dtype=np.int64)
            inside = bool(((frames >= start) & (frames < end)).any())
            labels.append(f"brief evidence: {'in' if inside else 'not in'} the {what}")
    return labels


def answered(held: Sequence[Held], right: dict[str, dict[str, bool]]) -> list[dict[str, Any]]:
    """Every held-out question with its labels, its chance, and whether each column has it right."""
    return [
        {
            "id": (name := f"{one.film.name}/{number}"),
            "film": one.film.name,
            "labels": labels_of(one, number),
            "chance": 1 / len(asked.choices),
            "right": {column: answers[name] for column, answers in right.items()},
        }
        for one in held
        for number, asked in enumerate(one.questions)
    ]


def rows_of(questions: Sequence[Answered]) -> list[dict[str, Any]]:
    """A row for each label: questions, chance, and the share of right answers in each column."""
    groups: dict[str, list[Answered]] = {}
    for asked in questions:
        for label in asked["labels"]:
            groups.setdefault(label, []).append(asked)
    order = sorted(groups, key=lambda label: (_KINDS.index(label.partition(":")[0]), label))
    return [
        {
            "questions": label,
            "asked": len(groups[label]),
            "chance": _mean(asked["chance"] for asked in groups[label]),
            **{
                name: _mean(asked["right"][name] for asked in groups[label])
                for name in groups[label][0]["right"]
            },
        }
        for label in order
    ]


_KINDS = ("all", "length", "evidence", "brief evidence", "group", "task")


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a page."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    for row in rows:
        lines.append(
            f"| {' | '.join(f'{x:.3f}' if isinstance(x, float) else str(x) for x in row.values())} "
            "|"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return round(float(np.mean(list(values))), 4)
