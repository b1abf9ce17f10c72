"""Chosen frames of a video as pictures: the second of two passes over a file, in bounded memory.

The first pass (`read_timeline`) tells when every frame is shown, and the rules of `sampling` choose
frames by time. This pass decodes, and leaves out what no chosen frame can need: frames that nothing
refers to, and what follows the last chosen frame of a group that nothing later refers to. That
makes it two to three times cheaper than decoding everything, and just as exact.

    line = read_timeline("video.mp4")
    chosen = feature_frame_indices(line)
    for frame_HWC in decode(line, chosen, size=384):  # a uint8 RGB picture for each chosen frame
        ...

Shape suffixes: T frames, S side of a square picture, H W height and width, C colour.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import av
import numpy as np

from model.media.container import FrameDecoder, PacketReader, open_video
from model.media.limits import MAX_VIDEO_PIXELS
from model.media.pictures import PictureMaker
from model.media.refusals import MediaError
from model.media.sampling import checked_indices
from model.media.timeline import Timeline

# A video of which more is missing should not be used at all.
MAX_FILLED = 1 / 20  # of the chosen frames
MAX_GAP = 10.0  # seconds without a frame that decodes


@dataclass(slots=True)
class DecodeReport:
    """What went wrong while decoding, and which decoder did it.

    A picture may be broken without being counted here: frames that refer to a damaged one are
    damaged too, and not every decoder tells. So what is `damaged` at all should be distrusted as a
    whole.
    """

    decoder: str = ""
    bad_packets: int = 0  # packets the decoder refused
    concealed: int = 0  # frames, chosen or not, that the decoder says it mended
    filled: int = 0  # chosen frames that never came out; the last good frame stands in their place
    longest_gap: float = 0.0  # seconds of the longest stretch without a decoded frame around them

    @property
    def damaged(self) -> bool:
        return bool(self.bad_packets or self.concealed or self.filled)

    def too_corrupt(self, chosen: int) -> bool:
        """Whether so much of the `chosen` frames is missing that the video should not be used at
        all.
        """
        return self.filled > MAX_FILLED * chosen or self.longest_gap > MAX_GAP


@dataclass(slots=True)
class Decoded:
    """Chosen frames of one video: uint8 RGB [T, S, S, 3], and the seconds at which they appear,
    float32 [T].
    """

    frames_THWC: np.ndarray
    pts_T: np.ndarray
    duration: float
    report: DecodeReport = field(default_factory=DecodeReport)


def decode(
    line: Timeline,
    indices: Sequence[int] | np.ndarray,
    *,
    size: int,
    max_pixels: int = MAX_VIDEO_PIXELS,
    report: DecodeReport | None = None,
    decoder: Callable[..., Any] = FrameDecoder,
    pictures: Callable[[Any], np.ndarray] | None = None,
) -> Iterator[np.ndarray]:
    """Yield one uint8 RGB picture [size, size, 3] for each of `indices` (not descending, repeats
    allowed), in order.

    Pictures are turned upright, then squashed to a square. A frame that does not decode is replaced
    by the last good one and counted in `report`, which is complete once the iterator is exhausted.
    A few frames are held at a time. `decoder` turns packets into frames and `pictures` frames into
    pictures; they are FFmpeg's, unless others with the interfaces of `FrameDecoder` and
    `PictureMaker` are given.

    Raises ValueError for indices outside the timeline, MediaError if the file gives no frame at all
    or turns out to hold larger pictures than it said.
    """
    wanted = checked_indices(indices, line.frames)
    report = DecodeReport() if report is None else report
    report.decoder = f"pyav {av.__version__} {'planned' if line.skippable else 'sequential'}"
    pictures = PictureMaker(size) if pictures is None else pictures
    return _decode(line, wanted, max_pixels, report, decoder, pictures)


def read(
    line: Timeline,
    indices: Sequence[int] | np.ndarray,
    *,
    size: int,
    max_pixels: int = MAX_VIDEO_PIXELS,
) -> Decoded:
    """All of `decode` at once, for videos short enough to hold: 0.44 MB a frame at size 384."""
    report = DecodeReport()
    frames = list(decode(line, indices, size=size, max_pixels=max_pixels, report=report))
    return Decoded(
        np.stack(frames), line.pts[np.asarray(indices)].astype(np.float32), line.duration, report
    )


def _decode(
    line: Timeline,
    wanted: np.ndarray,
    max_pixels: int,
    report: DecodeReport,
    decoder: Callable[..., Any],
    pictures: Callable[[Any], np.ndarray],
) -> Iterator[np.ndarray]:
    """Walk through the decoded frames and the wanted ones side by side, both ascending."""
    done = 0
    last: av.VideoFrame | None = None
    last_number = 0
    skip_unless = set(line.ticks[wanted].tolist()) if line.skippable else None
    # A list: most frames that come out are only referred to by others, and looking one up in an
    # array takes longer than all else that is done about it.
    places = wanted.tolist()

    def fill(good: av.VideoFrame, count: int, until: int) -> Iterator[np.ndarray]:
        report.filled += count
        report.longest_gap = max(report.longest_gap, float(line.pts[until] - line.pts[last_number]))
        return repeat(pictures(good), count)

    with open_video(line.path, max_pixels=max_pixels, index=line.stream) as (container, stream):
        frames = decoder(PacketReader(container, stream), stream, skip_unless)
        for count, frame in enumerate(frames):
            report.bad_packets, report.concealed = frames.bad_packets, frames.concealed
            if frame.width * frame.height > max_pixels:
                raise MediaError(
                    "too_large", line.path, f"a frame of {frame.width}x{frame.height} pixels"
                )
            number = _number(line, frame, count)
            if number is None:
                continue
            # Wanted before this one, but they never came.
            missing = bisect_left(places, number, done) - done
            if missing > 0:
                yield from fill(frame if last is None else last, missing, number)
                done += missing
            repeats = bisect_right(places, number, done) - done
            if repeats > 0:
                yield from repeat(pictures(frame), repeats)
                done += repeats
            last, last_number = frame, number
            if done == len(wanted):
                return
        report.bad_packets, report.concealed = frames.bad_packets, frames.concealed
    if last is None:
        raise MediaError("no_frame_decodes", line.path, f"{report.bad_packets} packets refused")
    yield from fill(last, len(wanted) - done, int(wanted[-1]))


def _number(line: Timeline, frame: av.VideoFrame, count: int) -> int | None:
    """Which frame of the timeline this is, by its tick, or by counting where ticks do not tell."""
    if not line.skippable:
        return count if count < line.frames else None
    if frame.pts is None:
        return None
    place = int(np.searchsorted(line.ticks, frame.pts))
    return place if place < line.frames and line.ticks[place] == frame.pts else None
