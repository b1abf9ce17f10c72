"""Whether a collection is all there. It stops nothing that follows: people decide."""

from __future__ import annotations

from assets.collections.collect import CollectionReport
from assets.records.verdict import Verdict

ALL_THERE = "all_there"
NAMED = 10


def all_there(report: CollectionReport) -> Verdict:
    """The hub has every annotation file that the mixture names."""
    missing = [row["annotation"] for row in report.table if row["state"] != "ready"]
    told = f"{len(report.table) - len(missing):,} of {len(report.table):,} annotation files of the mixture"
    if not missing:
        return Verdict(ALL_THERE, told, blocking=False)
    named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    says = f"{told}; the hub has nothing for {named}. Training does without them, or change collections.mixtures"
    return Verdict(ALL_THERE, says, passed=False, blocking=False, facts={"missing": len(missing)})
