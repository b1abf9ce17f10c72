"""Whether enough of a source's videos was described for questions to be written."""

from __future__ import annotations

from assets.captions.build import CaptionReport
from assets.deployment.settings import Settings
from assets.records.verdict import Verdict

DESCRIBED = "described"


def described(report: CaptionReport, settings: Settings) -> Verdict:
    """Few clips have no caption."""
    most = settings.questions.most_aside
    clips = report.counts["clips"]
    aside = {
        what.partition(": ")[2]: n
        for what, n in report.counts.items()
        if what.startswith("clips set aside: ")
    }
    lost = sum(aside.values())
    facts = {"set aside": [{"reason": reason, "clips": n} for reason, n in aside.items()]}
    said = f"{clips - lost:,} of {clips:,} clips have a caption"
    if clips and lost <= most * clips:
        return Verdict(DESCRIBED, said, facts=facts)
    advice = (
        f"questions.most_aside is {most:g}; the reasons say why, clips.parquet clip by clip"
        if clips
        else "no video in the folder can be read; the table of videos says why"
    )
    return Verdict(DESCRIBED, f"{said}; {advice}", passed=False, facts=facts)
