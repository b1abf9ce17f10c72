"""Ways to decode a video in a child process, behind one small interface.

A backend is a function ``open(path, **options)`` that returns a context manager whose value has
``frames``, ``facts``, ``stats`` and iterates over ``(k, seconds, picture)`` for k = 0 .. frames-1:
see :class:`Video`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any

import av
import numpy as np

from model.media import decord_reader as decord_frames
from model.media import reader as sampling
from model.media.container import MediaError


class Video:
    """One video being decoded.

    Attributes:
        frames: number of pictures that will come, known before the first one does.
        facts: what is known beforehand: duration, codec, container, dimensions, decoder and why it
            was chosen.
        stats: what went wrong while decoding; complete after the last picture.
    """

    def __init__(
        self,
        line: sampling.Timeline,
        indices: np.ndarray,
        pictures: Iterator[np.ndarray],
        report: sampling.DecodeReport,
        why: str,
    ) -> None:
        self.frames = len(indices)
        self._seconds, self._pictures, self._report, self._line = (
            line.pts[indices],
            pictures,
            report,
            line,
        )
        self.facts: dict[str, Any] = {
            "frames": self.frames,
            "duration": line.duration,
            "codec": line.codec,
            "container": line.container,
            "width": line.width,
            "height": line.height,
            "decoder": report.decoder,
            "why": why,
        }

    @property
    def stats(self) -> dict[str, float]:
        """Counts by name; every one that is not zero is damage."""
        counts = {name: value for name, value in asdict(self._report).items() if name != "decoder"}
        return {**counts, "truncated": int(self._line.truncated)}

    @property
    def too_corrupt(self) -> bool:
        """Whether so many pictures are missing that the video should not be used at all."""
        return self._report.too_corrupt(self.frames)

    def __iter__(self) -> Iterator[tuple[int, float, np.ndarray]]:
        for k, (seconds, picture) in enumerate(zip(self._seconds, self._pictures, strict=True)):
            yield k, float(seconds), picture


@contextmanager
def open_pyav(
    path: str, size: int, min_frames: int, max_frames: int, max_pixels: int
) -> Iterator[Video]:
    """The planned decoder of :mod:`model.media.reader`.

    Raises:
        MediaError: the file cannot be used.
        TooLong: more frames than allowed.
    """
    line, indices = plan(path, min_frames, max_frames, max_pixels)
    report = sampling.DecodeReport()
    pictures = sampling.decode(line, indices, size=size, max_pixels=max_pixels, report=report)
    report.decoder += f", ffmpeg {ffmpeg_version()}"
    yield Video(
        line, indices, pictures, report, "exact on every kind of file and cheapest in CPU time"
    )


@contextmanager
def open_decord(
    path: str, size: int, min_frames: int, max_frames: int, max_pixels: int
) -> Iterator[Video]:
    """decord where it can be trusted, else :func:`open_pyav`; see :mod:`model.media.decord_reader`."""
    line, indices = plan(path, min_frames, max_frames, max_pixels)
    report = sampling.DecodeReport()
    try:
        pictures = decord_frames.decode(
            line, indices, size=size, max_pixels=max_pixels, report=report
        )
        first = next(pictures)  # opens the file, compares timelines
    except MediaError as error:
        with open_pyav(path, size, min_frames, max_frames, max_pixels) as video:
            video.facts["why"] = f"decord is asked for, but: {error.detail}"
            yield video
        return
    why = "decord is asked for; damage that it mends is not counted"
    yield Video(line, indices, chain([first], pictures), report, why)


class TooLong(ValueError):
    """A video with more frames to keep than a feature file may have."""


def plan(
    path: str, min_frames: int, max_frames: int, max_pixels: int
) -> tuple[sampling.Timeline, np.ndarray]:
    """The timeline of a file and the frames that its features hold."""
    line = sampling.timeline(path, max_pixels=max_pixels)
    indices = sampling.feature_frame_indices(line, min_frames=min_frames)
    if len(indices) > max_frames:
        raise TooLong(f"{len(indices):,} frames at one a second, at most {max_frames:,} are kept")
    return line, indices


def ffmpeg_version() -> str:
    """The FFmpeg that PyAV brings along."""
    return str(av.ffmpeg_version_info)
