"""Which frames of a video are looked at, and how they are decoded: by presentation time, in bounded
memory.

A file is read twice. The first pass only demuxes and gives the exact timeline: when every frame is
shown. The rules of sampling then choose frames by time. The second pass decodes, telling the
decoder to skip frames that no other frame refers to and nobody asked for, which makes it two to
three times cheaper than decoding everything, and just as exact.

    line = timeline("video.mp4")
    chosen = feature_frame_indices(line)
    for frame_HWC in decode(line, chosen, size=384):      # one uint8 RGB picture for each chosen frame, in order
        ...

Container headers are not believed: not the number of frames, the duration, or the rate.

Shape suffixes: T frames, H W height and width, C colour. Ticks are a stream's own integer time, in
`time_base` units.
"""

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from model.media.container import MAX_PIXELS, Frames, MediaError, Packets, open_video

PROBE = 32  # frames decoded to find out whether packets and frames correspond
LONGEST_STILL = (
    600  # seconds that a picture may stay; a clock that leaps further is taken for damaged
)
MAX_FILLED = 1 / 20  # of the chosen frames
MAX_GAP = 10.0  # seconds without a frame that decodes


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
    def constant(cls, frames: int, fps: Fraction | float, path: str = "") -> "Timeline":
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


# --- Which frames
# -----------------------------------------------------------------------------------------------------


def linspace_indices(frames: int, count: int) -> np.ndarray:
    """`count` indices spread over `frames`: numpy's float64 linspace, truncated. No integer formula
    reproduces it.
    """
    return np.linspace(0, frames - 1, count, dtype=np.int64)


def feature_frame_indices(line: Timeline, *, min_frames: int = 128) -> np.ndarray:
    """The frames that a feature file holds: about one a second, at least `min_frames` where the
    video has them.

    At a constant rate, `linspace_indices`; otherwise the frames nearest to times spread evenly over
    the video, so that a frame shown for long is taken more than once. Always at least one frame.
    int64 [n], not descending.
    """
    return _spread(line, min(line.frames, max(int(line.duration), min_frames)))


def training_frame_indices(line: Timeline, *, min_frames: int = 128) -> np.ndarray:
    """The frames of a short video that training decodes: every round(fps)-th, or, if these are
    fewer than `min_frames`, that many spread over the video (all of them if it has no more). int64
    [n], at least one, not descending.
    """
    step = max(1, round(line.fps))
    if line.rate is not None or line.fps == 0:
        chosen = np.arange(0, line.frames, step, dtype=np.int64)
    else:
        chosen = line.nearest(np.arange(0.0, line.pts[-1] + 1e-9, step / line.fps))
    if len(chosen) < min_frames:
        return _spread(line, min(line.frames, min_frames))
    return chosen


def stored_frame_indices(frames: int, duration: float) -> np.ndarray:
    """The frames of a feature file of `frames` that a sample shows: one a whole second, at least
    one. int64 [n].
    """
    return linspace_indices(frames, max(1, min(frames, int(duration))))


def _spread(line: Timeline, count: int) -> np.ndarray:
    if line.rate is not None:
        return linspace_indices(line.frames, count)
    return line.nearest(np.linspace(0.0, line.pts[-1], count))


# --- First pass: the timeline
# -----------------------------------------------------------------------------------------


def timeline(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Timeline:
    """Read when every frame is shown, decoding only enough to find the first that decodes. Raises
    MediaError.
    """
    name = os.fspath(path)
    with open_video(name, max_pixels=max_pixels) as (container, stream):
        assert stream.time_base is not None  # every stream of a file has one
        index, time_base, codec = stream.index, stream.time_base, stream.codec_context.name
        width, height, format_name = (
            stream.codec_context.width,
            stream.codec_context.height,
            container.format.name,
        )
        nominal = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
        promised = _promised(container, stream)
        packets = Packets(container, stream)
        packet_ticks, lasting, timeless = (
            array("q"),
            array("q"),
            0,
        )  # as arrays: a long video has millions of packets
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
    held = max(
        duration, float(ticks[-1] * time_base)
    )  # some headers count from the first frame, some from zero
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
        sized = (
            stream.codec_context.width > 0
        )  # not where FFmpeg has refused the size that it found
        frames = Frames(Packets(container, stream), stream)
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
        frames, ticks, timeless = Frames(Packets(container, stream), stream), array("q"), 0
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


# --- Second pass: the pictures
# ----------------------------------------------------------------------------------------


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
    max_pixels: int = MAX_PIXELS,
    report: DecodeReport | None = None,
    frames: Callable[..., Frames] = Frames,
) -> Iterator[np.ndarray]:
    """Yield one uint8 RGB picture [size, size, 3] for each of `indices` (not descending, repeats
    allowed), in order.

    Pictures are turned upright, then squashed to a square. A frame that does not decode is replaced
    by the last good one and counted in `report`, which is complete once the iterator is exhausted.
    A few frames are held at a time. `frames` turns packets into frames, by FFmpeg's decoder unless
    something with the interface of `Frames` is given.

    Raises ValueError for indices outside the timeline, MediaError if the file gives no frame at all
    or turns out to hold larger pictures than it said.
    """
    wanted = checked_indices(indices, line.frames)
    report = DecodeReport() if report is None else report
    report.decoder = f"pyav {av.__version__} {'planned' if line.skippable else 'sequential'}"
    return _decode(line, wanted, size, max_pixels, report, frames)


def read(
    line: Timeline, indices: Sequence[int] | np.ndarray, *, size: int, max_pixels: int = MAX_PIXELS
) -> Decoded:
    """All of `decode` at once, for videos short enough to hold: 0.44 MB a frame at size 384."""
    report = DecodeReport()
    frames = list(decode(line, indices, size=size, max_pixels=max_pixels, report=report))
    return Decoded(
        np.stack(frames), line.pts[np.asarray(indices)].astype(np.float32), line.duration, report
    )


def checked_indices(indices: Sequence[int] | np.ndarray, frames: int) -> np.ndarray:
    chosen = np.asarray(indices, dtype=np.int64)
    if (
        chosen.ndim != 1
        or not len(chosen)
        or chosen.min() < 0
        or chosen.max() >= frames
        or (np.diff(chosen) < 0).any()
    ):
        raise ValueError(
            f"frame indices must be a non-empty ascending list within 0 .. {frames - 1}, got "
            f"{chosen}"
        )
    return chosen


def _decode(
    line: Timeline,
    wanted: np.ndarray,
    size: int,
    max_pixels: int,
    report: DecodeReport,
    source: Callable[..., Frames],
) -> Iterator[np.ndarray]:
    """Walk through the decoded frames and the wanted ones side by side, both ascending."""
    done = 0
    last: av.VideoFrame | None = None
    last_number = 0
    skip_unless = set(line.ticks[wanted].tolist()) if line.skippable else None

    def fill(good: av.VideoFrame, count: int, until: int) -> Iterator[np.ndarray]:
        report.filled += count
        report.longest_gap = max(report.longest_gap, float(line.pts[until] - line.pts[last_number]))
        return _repeated(good, size, count)

    with open_video(line.path, max_pixels=max_pixels, index=line.stream) as (container, stream):
        frames = source(Packets(container, stream), stream, skip_unless)
        for count, frame in enumerate(frames):
            report.bad_packets, report.concealed = frames.bad_packets, frames.concealed
            if frame.width * frame.height > max_pixels:
                raise MediaError(
                    "too_large", line.path, f"a frame of {frame.width}x{frame.height} pixels"
                )
            number = _number(line, frame, count)
            if number is None:
                continue
            missing = (
                int(np.searchsorted(wanted, number, side="left")) - done
            )  # wanted before this one, never came
            if missing > 0:
                yield from fill(frame if last is None else last, missing, number)
                done += missing
            repeats = int(np.searchsorted(wanted, number, side="right")) - done
            if repeats > 0:
                yield from _repeated(frame, size, repeats)
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


def _repeated(frame: av.VideoFrame, size: int, count: int) -> Iterator[np.ndarray]:
    picture = _picture(frame, size)
    for _ in range(count):
        yield picture


def _picture(frame: av.VideoFrame, size: int) -> np.ndarray:
    """An upright RGB square [size, size, 3]. The pixels' aspect ratio does not matter: squashing
    undoes it.
    """
    from model.media.resize import (
        resize_frame,  # here: it needs torch, whose import takes longer than reading a timeline
    )

    image_HWC = frame.to_ndarray(format="rgb24")
    quarter_turns = round((frame.rotation or 0) / 90) % 4
    return resize_frame(np.rot90(image_HWC, quarter_turns), size)
