"""What a person should know of the rows that were written, before anything is trained on them."""

from __future__ import annotations

from assets.deployment.settings import Settings
from assets.questions.build import QuestionReport
from assets.questions.judging import PUBLISHED_WRONG
from assets.questions.rows import CHOICE
from assets.records.verdict import Verdict

BALANCED, JUDGED = "balanced", "judged"


def balanced(report: QuestionReport, settings: Settings) -> Verdict:
    """There are rows of either form, and nothing but the video tells the right option."""
    most = settings.questions.checks.longest_right
    counts = report.counts
    said = (
        f"{counts['rows']:,} of {counts['rows written']:,} rows passed: {counts['open-ended']:,} "
        f"open-ended, {counts['multiple choice']:,} multiple choice; the longest option is right "
        f"in {report.longest:.0%} of these"
    )
    good = bool(counts["open-ended"] and counts["multiple choice"]) and report.longest <= most
    facts = {"right options": report.places}
    return Verdict(BALANCED, said, passed=good, blocking=False, facts=facts)


def judged(report: QuestionReport) -> Verdict:
    """A person judged a sample, and it is no worse than the published set."""
    sheet = next(name for name in report.files if name.endswith(".csv"))
    choice = next((rate for rate in report.rates if rate.form == CHOICE), None)
    if choice is None:
        said = (
            f"nobody has judged multiple-choice rows yet: how many are wrong is not known. Fill in "
            f"{sheet}, put it into questions.judged as SOURCE.csv, and materialize again"
        )
        return Verdict(JUDGED, said, passed=False, blocking=False)
    said = "; ".join(rate.sentence for rate in report.rates)
    passed = choice.interval[0] <= PUBLISHED_WRONG
    beside = f"the published set's multiple-choice labels: {PUBLISHED_WRONG:.0%} wrong"
    return Verdict(JUDGED, f"{said}; {beside}", passed=passed, blocking=False)
