"""The tricky clips: real files, each wrong or unusual in one way, and what is expected of each.

A clip's pictures carry their number, so that what comes out is checked by looking at it. What is
expected was known when the file was written: it does not come from any reader.
"""

import io
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from PIL import Image

from tests.model.media.clips import encode

X264 = {"bf": "3", "g": "60", "preset": "veryfast"}
QUIET_X265 = {"x265-params": "log-level=none:bframes=3"}
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}

Build = Callable[[Path], Path]  # writes a clip to the path
Register = Callable[[Build], Build]


@dataclass(frozen=True)
class Clip:
    """`numbers` and `times` (seconds from the first) of all frames, or the `reason` why there are
    none.

    `damaged`: the pictures may not be what they were, and the reader must say so. `apart` is the
    number of pictures that may differ from their number. `truncated`: the reader must say that
    something is missing. `stream`: which of the video streams it is. `missing`: fragments that it
    must say are missing. `leapt`: seconds of leaps of the clock that it must tell of.
    """

    name: str
    build: Build
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    rate: Fraction | None = None
    reason: str = ""
    damaged: bool = False
    apart: int = 0
    truncated: bool = False
    stream: int = 0
    missing: int = 0
    leapt: float = 0.0


CLIPS: list[Clip] = []
AV1 = Path(__file__).with_name("av1.mp4")


def steady(
    name: str, frames: int, rate: Fraction | int = 30, first: int = 0, **expected: Any
) -> Register:
    """A clip of a constant rate, whose pictures count up from `first`."""
    numbers = list(range(first, first + frames))
    times = [float(index / Fraction(rate)) for index in range(frames)]
    return _clip(name, numbers=numbers, times=times, rate=Fraction(rate), **expected)


def uneven(name: str, ticks: list[int], time_base: Fraction, **expected: Any) -> Register:
    times = [float((tick - ticks[0]) * time_base) for tick in ticks]
    return _clip(name, numbers=list(range(len(ticks))), times=times, **expected)


def refused(name: str, reason: str) -> Register:
    return _clip(name, reason=reason)


def _clip(name: str, **expected: Any) -> Register:
    def register(build: Build) -> Build:
        CLIPS.append(Clip(name, build, **expected))
        return build

    return register


# --- Ordinary files, so that the rest has something to differ from ---


@steady("h264.mp4", 90)
def h264(path: Path) -> Path:
    return encode(path, 90, options=X264)


@steady("vp9.webm", 60)
def vp9(path: Path) -> Path:
    return encode(path, 60, codec="libvpx-vp9", options=FAST_VP9)


@steady("hevc.mp4", 60)
def hevc(path: Path) -> Path:
    return encode(path, 60, codec="libx265", options=QUIET_X265)


@steady("av1.mp4", 150)
def av1(path: Path) -> Path:
    """Made once by `encode` (SVT-AV1, preset 8, CRF 20, a key frame every 30): started by root,
    that encoder gives its process real-time priority. All children inherit it and starve the rest
    of the machine.
    """
    return Path(shutil.copy(AV1, path))


@steady("vp8.webm", 90)
def vp8(path: Path) -> Path:
    return encode(path, 90, codec="libvpx", options=FAST_VP9)


@steady("mpeg2.mpg", 60, 25)
def mpeg2(path: Path) -> Path:
    return encode(path, 60, codec="mpeg2video", rate=25, options={"bf": "2"})


@steady("h264.ts", 60)
def transport_stream(path: Path) -> Path:
    return encode(path, 60, options=X264)


@steady("h264.flv", 60)
def flash(path: Path) -> Path:
    return encode(path, 60, options=X264)


# --- Time ---

JITTER = [
    40 * index + (index * index * 7) % 31 + (3000 if index > 30 else 0) for index in range(60)
]
SLIDES = [0, 40, 80, 9_000, 9_040, 14_500, 15_000, 41_000, 41_020, 41_040, 50_000, 50_033, 50_066]


@uneven("vfr_h264.mp4", JITTER, Fraction(1, 1000))
def vfr_h264(path: Path) -> Path:
    return encode(
        path, len(JITTER), times=JITTER, time_base=Fraction(1, 1000), rate=25, options=X264
    )


@uneven("vfr_vp9.webm", SLIDES, Fraction(1, 1000))
def vfr_vp9(path: Path) -> Path:
    options = {**FAST_VP9, "lag-in-frames": "0"}
    return encode(
        path,
        len(SLIDES),
        codec="libvpx-vp9",
        times=SLIDES,
        time_base=Fraction(1, 1000),
        options=options,
    )


@steady("one_frame.mp4", 1)
def one_frame(path: Path) -> Path:
    return encode(path, 1, options=X264)


@steady("slow_0.4_fps.mp4", 12, Fraction(2, 5))
def slow(path: Path) -> Path:
    return encode(path, 12, rate=Fraction(2, 5), options=X264)


@steady("ntsc_in_milliseconds.mkv", 90, Fraction(30000, 1001))
def ntsc(path: Path) -> Path:
    return encode(path, 90, rate=Fraction(30000, 1001), options=X264)


@steady("starts_at_7_s.mkv", 60)
def offset_start(path: Path) -> Path:
    return encode(
        path,
        60,
        times=[210 + index for index in range(60)],
        time_base=Fraction(1, 30),
        options=X264,
    )


def edited(path: Path, start: int, frames: int) -> Path:
    """Plays `frames` frames from the `start`-th on, in the middle of a group of pictures, as
    cutting without re-encoding leaves it.
    """
    encode(path, 90, options=X264)
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # type, version and flags, entry count
    ticks = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big") // 30
    shown_from = struct.unpack_from(">i", data, entry + 4)[0] + start * ticks
    struct.pack_into(">Ii", data, entry, frames * 1000 // 30, shown_from)  # milliseconds, ticks
    path.write_bytes(data)
    return path


@steady("edit_list.mp4", 50, first=40)
def edit_list(path: Path) -> Path:
    return edited(path, 40, 50)


@steady("edit_list_ends_early.mp4", 30, first=40)
def edit_list_ends_early(path: Path) -> Path:
    return edited(path, 40, 30)


@steady("no_presentation_times.avi", 60)
def avi(path: Path) -> Path:
    """AVI knows decoding times only, and H.264 shows its B-frames in another order."""
    return encode(path, 60, options=X264)


@steady("mpeg4.avi", 60)
def divx(path: Path) -> Path:
    return encode(path, 60, codec="mpeg4", options={"bf": "2"})


@steady("clock_leaps_by_hours.mkv", 60, leapt=7200.0)
def leap(path: Path) -> Path:
    leaping = [index + (30 * 7200 if index >= 30 else 0) for index in range(60)]
    return encode(path, 60, times=leaping, time_base=Fraction(1, 30), options=X264)


STILL = [index if index < 30 else index + 30 * 900 for index in range(60)]


@uneven("still_of_15_minutes.mp4", STILL, Fraction(1, 30))
def long_still(path: Path) -> Path:
    """A title, then a picture that stands for a quarter of an hour."""
    return encode(path, 60, times=STILL, time_base=Fraction(1, 30), options=X264)


@uneven("still_of_15_minutes.mkv", STILL, Fraction(1, 30))
def long_still_in_matroska(path: Path) -> Path:
    return long_still(path)


@uneven("still_of_15_minutes_with_sound.ts", STILL, Fraction(1, 30))
def long_still_with_sound(path: Path) -> Path:
    """In a broadcast format only the sound that goes on tells a still from a joint."""
    return with_sound(long_still(path.with_suffix(".mp4")), path, seconds=903)


def joined(path: Path, *clocks: int) -> Path:
    """Recordings of 45 frames whose clocks begin at these seconds, joined byte by byte."""
    data = b""
    for number, clock in enumerate(clocks):
        part = encode(
            path.with_suffix(f".{number}.ts"),
            45,
            times=[clock * 30 + index for index in range(45)],
            time_base=Fraction(1, 30),
            first=45 * number,
            options=X264,
        )
        data += part.read_bytes()
    path.write_bytes(data)
    return path


@steady("joined_clock_starts_over.ts", 135)
def joined_backwards(path: Path) -> Path:
    return joined(path, 0, 0, 0)


@steady("joined_clock_leaps_ahead.ts", 90, leapt=1198.5)
def joined_ahead(path: Path) -> Path:
    return joined(path, 0, 1200)


def without_stamps(path: Path, *numbers: int) -> Path:
    """A transport stream in which some pictures have no time stamp."""
    data, at = bytearray(encode(path, 60, options=X264).read_bytes()), -1
    for number in range(60):
        at = data.index(b"\x00\x00\x01\xe0", at + 1)
        if number in numbers:
            data[at + 7] &= 0x3F
    path.write_bytes(data)
    return path


@steady("one_picture_without_a_time_stamp.ts", 60)
def one_without_a_stamp(path: Path) -> Path:
    return without_stamps(path, 17)


@steady("some_pictures_without_time_stamps.ts", 60)
def some_without_stamps(path: Path) -> Path:
    return without_stamps(path, 9, 10, 31, 44)


@steady("video_starts_late.mkv", 60)
def video_starts_late(path: Path) -> Path:
    """Sound from the beginning, pictures from the fifth second on."""
    late = offset_start(path.with_suffix(".late.mp4"))
    return with_sound(late, path, seconds=9)


@steady("sound_is_longer.mkv", 60)
def longer_sound(path: Path) -> Path:
    return with_sound(h264_of(path, 60), path, seconds=40)


@steady("sound_is_longer.webm", 60)
def longer_sound_in_webm(path: Path) -> Path:
    video = encode(path.with_suffix(".v.webm"), 60, codec="libvpx", options=FAST_VP9)
    return with_sound(video, path, seconds=40, codec="libopus")


# --- Containers and streams ---


@steady("wmv2.wmv", 60, 25)
def windows_media(path: Path) -> Path:
    return encode(path, 60, codec="wmv2", rate=25, container="asf")


@steady("vp8.ogv", 60)
def ogg(path: Path) -> Path:
    return encode(path, 60, codec="libvpx", container="ogg", options=FAST_VP9)


@steady("h264.m2ts", 60)
def blu_ray(path: Path) -> Path:
    """A transport stream whose packets have four bytes more."""
    return remux(h264_of(path, 60), path, mpegts_m2ts_mode="1")


@steady("phone.3gp", 45)
def phone(path: Path) -> Path:
    return encode(path, 45, codec="mpeg4", container="3gp")


@steady("title_that_is_not_utf8.mkv", 45)
def latin_title(path: Path) -> Path:
    return _titled(encode(path, 45, options=X264, title="Caf\u00e9"), "é".encode(), b"\xe9\xe9")


@steady("title_that_is_not_utf8.avi", 45)
def latin_title_in_avi(path: Path) -> Path:
    clip = encode(path, 45, codec="mpeg4", options={"bf": "0"}, title="Caf\u00e9")
    return _titled(clip, "é".encode(), b"\xe9\xe9")


def _titled(path: Path, now: bytes, then: bytes) -> Path:
    data = path.read_bytes()
    assert now in data
    path.write_bytes(data.replace(now, then))
    return path


def together(path: Path, *parts: Path, default: int | None = None) -> Path:
    """The video streams of several files in one; `default` is the one that is played."""
    with av.open(str(path), "w") as out:
        given = [av.open(str(part)) for part in parts]
        streams = [out.add_stream_from_template(part.streams.video[0]) for part in given]
        for number, stream in enumerate(streams):
            if default is not None:
                kind = av.stream.Disposition
                stream.disposition = kind.default if number == default else kind(0)
        packets = [
            (float(packet.dts * packet.time_base), number, packet)
            for number, part in enumerate(given)
            for packet in part.demux(video=0)
            if packet.dts is not None
        ]
        for _, number, packet in sorted(packets, key=lambda item: item[:2]):
            packet.stream = streams[number]
            out.mux(packet)
        for part in given:
            part.close()
    return path


def one_mjpeg(path: Path) -> Path:
    return encode(
        path.with_suffix(".cover.mkv"), 1, codec="mjpeg", pixel_format="yuvj420p", size=(640, 384)
    )


@steady("cover_that_no_flag_tells_of.mkv", 60, stream=1)
def unflagged_cover(path: Path) -> Path:
    return together(path, one_mjpeg(path), h264_of(path, 60))


@steady("cover_that_no_flag_tells_of.mp4", 60, stream=1)
def unflagged_cover_in_mp4(path: Path) -> Path:
    return together(path, one_mjpeg(path), h264_of(path, 60))


@steady("preview_before_the_default.mkv", 60, stream=1)
def preview_first(path: Path) -> Path:
    small = encode(path.with_suffix(".small.mp4"), 50, first=500, size=(64, 48), options=X264)
    return together(path, small, h264_of(path, 60), default=1)


@steady("default_behind_a_larger_one.mkv", 60, stream=1)
def default_wins(path: Path) -> Path:
    large = encode(path.with_suffix(".l.mp4"), 50, first=500, size=(320, 192), options=X264)
    return together(path, large, h264_of(path, 60), default=1)


@steady("small_stream_first.mkv", 60, stream=1)
def small_first(path: Path) -> Path:
    small = encode(path.with_suffix(".s.mp4"), 50, first=500, size=(64, 48), options=X264)
    return together(path, small, h264_of(path, 60))


# --- Pictures ---


def turned(quarters: int) -> Callable[[Path], Path]:
    """A phone's file: pictures stored lying, with a matrix in the header (written here by the
    QuickTime specification) that says how to show them. `quarters` counter-clockwise turns were
    made; the matrix turns clockwise.
    """
    one, zero = struct.pack(">i", 1 << 16), struct.pack(">i", 0)
    minus = struct.pack(">i", -(1 << 16))
    clockwise = {
        1: (zero, one, minus, zero),
        2: (minus, zero, zero, minus),
        3: (zero, minus, one, zero),
    }[quarters]

    def build(path: Path) -> Path:
        encode(path, 45, options=X264, turned=quarters)
        data = bytearray(path.read_bytes())
        matrix = (
            data.index(b"tkhd") + 4 + 40
        )  # after version, times, track, duration, layer, group and volume
        a, b, c, d = clockwise
        data[matrix : matrix + 20] = a + b + zero + c + d
        path.write_bytes(data)
        return path

    return build


for quarters in (1, 2, 3):
    steady(f"turned_by_{90 * quarters}.mp4", 45)(turned(quarters))


@steady("anamorphic.mp4", 45)
def anamorphic(path: Path) -> Path:
    return encode(path, 45, options=X264, sample_aspect_ratio=Fraction(64, 45))


@steady("odd_size.webm", 45)
def odd_size(path: Path) -> Path:
    return encode(path, 45, codec="libvpx-vp9", size=(161, 97), options=FAST_VP9)


@steady("odd_size_444.mp4", 45)
def odd_size_444(path: Path) -> Path:
    return encode(path, 45, size=(163, 99), pixel_format="yuv444p", options=X264)


@steady("ten_bit_h264.mp4", 45)
def ten_bit_h264(path: Path) -> Path:
    return encode(path, 45, pixel_format="yuv420p10le", options=X264)


@steady("ten_bit_hevc.mp4", 45)
def ten_bit_hevc(path: Path) -> Path:
    return encode(path, 45, codec="libx265", pixel_format="yuv420p10le", options=QUIET_X265)


@steady("interlaced_h264.ts", 60)
def interlaced_h264(path: Path) -> Path:
    return encode(path, 60, options={**X264, "x264-params": "interlaced=1"})


@steady("interlaced_mpeg2.ts", 60, 25)
def interlaced_mpeg2(path: Path) -> Path:
    return encode(
        path, 60, codec="mpeg2video", rate=25, options={"flags": "+ilme+ildct", "bf": "2"}
    )


@steady("changes_size_and_clock.ts", 90)
def changes_size(path: Path) -> Path:
    """Two recordings joined byte by byte: another picture size, and a clock that starts over."""
    parts = [
        encode(path.with_suffix(".1.ts"), 45, options=X264),
        encode(path.with_suffix(".2.ts"), 45, options=X264, size=(240, 176), first=45),
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


# --- Lies and damage ---


@steady("header_promises_an_hour.mp4", 60)
def promises(path: Path) -> Path:
    encode(path, 60, options={**X264, "bf": "0"})
    data = bytearray(path.read_bytes())
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        at = data.index(box) + offset
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] * 1800)
    at = data.index(b"elst") + 12
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] * 1800)
    path.write_bytes(data)
    return path


@steady("lists_half_its_frames.mp4", 45, truncated=True)
def lists_half(path: Path) -> Path:
    """The table of sample sizes ends half way, the table of times does not."""
    encode(path, 90, options={**X264, "bf": "0"})
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(b"stsz") + 12, 45)
    path.write_bytes(data)
    return path


@steady("counts_no_frames_fragmented.mp4", 60)
def fragmented(path: Path) -> Path:
    """A fragmented file's header counts no frame at all."""
    return remux(
        encode(path.with_suffix(".whole.mp4"), 60, options=X264),
        path,
        movflags="frag_keyframe+empty_moov",
    )


@steady("cut_off.mp4", 45, damaged=True, apart=1, truncated=True)
def cut_off(path: Path) -> Path:
    """The index comes first and promises 90 frames; there are 44 and a part of one."""
    remux(
        encode(path.with_suffix(".whole.mp4"), 90, options={**X264, "bf": "0"}),
        path,
        movflags="faststart",
    )
    with av.open(str(path)) as whole:
        ends = [(packet.pos or 0) + packet.size for packet in whole.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[44] - 8])
    return path


@steady("cut_off.webm", 30, truncated=True)
def cut_off_webm(path: Path) -> Path:
    """Cut between two frames: nothing is broken, but the header promised three times as much."""
    encode(path, 90, codec="libvpx-vp9", options=FAST_VP9)
    with av.open(str(path)) as whole:
        starts = [packet.pos for packet in whole.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: starts[30]])
    return path


@refused("cut_off_before_its_index.mp4", "unreadable")
def cut_before_index(path: Path) -> Path:
    encode(path, 60, options=X264)
    path.write_bytes(path.read_bytes()[:-2000])
    return path


@steady("joined_in_the_middle.ts", 30, first=30)
def middle(path: Path) -> Path:
    """A recording that starts between key frames: what comes before the first of them cannot be
    shown.
    """
    encode(
        path, 60, options={**X264, "g": "30", "keyint_min": "30", "bf": "0", "sc_threshold": "0"}
    )
    data = path.read_bytes()
    with av.open(str(path)) as whole:
        start = [packet.pos or 0 for packet in whole.demux(video=0) if packet.size][10]
    path.write_bytes(data[start // 188 * 188 + 100 :])
    return path


def without_fragments(path: Path, *numbers: int, numbered: bool = True) -> Path:
    """A fragmented file of 120 frames in fragments of ten, without some of the fragments, as a
    downloader joins what it could get.
    """
    whole = remux(
        encode(
            path.with_suffix(".whole.mp4"),
            120,
            options={"bf": "0", "g": "10", "keyint_min": "10", "sc_threshold": "0"},
        ),
        path.with_suffix(".fragments.mp4"),
        movflags="frag_keyframe+empty_moov+default_base_moof",
    ).read_bytes()
    starts = [match.start() - 4 for match in re.finditer(b"moof", whole)]
    ends = [*starts[1:], whole.index(b"mfra") - 4 if b"mfra" in whole else len(whole)]
    kept = [
        whole[a:b] for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if i not in numbers
    ]
    data = bytearray(whole[: starts[0]] + b"".join(kept))
    if not numbered:
        for match in re.finditer(b"mfhd", bytes(data)):
            data[match.end() + 4 : match.end() + 8] = bytes(4)
    path.write_bytes(data)
    return path


def left(*numbers: int) -> list[int]:
    return [frame for frame in range(120) if frame // 10 not in numbers]


@_clip(
    "fragment_left_out.mp4",
    numbers=left(5),
    times=[frame / 30 for frame in left(5)],
    missing=1,
)
def fragment_left_out(path: Path) -> Path:
    return without_fragments(path, 5)


@_clip(
    "fragments_left_out.mp4",
    numbers=left(2, 3, 7),
    times=[frame / 30 for frame in left(2, 3, 7)],
    missing=3,
)
def fragments_left_out(path: Path) -> Path:
    return without_fragments(path, 2, 3, 7)


@steady("flipped_bits.mp4", 90, damaged=True, apart=45)
def flipped(path: Path) -> Path:
    remux(encode(path.with_suffix(".whole.mp4"), 90, options=X264), path, movflags="faststart")
    data, dice = bytearray(path.read_bytes()), random.Random(0)
    for at in dice.sample(range(data.index(b"mdat") + 1000, len(data)), 12):
        data[at] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    return path


@steady("zeroed_stretch.mp4", 90, damaged=True, apart=60)
def zeroed(path: Path) -> Path:
    remux(encode(path.with_suffix(".whole.mp4"), 90, options=X264), path, movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    length = (len(data) - start) // 3
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return path


@refused("bomb_8192.mp4", "too_large")
def bomb(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 8192, 8192, "yuvj420p"
        out.mux(stream.encode(grey(8192, 8192)))
        out.mux(stream.encode(None))
    return path


def bomb_vp9(path: Path) -> Path:
    """The same in a codec whose pictures a reader unpacks as soon as it opens the file. Takes long
    to make.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libvpx-vp9", rate=1, options=FAST_VP9)
        stream.width, stream.height, stream.pix_fmt = 8192, 8192, "yuv420p"
        out.mux(stream.encode(grey(8192, 8192)))
        out.mux(stream.encode(None))
    return path


@steady("bomb_behind_a_small_start.ts", 45, damaged=True)
def late_bomb(path: Path) -> Path:
    """The large picture comes late, where no header tells of it: it is refused, and what came
    before it is shown.
    """
    small, large = encode(path.with_suffix(".1.ts"), 45, options=X264), path.with_suffix(".2.ts")
    with av.open(str(large), "w") as out:
        stream = out.add_stream(
            "libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency"}
        )
        stream.width, stream.height, stream.pix_fmt = 5120, 2880, "yuv420p"
        out.mux(stream.encode(grey(5120, 2880)))
        out.mux(stream.encode(None))
    path.write_bytes(small.read_bytes() + large.read_bytes())
    return path


# --- Not videos ---


@refused("zero_bytes.mp4", "unreadable")
def zero_bytes(path: Path) -> Path:
    path.write_bytes(b"")
    return path


@refused("no_frames.mp4", "no_frames")
def no_frames(path: Path) -> Path:
    """All of a file but its pictures: what a recorder leaves that was stopped at once."""
    whole = fragmented(path.with_suffix(".fragments.mp4")).read_bytes()
    path.write_bytes(whole[: whole.index(b"moof") - 4])
    return path


@refused("sound_only.m4a", "no_video_stream")
def sound_only(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as out:
        write_tone(out)
    return path


@refused("sound_with_a_cover.mp4", "no_video_stream")
def cover(path: Path) -> Path:
    """A song whose cover is stored as a video stream of one picture."""
    picture = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(picture, "JPEG")
    with av.open(str(path), "w", format="mp4") as out:
        image = out.add_stream("mjpeg", rate=1)
        image.width = image.height = 64
        image.pix_fmt = "yuvj420p"
        image.disposition = av.stream.Disposition.attached_pic
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts = image, 0, 0
        write_tone(out, before=lambda: out.mux(packet))
    return path


@refused("playlist.mp4", "hostile_format")
def playlist(path: Path) -> Path:
    target = encode(path.with_suffix(".secret.mp4"), 30, options=X264)
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n")
    return path


@refused("concatenation_script.mp4", "hostile_format")
def script(path: Path) -> Path:
    target = encode(path.with_suffix(".secret.mp4"), 30, options=X264)
    path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    return path


@refused("manifest.mp4", "hostile_format")
def manifest(path: Path) -> Path:
    path.write_text(
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>\n'
    )
    return path


@refused("web_page.mp4", "not_media")
def web_page(path: Path) -> Path:
    path.write_text("<!DOCTYPE html><html><title>404 Not Found</title></html>\n" * 40)
    return path


@refused("picture.mp4", "not_media")
def still(path: Path) -> Path:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path, "PNG")
    return path


@refused("archive.mp4", "not_media")
def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("video.mp4", bytes(4096))
    return path


@refused("noise.mp4", "not_media")
def noise(path: Path) -> Path:
    path.write_bytes(random.Random(0).randbytes(20_000))
    return path


@refused("bare_stream.mpg", "unsupported_container")
def bare_stream(path: Path) -> Path:
    return encode(path, 30, codec="mpeg2video", container="mpeg2video", rate=25)


@refused("unknown_codec.mkv", "unsupported_codec")
def unknown_codec(path: Path) -> Path:
    data = encode(path, 30, codec="libvpx", options=FAST_VP9).read_bytes()
    path.write_bytes(data.replace(b"V_VP8", b"V_VPX"))
    return path


# --- Helpers ---


def h264_of(path: Path, frames: int) -> Path:
    return encode(path.with_suffix(".v.mp4"), frames, options=X264)


def with_sound(video: Path, path: Path, seconds: float, codec: str = "aac") -> Path:
    """The pictures of a file, and sound of another length."""
    rate = 48_000
    with av.open(str(video)) as given, av.open(str(path), "w") as out:
        picture = out.add_stream_from_template(given.streams.video[0])
        sound = out.add_stream(codec, rate=rate)
        assert isinstance(sound, AudioStream)
        sound.layout = "mono"
        tones: list[av.Packet] = []
        for start in range(0, round(seconds * rate), 960):
            if codec == "aac":
                silence = np.zeros((1, 960), np.float32)
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            else:
                silence = np.zeros((1, 960), np.int16)
                frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            tones += sound.encode(frame)
        tones += sound.encode(None)
        pictures = [packet for packet in given.demux(video=0) if packet.dts is not None]
        for packet in pictures:
            packet.stream = picture
        for packet in sorted([*pictures, *tones], key=lambda p: (p.dts or 0) * p.time_base):
            out.mux(packet)
    return path


def by_name(name: str, folder: Path) -> Path:
    """One of the clips above, made in a folder."""
    return next(clip for clip in CLIPS if clip.name == name).build(folder / name)


def remux(source: Path, path: Path, **options: str) -> Path:
    """The same packets in another container, or in another layout of the same one."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return path


def grey(width: int, height: int) -> av.VideoFrame:
    """A plain picture, made without unpacking it to RGB."""
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane in frame.planes:
        plane.update(b"\x80" * plane.buffer_size)
    frame.pts = 0
    return frame


def write_tone(
    out: av.container.OutputContainer, before: Callable[[], None] = lambda: None
) -> None:
    stream = out.add_stream("aac", rate=16_000)
    stream.layout = "mono"
    before()
    for start in range(0, 16_000, 1024):
        wave = np.sin(np.arange(start, start + 1024) / 8).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16_000, start, Fraction(1, 16_000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
