"""What is told of a video that is not as it was made: one set of counts, one sentence, one rule for
what should not be used at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from model.media.refusals import MediaError

if TYPE_CHECKING:  # light processes describe damage, too
    from model.media.reader import DecodeReport
    from model.media.timeline import Timeline

# Of `damage_counts`, for people.
WORDS = {
    "bad_packets": "{:g} packets that do not decode",
    "concealed": "{:g} pictures that the decoder mended",
    "filled": "{:g} pictures that are missing, with the ones before in their place",
    "longest_gap": "{:.1f} s at most without a picture that decodes",
    "truncated": "it ends before its header says",
    "missing_fragments": "{:g} fragments were left out",
    "missing_s": "{:.1f} s are missing",
    "torn": "{:g} packets of which a part is missing",
    "leapt_s": "its clock leaps by {:.0f} s",
}


def damage_counts(line: Timeline, report: DecodeReport) -> dict[str, float]:
    """Counts by name; every one that is not zero is damage. Complete once all is decoded."""
    counts = {name: value for name, value in asdict(report).items() if name in WORDS}
    return {**counts, **line.losses}


def describe_damage(counts: Mapping[str, float]) -> str:
    """What is wrong, for people; empty where nothing shows."""
    return ", ".join(
        words.format(counts[name]) for name, words in WORDS.items() if counts.get(name)
    )


def refuse_too_corrupt(line: Timeline, report: DecodeReport, chosen: int) -> None:
    """Raise MediaError where so much of `chosen` frames is missing that the video should not be
    used at all, for features, training or questions.
    """
    if report.too_corrupt(chosen):
        raise MediaError("too_corrupt", line.path, describe_damage(damage_counts(line, report)))
