"""Whether the rows that were collected can be used. Nothing that follows stops: people decide."""

from __future__ import annotations

from assets.annotations.collect import AnnotationReport
from assets.deployment.settings import Settings
from assets.records.verdict import Verdict

USABLE = "usable"
NAMED = 10  # files that the message names


def usable(report: AnnotationReport, settings: Settings) -> Verdict:
    """Few rows were set aside, and every annotation file could be read."""
    most = settings.shards.max_drop_share
    read, lost = report.counts["rows_read"], report.counts["rejected"]
    table = [{"reason": reason, "rows": rows} for reason, rows in report.rejected.items()]
    facts = {"rows read": read, "set aside": table}
    usable_rows = f"{read - lost:,} of {read:,} rows can be used"
    if report.problems:
        files = "; ".join(report.problems[:NAMED])
        message = f"{usable_rows}; not read: {files}. Mend these files and put them there again"
        return Verdict(USABLE, message, passed=False, blocking=False, facts=facts)
    if lost > most * read:
        message = (
            f"{usable_rows}; shards.max_drop_share is {most:g}. annotations.rejected.parquet says "
            "why, row by row"
        )
        return Verdict(USABLE, message, passed=False, blocking=False, facts=facts)
    return Verdict(USABLE, usable_rows, blocking=False, facts=facts)
