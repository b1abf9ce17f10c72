"""Whether a file is the video it should be.

`model.media.examination` looks into it, in child processes that are locked up. It finds what
everybody finds who uses the video later: the same stream, the same clock, the same limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from assets.fetching.locked_children import InvalidVideo, LockedChildren
from assets.fetching.options import Download
from model.media.limits import MAX_VIDEO_PIXELS

WORKER = Path(__file__).with_name("probe_worker.py")
LEAST_TIME_S = 60.0
# A file that is looked into more slowly than this is taken for a hang. Where the packets do not say
# when their pictures are shown, all of them are decoded.
BYTES_PER_S = 1 << 20
TOLERANCE_SHARE = 0.02  # of a duration; `download.verify_tolerance_s` where that is more


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a file holds.

    Attributes:
        suffix: by content (`.mp4`, `.webm`, ...), whatever the file is called.
        duration: seconds of picture, and `frames` how many, by the timeline that everybody uses.
        missing_s: seconds that the file itself says it should hold beside these.
        losses: what is missing by what the file itself says, by name; see
            `model.media.timeline.Timeline`.
        bad_places: where, from 0 to 1, no intact picture could be decoded.
    """

    suffix: str
    duration: float
    frames: int
    missing_s: float
    losses: dict[str, float]
    codec: str
    width: int
    height: int
    bad_places: tuple[float, ...]

    @property
    def damaged(self) -> bool:
        """Whether anything shows that the file is not as it was made."""
        return bool(self.bad_places) or any(self.losses.values())


class ProbePool:
    """Child processes (`probe_worker.py`) that probe files. One that hangs is killed, one that
    crashed is replaced.

    Use it as a context manager. Many threads may use it: each has a child of its own while it
    probes.

    Args:
        time_limit_s: after which a child counts as hung; by default longer for larger files.
        max_pixels: most width x height of a picture; the features' limit where the videos are for
            these.
    """

    def __init__(
        self, time_limit_s: float | None = None, max_pixels: int = MAX_VIDEO_PIXELS
    ) -> None:
        self.time_limit_s, self.max_pixels = time_limit_s, max_pixels
        self._children = LockedChildren(WORKER)

    def __enter__(self) -> ProbePool:
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    def probe(self, path: Path) -> VideoFacts:
        """What `path` holds.

        Raises:
            InvalidVideo: it is no readable video, or it hung or crashed the decoder.
        """
        limit = self.time_limit_s or max(LEAST_TIME_S, path.stat().st_size / BYTES_PER_S)
        request = {"path": str(path), "max_pixels": self.max_pixels}
        facts = self._children.ask(request, limit)["facts"]
        return VideoFacts(**{**facts, "bad_places": tuple(facts["bad_places"])})


def check_video(facts: VideoFacts, limits: Download, expected_s: float | None) -> None:
    """Compare a file with what was expected of it.

    Raises:
        InvalidVideo: `truncated`, `fragments_missing`, `damaged`, `duration_differs` or `too_long`.
    """

    stated = facts.duration + facts.missing_s
    if facts.missing_s > _tolerance(stated, limits):
        if number := facts.losses["missing_fragments"]:
            raise InvalidVideo(
                "fragments_missing", f"{number:g} fragments, {facts.missing_s:.1f} s, were left out"
            )
        raise InvalidVideo("truncated", f"{facts.duration:.1f} s of {stated:.1f} s are there")
    broken = facts.bad_places
    if 0.0 in broken or 1.0 in broken or len(broken) > 1:
        places = ", ".join(f"{place:.0%}" for place in broken)
        raise InvalidVideo("damaged", f"no picture could be decoded at {places} of the video")
    if expected_s and duration_differs(facts.duration, expected_s, limits):
        raise InvalidVideo(
            "duration_differs", f"{facts.duration:.1f} s, expected {expected_s:.1f} s"
        )
    if facts.duration > limits.max_duration_s:
        raise InvalidVideo(
            "too_long", f"{facts.duration:.0f} s, allowed are {limits.max_duration_s:.0f} s"
        )


def duration_differs(duration: float, expected_s: float, limits: Download) -> bool:
    """Whether a video is not as long as was stated; both in seconds."""
    return abs(expected_s - duration) > _tolerance(expected_s, limits)


def _tolerance(duration: float, limits: Download) -> float:
    return max(limits.verify_tolerance_s, TOLERANCE_SHARE * duration)
