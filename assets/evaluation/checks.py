"""Whether a checkpoint answers from what it sees."""

from __future__ import annotations

import math

from assets.evaluation.compare import CHECKPOINTS, Comparison
from assets.records.verdict import Verdict

SEES = "above_blind"
CERTAIN = 2.0  # standard errors of a difference that are hardly chance


def above_blind(report: Comparison) -> Verdict:
    """The last stage, shown the videos, is better than the same one shown grey pictures, by more
    than chance.
    """
    seeing, blind = report.accuracy[CHECKPOINTS[-1]], report.accuracy[f"{CHECKPOINTS[-1]} blind"]
    asked = report.counts["asked"]
    error = math.sqrt((seeing * (1 - seeing) + blind * (1 - blind)) / asked) if asked else 0.0
    facts = {
        "accuracy": seeing,
        "nothing shown": blind,
        "standard error of the difference": error,
        "asked": asked,
    }
    told = f"{seeing:.1%} right, {blind:.1%} with nothing shown, {asked:,} questions"
    if asked and seeing - blind > CERTAIN * error:
        return Verdict(SEES, told, blocking=False, facts=facts)
    says = f"{told}: no more than chance. Compare the stages in the table, or ask more questions"
    return Verdict(SEES, says, passed=False, blocking=False, facts=facts)
