"""One stretch of a video's pictures, decoded in a process of its own; several make up the video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from assets.features.workers.backends import OpenedVideo
from model.media.reader import DecodeReport, decode
from model.media.refusals import MediaError
from model.media.sampling import feature_frame_indices
from model.media.timeline import Timeline, read_timeline

LEAST = 120  # pictures of a stretch: opening a file and passing over the rest takes time, too


def stretches_of(line: Timeline, wanted: int, most: int) -> int:
    """In how many stretches to decode so many pictures of a video. One where packets and frames do
    not correspond, since every frame is then counted from the first.
    """
    return max(1, min(most, wanted // LEAST)) if line.skippable else 1


@contextmanager
def open_stretch(
    path: str, size: int, min_frames: int, stretch: int, most: int
) -> Iterator[OpenedVideo]:
    """Open one stretch of a video; `facts` say also which pictures it has: the `first` and, of the
    whole video, the number of `chosen` ones and of `stretches`.

    Groups of packets before it are passed over without decoding (`model.media.groups`), so pictures
    are those of the whole video to the last bit, as long as nothing is damaged. What stands in for
    a missing picture, and what is counted, depends on the pictures before it.

    Args:
        size: S; pictures are turned upright and squashed to S x S.
        min_frames: pictures wanted of a video shorter than so many seconds, if it has them.
        stretch: which one, from 0.
        most: stretches there are at most.

    Raises:
        MediaError: the file cannot be used; or it is damaged and has several stretches, and has to
            be decoded in one.
    """
    line = read_timeline(path)
    chosen = feature_frame_indices(line, min_frames=min_frames)
    count = stretches_of(line, len(chosen), most)
    own = np.array_split(np.arange(len(chosen)), count)[stretch]
    report = DecodeReport()
    pictures = decode(line, chosen[own], size=size, report=report)
    if count > 1:
        pictures = _undamaged(line, pictures, report)
    video = OpenedVideo(line, chosen[own], pictures, report, "one stretch of several")
    video.facts |= {"first": int(own[0]), "chosen": len(chosen), "stretches": count}
    yield video


def _undamaged(
    line: Timeline, pictures: Iterator[np.ndarray], report: DecodeReport
) -> Iterator[np.ndarray]:
    yield from pictures
    if report.damaged:
        raise MediaError("too_corrupt", line.path, "damaged, and decoded in several stretches")
