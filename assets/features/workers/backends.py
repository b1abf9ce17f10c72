"""The ways to decode a video: each is one function, a `Backend`.

A backend opens a file and gives an `OpenedVideo`: how many pictures will come, what is known of the
file, and then the pictures. Pixels are the same whichever backend decodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import Any, Protocol

import av
import numpy as np

from model.media import decord_reader, reader
from model.media.damage import damage_counts
from model.media.refusals import MediaError
from model.media.sampling import SAMPLINGS, Sampling
from model.media.timeline import Timeline, read_timeline


class Backend(Protocol):
    """A way to decode; named as `module:function`, it is looked up in the decoding process."""

    def __call__(
        self,
        path: str,
        size: int,
        min_frames: int,
        max_frames: int,
        max_pixels: int,
        sampling: Sampling = "one a second",
    ) -> AbstractContextManager[OpenedVideo]:
        """Open a video.

        Args:
            path: a local file.
            size: S; pictures are turned upright and squashed to S x S.
            min_frames: pictures wanted of a video shorter than so many seconds, if it has them.
            max_frames: most pictures of one video.
            max_pixels: most pixels of a picture as it is stored, looked at before decoding.
            sampling: how pictures are chosen.

        Raises:
            MediaError: the file cannot be used.
            TooLong: it has more pictures to keep than `max_frames`.
        """


class TooLong(ValueError):
    """A video with more pictures to keep than a feature file may have."""


class OpenedVideo:
    """A video that is being decoded. Iterating gives its pictures in order: `(k, seconds, picture)`
    with k = 0 .. frames-1 and uint8 pictures [S, S, 3].

    Args:
        timeline: the file's timeline.
        indices: frames of the timeline that are wanted.
        pictures: these frames, decoded when they are asked for.
        report: filled while they are decoded.
        why: why this decoder was chosen, for people.

    Attributes:
        frames: number of pictures that will come, known before the first one does.
        facts: what is known beforehand: frames, duration, codec, container, dimensions, decoder and
            why it was chosen.
        pictures: those of `Args`.
        on_gpu: how many pictures a GPU's video engine has given so far.
        gave_up: why a GPU's video engine left the rest to the CPU; empty if it did not.
    """

    def __init__(
        self,
        timeline: Timeline,
        indices: np.ndarray,
        pictures: Iterator[np.ndarray],
        report: reader.DecodeReport,
        why: str,
    ) -> None:
        self.frames = len(indices)
        self._timeline, self._seconds = timeline, timeline.pts[indices]
        self.pictures, self._report = pictures, report
        self.on_gpu, self.gave_up = 0, ""
        self.facts: dict[str, Any] = {
            "frames": self.frames,
            "duration": timeline.duration,
            "pictures": timeline.frames,
            "codec": timeline.codec,
            "container": timeline.container,
            "width": timeline.width,
            "height": timeline.height,
            "decoder": report.decoder,
            "why": why,
        }

    @property
    def stats(self) -> dict[str, float]:
        """Counts by name; every one that is not zero is damage. Complete after the last picture."""
        return damage_counts(self._timeline, self._report)

    @property
    def too_corrupt(self) -> bool:
        """Whether so many pictures are missing that the video should not be used at all."""
        return self._report.too_corrupt(self.frames)

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        for k, (seconds, picture) in enumerate(zip(self._seconds, self.pictures, strict=True)):
            yield k, float(seconds), picture


@contextmanager
def open_pyav(
    path: str,
    size: int,
    min_frames: int,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "one a second",
) -> Iterator[OpenedVideo]:
    """A `Backend`: PyAV, planned by `model.media`."""
    timeline, indices = choose_frames(path, min_frames, max_frames, max_pixels, sampling)
    report = reader.DecodeReport()
    pictures = reader.decode(timeline, indices, size=size, max_pixels=max_pixels, report=report)
    report.decoder += f", ffmpeg {ffmpeg_version()}"
    why = "exact on every kind of file and cheapest in CPU time"
    yield OpenedVideo(timeline, indices, pictures, report, why)


@contextmanager
def open_decord(
    path: str,
    size: int,
    min_frames: int,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "one a second",
) -> Iterator[OpenedVideo]:
    """A `Backend`: decord where it can be trusted, see `model.media.decord_reader`, else PyAV."""
    timeline, indices = choose_frames(path, min_frames, max_frames, max_pixels, sampling)
    report = reader.DecodeReport()
    try:
        pictures = decord_reader.decode(
            timeline, indices, size=size, max_pixels=max_pixels, report=report
        )
        first = next(pictures)  # opens the file and compares timelines
    except MediaError as error:
        with open_pyav(path, size, min_frames, max_frames, max_pixels, sampling) as video:
            video.facts["why"] = f"decord is asked for, but: {error.detail}"
            yield video
        return
    why = "decord is asked for; damage that it mends is not counted"
    yield OpenedVideo(timeline, indices, chain([first], pictures), report, why)


def choose_frames(
    path: str,
    min_frames: int,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "one a second",
) -> tuple[Timeline, np.ndarray]:
    """The timeline of a file, and the frames of it that its features hold, int64 [T].

    Raises:
        MediaError: the file cannot be used.
        TooLong: T is more than `max_frames`.
    """
    timeline = read_timeline(path, max_pixels=max_pixels)
    indices = SAMPLINGS[sampling](timeline, min_frames=min_frames)
    if len(indices) > max_frames:
        raise TooLong(f"{len(indices):,} frames, {sampling}; at most {max_frames:,} are kept")
    return timeline, indices


def ffmpeg_version() -> str:
    """Version of the FFmpeg that PyAV brings along."""
    return str(av.ffmpeg_version_info)
