"""Whether what was collected is all there and can be used. Nothing here stops what follows: people decide."""

from __future__ import annotations

from assets.settings import Settings
from assets.sources.annotations import AnnotationReport
from assets.sources.collections import CollectionReport
from assets.verdict import Verdict

USABLE, ALL_THERE = "usable", "all_there"
NAMED = 10


def usable(report: AnnotationReport, settings: Settings) -> Verdict:
    """Few rows were set aside, and every file in the landing folder could be read."""
    most, read, lost = settings.shards.max_drop_share, report.counts["rows_read"], report.counts["rejected"]
    table = [{"reason": reason, "rows": rows} for reason, rows in report.rejected.items()]
    facts = {"rows read": read, "set aside": table}
    told = f"{read - lost:,} of {read:,} rows can be used"
    if report.problems:
        says = f"{told}; not read: {'; '.join(report.problems[:NAMED])}. Mend these files and put them there again"
        return Verdict(USABLE, says, passed=False, severe=False, facts=facts)
    if lost > most * read:
        says = f"{told}; shards.max_drop_share is {most:g}. annotations.rejected.parquet says why, row by row"
        return Verdict(USABLE, says, passed=False, severe=False, facts=facts)
    return Verdict(USABLE, told, severe=False, facts=facts)


def all_there(report: CollectionReport) -> Verdict:
    """The hub has every annotation file that the mixture names."""
    missing = [row["annotation"] for row in report.table if row["state"] != "ready"]
    told = f"{len(report.table) - len(missing):,} of {len(report.table):,} annotation files of the mixture"
    if not missing:
        return Verdict(ALL_THERE, told, severe=False)
    named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    says = f"{told}; the hub has nothing for {named}. Training does without them, or change collections.mixtures"
    return Verdict(ALL_THERE, says, passed=False, severe=False, facts={"missing": len(missing)})
