"""How long the short videos of a part are. Their annotations do not say, so some of the files are
looked into.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from assets.fetching.probe import InvalidVideo, ProbePool
from assets.shards.mds import read_column
from training.formats import layout
from training.formats.hashing import stable_hash
from training.formats.storage import Storage

MOST = 100  # videos that are looked into
PROCESSES = 2  # that look into them


@dataclass(slots=True)
class Lengths:
    """How long the videos of a part are.

    Attributes:
        videos: distinct ones in the part.
        seconds: of those that were looked into, always the same ones.
        unreadable: of these, how many gave none.
    """

    videos: int
    seconds: list[float] = field(default_factory=list)
    unreadable: int = 0

    @property
    def hours(self) -> float:
        """Of all videos of the part, if those that were looked into are like the rest; 0 where none
        was.
        """
        mean = sum(self.seconds) / len(self.seconds) if self.seconds else 0.0
        return self.videos * mean / 3600

    @property
    def summary(self) -> str:
        """The hours in words that say how they are known."""
        if not self.seconds:
            return f"not known: none of {self.videos:,} videos was looked into"
        how = (
            "measured"
            if len(self.seconds) == self.videos
            else f"estimated from {len(self.seconds):,}"
        )
        return f"{self.hours:,.2f} h in {self.videos:,} videos, {how}"


def short_video_lengths(storage: Storage, folder: str) -> Lengths:
    """Look into at most `MOST` videos of a part, in processes of their own; on a remote root
    into none.
    """
    videos = sorted(
        set(read_column(storage, folder, "video")), key=lambda name: stable_hash("length", name)
    )
    lengths = Lengths(len(videos))
    if not storage.is_local:
        return lengths

    with ProbePool() as prober, ThreadPoolExecutor(PROCESSES) as pool:

        def seconds(video: str) -> float | None:
            try:
                return prober.probe(storage.local(f"{layout.LLAVA_VIDEO_FILES}/{video}")).duration
            except (InvalidVideo, FileNotFoundError):
                return None

        for found in pool.map(seconds, videos[:MOST]):
            if found is None:
                lengths.unreadable += 1
            else:
                lengths.seconds.append(found)
    return lengths
