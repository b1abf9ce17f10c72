"""Whether a collection is all there. Nothing that follows stops: people decide."""

from __future__ import annotations

from assets.collections.collection import CollectionReport
from assets.records.verdict import Verdict

ALL_THERE = "all_there"
NAMED = 10  # annotation files that the message names


def all_there(report: CollectionReport) -> Verdict:
    """The hub has every annotation file that the mixture names."""
    missing = [row["annotation"] for row in report.table if row["state"] != "ready"]
    wanted = len(report.table)
    found = f"{wanted - len(missing):,} of {wanted:,} annotation files of the mixture"
    if not missing:
        return Verdict(ALL_THERE, found, blocking=False)
    named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    message = (
        f"{found}; the hub has nothing for {named}. Training does without them; if that is meant, "
        "name them in collections.skip, else change collections.mixtures"
    )
    facts = {"missing": len(missing)}
    return Verdict(ALL_THERE, message, passed=False, blocking=False, facts=facts)
