"""Clips of a video, and the pictures of them that a model sees.

The file is opened and decoded in locked-up child processes. Which pictures they are follows from
the bytes of the video and a few numbers, so what was answered to them is found again without
decoding anything.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from assets.endpoints.protocol import Pictures
from assets.fetching.locked_children import LockedChildren
from model.media.reading import reading
from training.formats.hashing import hash_value

WORKER = Path(__file__).with_name("frame_worker.py")
QUALITY = 85  # of the JPEG files
CLIPS_AT_ONCE = 8  # whose pictures are in the memory together
LEAST_TIME_S = 120.0
TIMES_REAL = 1.0  # a video is to decode at least this fast, or counts as hung


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a video, in seconds from its beginning.

    Attributes:
        number: from 0.
    """

    number: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Look:
    """How clips are looked at.

    Attributes:
        frames: pictures of a clip, spread evenly.
        side: of a picture, the longer one, in pixels.
        max_pixels: width x height of a video that is decoded at all.
    """

    frames: int
    side: int
    max_pixels: int

    def times(self, clip: Clip) -> list[float]:
        """When the pictures of a clip are shown."""
        step = (clip.end - clip.start) / self.frames
        return [round(clip.start + (n + 0.5) * step, 3) for n in range(self.frames)]

    def identity(self, sha256: str, clip: Clip) -> str:
        """What the pictures of a clip of the video with that hash are made from."""
        return hash_value([sha256, self.times(clip), self.side, QUALITY, reading()])


def cut(duration: float, clip_s: float) -> list[Clip]:
    """A video of `duration` seconds as clips of equal length, about `clip_s` each."""
    number = max(1, round(duration / clip_s))
    ends = [round(duration * n / number, 3) for n in range(number + 1)]
    return [Clip(n, ends[n], ends[n + 1]) for n in range(number)]


class ClipReader:
    """Reads clips of videos in locked-up children. A context manager.

    Args:
        look: how.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        self._children = LockedChildren(WORKER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    def duration(self, path: Path) -> float:
        """Seconds of picture in a video.

        Raises:
            InvalidVideo: it cannot be read.
        """
        limit = max(LEAST_TIME_S, path.stat().st_size / (1 << 20))
        return float(self._children.ask(self._request(path), limit)["duration"])

    def read(
        self, path: Path, sha256: str, clips: Sequence[Clip]
    ) -> Iterator[tuple[Clip, Pictures]]:
        """Clips with their pictures, a few of them decoded at a time.

        Raises:
            InvalidVideo: it cannot be decoded.
        """
        for first in range(0, len(clips), CLIPS_AT_ONCE):
            some = clips[first : first + CLIPS_AT_ONCE]
            times = [self.look.times(clip) for clip in some]
            request = {"times": times, "side": self.look.side, "quality": QUALITY}
            limit = max(LEAST_TIME_S, TIMES_REAL * some[-1].end)
            found = self._children.ask({**self._request(path), **request}, limit)["clips"]
            for clip, files in zip(some, found, strict=True):
                jpegs = tuple(base64.b64decode(text) for text in files)
                yield clip, Pictures(jpegs, self.look.identity(sha256, clip))

    def _request(self, path: Path) -> dict[str, object]:
        return {"path": str(path), "max_pixels": self.look.max_pixels}
