"""When every frame of a video is shown: the first of two passes over a file.

This pass only demuxes, which is fast, and decodes just enough to find the first frame that decodes.
Container headers are not believed: not the number of frames, the duration, or the rate.

Ticks are a stream's own integer time, in `time_base` units.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from model.media.container import FrameDecoder, MediaError, PacketReader, open_video
from model.media.limits import MAX_VIDEO_PIXELS

PROBE = 32  # frames decoded to find out whether packets and frames correspond
# Seconds that a picture may stay; a clock that leaps further is taken for damaged.
LONGEST_STILL = 600


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each frame of a video is shown, and what is known about the stream without decoding it.

    `pts` are the seconds from the first frame that decodes to each frame, float64, ascending;
    `ticks` are the stream's own times of the same frames. `rate` is the constant frame rate, or
    None when the rate varies. `duration`, in seconds, counts the last frame's own showing.
    `skippable`: packets and frames correspond one to one, so that frames can be left out; otherwise
    decoding looks at every frame and counts. `truncated`: the container broke off, or promises
    clearly more than it holds.
    """

    path: str
    pts: np.ndarray
    ticks: np.ndarray
    rate: Fraction | None
    duration: float
    stream: int
    container: str
    codec: str
    width: int
    height: int
    skippable: bool = True
    truncated: bool = False

    @classmethod
    def constant(cls, frames: int, fps: Fraction | float, path: str = "") -> Timeline:
        """The timeline of `frames` pictures at a constant rate, as read from no file."""
        rate = Fraction(fps).limit_denominator(1 << 20)
        ticks = np.arange(frames)
        return cls(path, ticks / float(rate), ticks, rate, float(frames / rate), 0, "", "", 0, 0)

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def fps(self) -> float:
        """Frames a second, on average when the rate varies; 0 if there is no telling (one frame of
        no duration).
        """
        if self.rate is not None:
            return float(self.rate)
        return self.frames / self.duration if self.duration > 0 else 0.0

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """Indices of the frames nearest to times counted from the first frame; the earlier of two
        equally near.
        """
        right = np.searchsorted(self.pts, seconds).clip(min(1, self.frames - 1), self.frames - 1)
        left = np.maximum(right - 1, 0)
        return np.where(seconds - self.pts[left] <= self.pts[right] - seconds, left, right)


def read_timeline(path: str | os.PathLike[str], *, max_pixels: int = MAX_VIDEO_PIXELS) -> Timeline:
    """Read when every frame is shown, decoding only enough to find the first that decodes.

    Args:
        path: a local file.
        max_pixels: most width x height of a picture.

    Raises:
        MediaError: the file cannot be used as a video.
    """
    name = os.fspath(path)
    with open_video(name, max_pixels=max_pixels) as (container, stream):
        assert stream.time_base is not None  # every stream of a file has one
        index, time_base, codec = stream.index, stream.time_base, stream.codec_context.name
        width, height = stream.codec_context.width, stream.codec_context.height
        format_name = container.format.name
        nominal = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        promised = _promised(container, stream)
        packets = PacketReader(container, stream)
        # Arrays, not lists: a long video has millions of packets.
        packet_ticks, lasting, timeless = array("q"), array("q"), 0
        for packet in packets:
            if packet.is_discard:
                continue
            if packet.pts is None:
                timeless += 1
            else:
                packet_ticks.append(packet.pts)
                lasting.append(packet.duration or 0)
    if not packet_ticks and not timeless:
        raise MediaError("no_frames", name, f"its {codec} stream holds no packet")

    ticks, places = np.unique(np.array(packet_ticks), return_index=True)
    last = lasting[int(places[-1])] if len(places) else 0
    skippable = len(ticks) == len(packet_ticks) and not timeless
    if skippable:
        first, skippable = _first_frame(name, ticks, max_pixels)
        ticks = ticks[np.searchsorted(ticks, first) :]
    if not skippable:
        ticks = _decoded_ticks(name, max_pixels, time_base, nominal)

    shown_at = _without_leaps(ticks - ticks[0], time_base)
    rate = _constant_rate(shown_at, time_base, nominal)
    duration = _duration(shown_at, time_base, rate, last)
    # Some headers count from the first frame, some from zero.
    held = max(duration, float(ticks[-1] * time_base))
    return Timeline(
        path=name,
        pts=shown_at * float(time_base),
        ticks=ticks,
        rate=rate,
        duration=duration,
        stream=index,
        container=format_name,
        codec=codec,
        width=width,
        height=height,
        skippable=skippable,
        truncated=packets.broken or promised > held + max(1.0, held / 20),
    )


def _promised(container: InputContainer, stream: VideoStream) -> float:
    """Seconds that the headers speak of; 0 if they do not, as in formats whose duration is an
    estimate.
    """
    if container.format.name.startswith("mpeg"):
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _first_frame(path: str, ticks: np.ndarray, max_pixels: int) -> tuple[int, bool]:
    """Tick of the first frame that decodes, and whether the first frames are just the ones that the
    packets promise.

    They are not where a frame comes in two packets (field pictures) or the container knows decoding
    times only.
    """
    out: list[int | None] = []
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        # No width where FFmpeg has refused the size that it found.
        sized = stream.codec_context.width > 0
        frames = FrameDecoder(PacketReader(container, stream), stream)
        for frame in frames:
            out.append(frame.pts)
            if len(out) == PROBE:
                break
    if not out:
        reason = "no_frame_decodes" if sized else "too_large"
        raise MediaError(reason, path, f"{frames.bad_packets} packets refused, of {len(ticks)}")
    first = int(ticks[0]) if out[0] is None else out[0]
    start = int(np.searchsorted(ticks, first))
    promised = ticks[start : start + len(out)].tolist()
    return first, out == promised or frames.bad_packets > 0


def _decoded_ticks(
    path: str, max_pixels: int, time_base: Fraction, nominal: Sequence[Fraction]
) -> np.ndarray:
    """The timeline of a file whose packets do not tell: decode it all once, and let the frames'
    order decide.
    """
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        frames, ticks, timeless = (
            FrameDecoder(PacketReader(container, stream), stream),
            array("q"),
            0,
        )
        for frame in frames:
            if frame.pts is None:
                timeless += 1
            else:
                ticks.append(frame.pts)
    if not ticks and not timeless:
        raise MediaError("no_frame_decodes", path, f"{frames.bad_packets} packets refused")
    if timeless:
        step = round(1 / (nominal[0] * time_base)) if nominal else 1
        return np.arange(len(ticks) + timeless, dtype=np.int64) * max(1, step)
    return np.sort(np.array(ticks))


def _without_leaps(ticks: np.ndarray, time_base: Fraction) -> np.ndarray:
    """The clock without jumps of many minutes, which are damaged time stamps rather than pictures
    that stand still.
    """
    steps = np.diff(ticks)
    leaps = steps * float(time_base) > LONGEST_STILL
    if not leaps.any():
        return ticks
    return np.concatenate([[0], np.cumsum(np.where(leaps, int(np.median(steps)), steps))])


def _constant_rate(
    ticks: np.ndarray, time_base: Fraction, nominal: Sequence[Fraction]
) -> Fraction | None:
    """The rate that puts every frame within one tick of its place; None if there is none.

    The container's own rate is tried first, because it is exact where coarse ticks (a millisecond)
    are not; then what was measured, rounded to the usual rates, then as it is.
    """
    frames, span = len(ticks), int(ticks[-1])
    if frames == 1:
        return nominal[0] if nominal else None
    if span <= 0:
        return None
    measured = (frames - 1) / (span * time_base)
    usual = [Fraction(round(measured)), Fraction(round(measured * 1001), 1001)]
    for rate in (*nominal, *usual, measured):
        if rate <= 0:
            continue
        place = np.arange(frames) * float(1 / (rate * time_base))
        if np.abs(ticks - place).max() <= 1 + 1e-6:
            return rate
    return None


def _duration(ticks: np.ndarray, time_base: Fraction, rate: Fraction | None, last: int) -> float:
    """Seconds from the first frame's appearance to the last one's end, `last` ticks after it
    appears if known.
    """
    if rate is not None:
        return float(len(ticks) / rate)
    if last <= 0:
        last = int(np.median(np.diff(ticks))) if len(ticks) > 1 else 0
    return float((int(ticks[-1]) + last) * time_base)
