"""Whether enough of the expected videos are there."""

from __future__ import annotations

from assets.deployment.settings import Settings
from assets.records.verdict import Verdict
from assets.sources.base import OK
from assets.videos.acquire import TRIED_AGAIN
from assets.videos.report import AcquireReport, coverage_threshold, is_enough, too_few

COVERAGE, NOTHING_MORE = "coverage", "nothing_more_to_get"


def coverage(report: AcquireReport, settings: Settings) -> list[Verdict]:
    """Whether enough videos are there, and whether another run or a person could still get more."""
    threshold = coverage_threshold(settings, report.source)
    missing = report.missing
    there = f"{report.counts[OK]:,} of {report.counts['expected']:,} videos are there"
    facts = {"coverage": report.coverage, "asked for": threshold, "missing": missing}
    enough = is_enough(report, threshold)
    hopeful = sum(row["videos"] for row in missing if row["status"] in TRIED_AGAIN)
    gone = sum(row["videos"] for row in missing) - hopeful
    notes = " ".join(report.notes)
    more = f"{hopeful:,} more may still be had: materialize again to retry. {notes}".strip()
    return [
        Verdict(COVERAGE, there if enough else too_few(report, threshold), enough, facts=facts),
        Verdict(
            NOTHING_MORE,
            more if hopeful else f"{gone:,} videos cannot be had",
            not hopeful,
            blocking=False,
        ),
    ]
