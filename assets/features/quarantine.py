"""Videos that gave no features, and why: one small record beside the place where the feature file
would be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from training.formats import layout
from training.formats.storage import Storage

SUFFIX = ".quarantine.json"

# Reasons of model.media.REASONS are facts about a file; these are what became of decoding it.
REASONS = {
    "missing": "the catalogue lists it, but the file is not there",
    "too_long": "more frames than a feature file may hold",
    "damaged": "parts of it do not decode, and the settings say to skip such videos",
    "timeout": "the decoder made no progress, or too little",
    "crash": "the decoder crashed",
    "oom": "the decoder needed more memory than it may have",
}
PASSING = {"timeout", "crash", "oom"}  # may be the machine's fault: tried again by later runs
ALWAYS_AGAIN = {"missing", "damaged"}  # settled by looking at the file, or the settings, anew


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Why a video has no features.

    Attributes:
        video: ``<source>/<id>``.
        reason: a key of ``REASONS`` here or in :mod:`model.media.container`.
        detail: for a person.
        attempts: runs that ended this way.
        decoding: hash of the video and of the settings it was decoded under.
        stderr: what the decoding process said last.
    """

    video: str
    reason: str
    detail: str
    attempts: int
    decoding: str
    stderr: str = ""

    def final(self, decoding: str, attempts: int) -> bool:
        """Whether trying again, under the settings that hash to ``decoding``, is pointless."""
        if self.decoding != decoding or self.reason in ALWAYS_AGAIN:
            return False
        return self.reason not in PASSING or self.attempts >= attempts


def record_path(variant: str, video: str) -> str:
    return layout.features(variant, video) + SUFFIX


def read_record(storage: Storage, variant: str, video: str) -> Quarantined | None:
    """The record of a video, if it has one."""
    try:
        return Quarantined(**storage.read_json(record_path(variant, video)))
    except FileNotFoundError:
        return None


def forget_records(storage: Storage, variant: str, videos: Iterable[str]) -> None:
    """Have these videos tried again by the next extraction, whatever became of them before."""
    for video in videos:
        storage.remove(record_path(variant, video))


def write_record(storage: Storage, variant: str, record: Quarantined) -> None:
    storage.write_json(record_path(variant, record.video), asdict(record))
