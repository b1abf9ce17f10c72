"""What earlier checkpoints of the last stage scored, and how the newest one compares with the one
before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEPT = 20  # evaluations that a summary remembers


@dataclass(frozen=True, slots=True)
class Scores:
    """What one checkpoint scored.

    Attributes:
        checkpoint: version of its weights.
        questions: hash of what was asked, media included; only answers to the same questions are
            compared.
        accuracy: kind of question -> share answered right.
    """

    checkpoint: str
    questions: str
    accuracy: dict[str, float]


def earlier_scores(summary: Mapping[str, Any] | None, now: Scores) -> list[Scores]:
    """Scores of other checkpoints or on other questions than `now`, oldest first.

    Args:
        summary: the last evaluation's `summary.json`, where there is one.
    """
    if summary is None or "scores" not in summary:
        return []
    known = [Scores(**entry) for entry in (*summary["earlier"], summary["scores"])]
    others = [s for s in known if (s.checkpoint, s.questions) != (now.checkpoint, now.questions)]
    return others[-KEPT:]


def previous_scores(earlier: Sequence[Scores], now: Scores) -> Scores | None:
    """The newest earlier checkpoint that was asked the same questions."""
    return next((scores for scores in reversed(earlier) if scores.questions == now.questions), None)


def compared_with(before: Scores, now: Scores) -> list[dict[str, Any]]:
    """A row for each kind of question: the checkpoint before, this one, and the difference."""
    return [
        {
            "questions": what,
            f"before ({before.checkpoint[:8]})": before.accuracy[what],
            f"now ({now.checkpoint[:8]})": accuracy,
            "delta": round(accuracy - before.accuracy[what], 3),
        }
        for what, accuracy in now.accuracy.items()
        if what in before.accuracy
    ]
