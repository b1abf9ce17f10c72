"""When every frame of a video is shown: the first of two passes over a file.

This pass only demuxes, which is fast, and decodes just enough to find the first frame that decodes.
Container headers are not believed: not the number of frames, the duration, or the rate.

Ticks are a stream's own integer time, in `time_base` units.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from model.media.container import FrameDecoder, PacketReader, open_video
from model.media.fragments import MissingFragments, missing_fragments
from model.media.limits import MAX_VIDEO_PIXELS
from model.media.refusals import MediaError

PROBE = 32  # frames decoded to find out whether packets and frames correspond
# Seconds that a picture may stay while nothing else in the file goes on; a clock that leaps further
# is taken for damaged. Recorders of broadcast formats write something all the time, so that there a
# leap is a joint much earlier.
LONGEST_STILL, LONGEST_BROADCAST_STILL = 3600, 600
BROADCAST = ("mpegts", "mpeg")
# Formats whose headers say how long each stream is, and not only the file as a whole.
OWN_DURATION = ("mov", "avi")


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each frame of a video is shown, and what is known about the stream without decoding it.

    `pts` are the seconds from the first frame that decodes to each frame, float64, ascending;
    `ticks` are the stream's own times of the same frames. `rate` is the constant frame rate, or
    None when the rate varies. `duration`, in seconds, counts the last frame's own showing.
    `skippable`: packets and frames correspond one to one, so that frames can be left out; otherwise
    decoding looks at every frame and counts. `shown_packets` are the numbers of the packets
    that are shown (an edit list may hide some), `key_packets` of those that can be decoded without
    earlier ones.

    What is missing by what the file itself says: `truncated`, the container broke off, or promises
    clearly more than it holds (`promised_s` seconds); `missing_fragments`, fragments that were left
    out, `missing_s` seconds of them; `leapt_s`, seconds by which the clock leapt, which are not in
    the timeline; `torn`, packets of which a part is missing.
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
    promised_s: float = 0.0
    missing_fragments: int = 0
    missing_s: float = 0.0
    leapt_s: float = 0.0
    torn: int = 0
    shown_packets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    key_packets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

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

    @property
    def losses(self) -> dict[str, float]:
        """What is missing by what the file itself says, by name; every number that is not zero is
        damage.
        """
        return {
            "truncated": int(self.truncated),
            "missing_fragments": self.missing_fragments,
            "missing_s": round(self.missing_s, 3),
            "leapt_s": round(self.leapt_s, 3),
            "torn": self.torn,
        }

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
        own, promised = _promised(container, stream)
        # Only other streams can say whether the file holds all that it promises as a whole, and
        # whether time passes while a picture stands still.
        beside = [] if own else [s for s in container.streams if s.index != index]
        packets = PacketReader(container, stream, beside)
        # Arrays, not lists: a long video has millions of packets.
        packet_ticks, lasting, timeless = array("q"), array("q"), 0
        shown, keys = array("q"), array("q")
        for number, packet in enumerate(packets):
            if packet.is_keyframe:
                keys.append(number)
            if packet.is_discard:
                continue
            shown.append(number)
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

    longest = LONGEST_BROADCAST_STILL if format_name in BROADCAST else LONGEST_STILL
    shown_at = _without_leaps(ticks, time_base, longest, np.sort(np.array(packets.others)))
    rate = _constant_rate(shown_at, time_base, nominal)
    duration = _duration(shown_at, time_base, rate, last)
    # Some headers count from the first frame, some from zero.
    held = max(duration, float((ticks[-1] + last) * time_base), packets.others_end)
    lost = missing_fragments(name) if format_name.startswith("mov") else MissingFragments()
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
        torn=packets.torn,
        truncated=packets.broken
        or (format_name == "mpegts" and _ends_within_a_packet(name))
        or promised > held + max(1.0, held / 20),
        promised_s=promised,
        missing_fragments=lost.fragments,
        missing_s=lost.seconds,
        leapt_s=float((ticks[-1] - ticks[0] - shown_at[-1]) * time_base),
        shown_packets=np.array(shown, np.int64),
        key_packets=np.array(keys, np.int64),
    )


def _ends_within_a_packet(path: str) -> bool:
    """Whether a transport stream, whose packets are all of one size, ends with a part of one."""
    with open(path, "rb") as file:
        head, size = file.read(1024), file.seek(0, os.SEEK_END)
    for length, before in ((188, 0), (192, 4)):
        for first in range(before, length + before):
            if head[first : first + 4 * length + 1 : length] == b"GGGGG":
                return (size - first + before) % length != 0
    return False


def _promised(container: InputContainer, stream: VideoStream) -> tuple[bool, float]:
    """Whether the headers speak of this stream and not of the file as a whole, and of how many
    seconds; 0 if of none, as in formats whose duration is an estimate.
    """
    if container.format.name in BROADCAST:
        return False, 0.0
    # Elsewhere FFmpeg fills the stream's duration in from the file's.
    if container.format.name.startswith(OWN_DURATION) and stream.duration and stream.time_base:
        return True, float(stream.duration * stream.time_base)
    return False, (container.duration or 0) / av.time_base


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
        frames = FrameDecoder(PacketReader(container, stream), stream)
        ticks = [frame.pts for frame in frames]
    if not ticks:
        raise MediaError("no_frame_decodes", path, f"{frames.bad_packets} packets refused")
    if None in ticks:
        return _filled_in(ticks, time_base, nominal)
    return np.sort(np.array(ticks))


def _filled_in(
    ticks: Sequence[int | None], time_base: Fraction, nominal: Sequence[Fraction]
) -> np.ndarray:
    """Ticks of frames in the order in which they are shown, some of them unknown: put evenly
    between those that are known. Where none is, a constant rate stands in for them.
    """
    numbers = np.arange(len(ticks))
    known = np.array([tick is not None for tick in ticks])
    step = float(1 / (nominal[0] * time_base)) if nominal else 1.0
    if not known.any():
        return np.round(numbers * step).astype(np.int64)
    at, when = numbers[known], np.sort(np.array([t for t in ticks if t is not None]))
    if len(at) > 1:
        step = float(np.median(np.diff(when) / np.diff(at)))
    filled = np.interp(numbers, at, when)
    before, after = numbers < at[0], numbers > at[-1]
    filled[before] = when[0] - (at[0] - numbers[before]) * step
    filled[after] = when[-1] + (numbers[after] - at[-1]) * step
    return np.round(filled).astype(np.int64)


def _without_leaps(
    ticks: np.ndarray, time_base: Fraction, longest: float, others: np.ndarray
) -> np.ndarray:
    """The clock from the first frame on, without its leaps.

    A leap is a step of more than `longest` seconds in which nothing else of the file goes on.
    `others` are the seconds, ascending, at which other streams have something.
    """
    ticks_from_0 = ticks - ticks[0]
    steps = np.diff(ticks)
    leaps = steps * float(time_base) > longest
    for place in np.flatnonzero(leaps):
        begin, end = float(ticks[place] * time_base), float(ticks[place + 1] * time_base)
        inside = others[np.searchsorted(others, begin) : np.searchsorted(others, end)]
        leaps[place] = np.diff([begin, *inside, end]).max() > longest
    if not leaps.any():
        return ticks_from_0
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
