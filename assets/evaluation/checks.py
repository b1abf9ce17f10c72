"""Whether a checkpoint answers from what it sees."""

from __future__ import annotations

import math

from assets.records.verdict import Verdict

ABOVE_BLIND = "above_blind"
STANDARD_ERRORS = 2.0  # a difference that is larger is hardly chance


def above_blind(seeing: float, blind: float, asked: int) -> Verdict:
    """Whether a checkpoint that is shown the media answers better than the same one with grey
    pictures, by more than chance.

    Args:
        seeing: share answered right.
        blind: share answered right with nothing shown.
        asked: questions behind each share.
    """
    error = math.sqrt((seeing * (1 - seeing) + blind * (1 - blind)) / asked) if asked else 0.0
    facts = {
        "accuracy": seeing,
        "nothing shown": blind,
        "standard error of the difference": error,
        "asked": asked,
    }
    found = f"{seeing:.1%} right, {blind:.1%} with nothing shown, {asked:,} questions"
    if asked and seeing - blind > STANDARD_ERRORS * error:
        return Verdict(ABOVE_BLIND, found, blocking=False, facts=facts)
    says = f"{found}: no more than chance. Compare the stages in the table, or ask more questions"
    return Verdict(ABOVE_BLIND, says, passed=False, blocking=False, facts=facts)
