"""The tricky clips: real files, each wrong or unusual in one way, and what is expected of each.

A clip's pictures carry their number, so that what comes out is checked by looking at it. What is
expected was known when the file was written: it does not come from any reader.
"""

import io
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.model.media.clips import encode

X264 = {"bf": "3", "g": "60", "preset": "veryfast"}
QUIET_X265 = {"x265-params": "log-level=none:bframes=3"}
FAST_VP9 = {"deadline": "realtime", "cpu-used": "8"}


@dataclass(frozen=True)
class Clip:
    """`numbers` and `times` (seconds from the first) of all frames, or the `reason` why there are
    none.

    `damaged`: the pictures may not be what they were, and the reader must say so. `apart` is the
    number of pictures that may differ from their number. `truncated`: the reader must say that
    something is missing.
    """

    name: str
    build: Callable[[Path], Path]
    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    rate: Fraction | None = None
    reason: str = ""
    damaged: bool = False
    apart: int = 0
    truncated: bool = False


CLIPS: list[Clip] = []


def steady(name: str, frames: int, rate: Fraction | int = 30, first: int = 0, **expected):
    """A clip of a constant rate, whose pictures count up from `first`."""
    numbers = list(range(first, first + frames))
    times = [float(index / Fraction(rate)) for index in range(frames)]
    return _clip(name, numbers=numbers, times=times, rate=Fraction(rate), **expected)


def uneven(name: str, ticks: list[int], time_base: Fraction, **expected):
    times = [float((tick - ticks[0]) * time_base) for tick in ticks]
    return _clip(name, numbers=list(range(len(ticks))), times=times, **expected)


def refused(name: str, reason: str):
    return _clip(name, reason=reason)


def _clip(name: str, **expected):
    def register(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
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


@steady("av1.mp4", 60)
def av1(path: Path) -> Path:
    return encode(path, 60, codec="libsvtav1", options={"preset": "12"})


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


@steady("clock_leaps_by_hours.mkv", 60)
def leap(path: Path) -> Path:
    leaping = [index + (30 * 7200 if index >= 30 else 0) for index in range(60)]
    return encode(path, 60, times=leaping, time_base=Fraction(1, 30), options=X264)


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
        ends = [packet.pos + packet.size for packet in whole.demux(video=0) if packet.size]
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
        start = [packet.pos for packet in whole.demux(video=0) if packet.size][10]
    path.write_bytes(data[start // 188 * 188 + 100 :])
    return path


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


# --- Helpers ---


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
