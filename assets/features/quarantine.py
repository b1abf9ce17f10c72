"""Videos that gave no features: a small record of each says why, where its features would be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from training.formats import layout
from training.formats.storage import Storage

SUFFIX = ".quarantine.json"

# `REASONS` of model.media.refusals are facts about a file; these say what became of decoding it.
REASONS = {
    "missing": "the catalogue lists it, but the file is not there",
    "too_long": "more frames than a feature file may hold",
    "damaged": "parts of it do not decode, and the settings say to skip such videos",
    "timeout": "the decoder made no progress, or too little",
    "crash": "the decoder crashed",
    "oom": "the decoder needed more memory than it may have",
}
# May be the machine's fault: later runs try again, up to `features.limits.attempts` runs in all.
PERHAPS_TEMPORARY = {"timeout", "crash", "oom"}
# Every run decides these anew, from the file and the settings; that costs little.
ALWAYS_TRIED_AGAIN = {"missing", "damaged"}


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Why a video has no features.

    Attributes:
        video: `<source>/<id>`.
        reason: a key of `REASONS` here or in `model.media.refusals`.
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
        """Whether trying again is pointless.

        Args:
            decoding: hash of the video and of the settings it would be decoded under.
            attempts: runs that may try.
        """
        if self.decoding != decoding or self.reason in ALWAYS_TRIED_AGAIN:
            return False
        return self.reason not in PERHAPS_TEMPORARY or self.attempts >= attempts


def read_record(storage: Storage, folder: str, video: str) -> Quarantined | None:
    """The record of a video in a folder of features, if it has one."""
    try:
        return Quarantined(**storage.read_json(layout.feature_quarantine(folder, video)))
    except FileNotFoundError:
        return None


def forget_records(storage: Storage, folder: str, videos: Iterable[str]) -> None:
    """Remove the records of these videos, so that the next extraction tries them again."""
    for video in videos:
        storage.remove(layout.feature_quarantine(folder, video))


def write_record(storage: Storage, folder: str, record: Quarantined) -> None:
    """Write the record of a video; an earlier one is replaced."""
    storage.write_json(layout.feature_quarantine(folder, record.video), asdict(record))
