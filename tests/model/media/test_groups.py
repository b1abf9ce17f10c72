"""Packets that no wanted picture needs are left out, and not a bit of any picture changes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from model.media.container import FrameDecoder, PacketReader, open_video
from model.media.groups import MAX_GROUP_PACKETS, PacketClassifier, PacketKind, packet_groups

RATE = 30


def grainy(number: int) -> np.ndarray:
    """A picture of its own that no prediction from another one makes right by chance."""
    rng = np.random.default_rng(7)
    texture = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    moved = np.roll(texture, (3 * number, 5 * number), (0, 1))[:96, :160].astype(np.int16)
    moved += np.random.default_rng(number).integers(-20, 21, moved.shape, dtype=np.int16)
    return np.clip(moved, 0, 255).astype(np.uint8)


def encode(path, codec, options, frames=150):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(grainy(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def planes(frame: av.VideoFrame) -> bytes:
    return frame.to_ndarray().tobytes()


def decoded(path, wanted=None):
    """Bytes of each wanted frame (all without `wanted`) by tick, the packets that the decoder was
    given, and what it complained of.
    """
    with open_video(str(path)) as (container, stream):
        decoder = FrameDecoder(PacketReader(container, stream), stream, wanted)
        found = {f.pts: planes(f) for f in decoder if wanted is None or f.pts in wanted}
        return found, decoder.given, decoder.bad_packets + decoder.concealed


X264 = {"preset": "veryfast", "bf": "3", "g": "30"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=error:keyint=30:bframes=3:open-gop=0"}
CLIPS = {
    "x264.mp4": ("libx264", X264),
    "x264.ts": ("libx264", X264),
    "x264.mkv": ("libx264", X264),
    "x264.avi": ("libx264", X264),
    "pyramid.mp4": ("libx264", X264 | {"preset": "medium", "x264-params": "b-pyramid=strict"}),
    "refresh.mp4": ("libx264", X264 | {"x264-params": "intra-refresh=1"}),
    "open.mp4": ("libx264", X264 | {"x264-params": "open-gop=1:bframes=3:keyint=30"}),
    "slices.mp4": ("libx264", X264 | {"x264-params": "slices=3"}),
    "x265.mp4": ("libx265", X265),
    "x265.mkv": ("libx265", X265),
    "x265.ts": ("libx265", X265),
    "open_hevc.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=error:keyint=30:bframes=3:open-gop=1"},
    ),
    "radl.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=error:keyint=30:bframes=4:radl=2"},
    ),
    "layers.mp4": (
        "libx265",
        {
            "preset": "ultrafast",
            "x265-params": "log-level=error:keyint=30:bframes=3:b-pyramid=1:temporal-layers=3",
        },
    ),
    "vp8.webm": ("libvpx", {"cpu-used": "8", "g": "30", "deadline": "realtime"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "g": "30", "lag-in-frames": "10"}),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "30"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "g": "15"}),
}
# Made once by `encode` ("libsvtav1", preset 12, CRF 50, a key frame every 30): see `tricky.av1`.
AV1 = Path(__file__).with_name("av1_grainy.mp4")
FEWER = {  # at a frame a second, of 150 packets at most so many are given
    "x264.mp4": 110,
    "x264.ts": 110,
    "x264.mkv": 110,
    "x265.mp4": 110,
    "x265.ts": 110,
    "vp9.webm": 150,
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    made = {}

    def make(name):
        if name == AV1.name:
            return AV1
        if name not in made:
            made[name] = encode(tmp_path_factory.mktemp("groups") / name, *CLIPS[name])
        return made[name]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CLIPS, AV1.name])
@pytest.mark.parametrize("step", [7, 30, 71])
def test_wanted_frames_are_those_of_decoding_everything(clip, name, step):
    path = clip(name)
    everything, total, _ = decoded(path)
    ticks = sorted(everything)
    for first in (0, step // 2, step - 1):
        wanted = set(ticks[first::step])
        found, given, complaints = decoded(path, wanted)
        assert found == {tick: everything[tick] for tick in wanted}
        assert not complaints
        assert given <= total
        if step == 30:
            assert given <= FEWER.get(name, total)


def test_groups_in_which_nothing_is_wanted_are_left_out_whole(clip):
    path = clip("x264.mp4")
    everything, total, _ = decoded(path)
    tick = sorted(everything)[95]  # in the fourth of five groups
    found, given, _ = decoded(path, {tick})
    assert found == {tick: everything[tick]}
    assert given < total / 3


@pytest.mark.parametrize("name", ["open.mp4", "open_hevc.mp4"])
def test_open_groups_are_not_taken_for_closed_ones(clip, name):
    with open_video(str(clip(name))) as (container, stream):
        classify = PacketClassifier(stream.codec_context)
        packets = list(PacketReader(container, stream))
        keys = [packet for packet in packets if packet.is_keyframe]
        assert len(keys) > 2
        assert [classify(packet).starts_closed for packet in keys] == [True] + [False] * (
            len(keys) - 1
        )


def test_unreferenced_frames_are_those_that_ffmpeg_skips(clip):
    """FFmpeg's own skipping is the second opinion: what it leaves out is unreferenced."""
    for name in ("x264.mp4", "x264.ts", "x265.mp4"):
        path = clip(name)
        with open_video(str(path)) as (container, stream):
            stream.codec_context.skip_frame = "NONREF"
            kept = {f.pts for f in FrameDecoder(PacketReader(container, stream), stream)}
        with open_video(str(path)) as (container, stream):
            classify = PacketClassifier(stream.codec_context)
            ours = {
                packet.pts
                for packet in PacketReader(container, stream)
                if not classify(packet).unreferenced
            }
        assert ours == kept


def test_lower_temporal_layers_are_not_taken_for_unreferenced(clip):
    """There, a picture that none of its own layer refers to may be needed by a higher one."""
    with open_video(str(clip("layers.mp4"))) as (container, stream):
        classify = PacketClassifier(stream.codec_context)
        layers = {True: set(), False: set()}
        for packet in PacketReader(container, stream):
            data = bytes(packet)
            place, layer = 0, 0
            while place < len(data):
                size = int.from_bytes(data[place : place + 4], "big")
                if data[place + 4] >> 1 & 63 < 32:
                    layer = (data[place + 5] & 7) - 1
                place += 4 + size
            layers[classify(packet).unreferenced].add(layer)
    assert len(layers[True]) <= 1
    assert not layers[True] or layers[True] == {max(layers[True] | layers[False])}


def test_broken_packets_are_given_to_the_decoder_which_tells_of_them(clip):
    with open_video(str(clip("x264.mp4"))) as (container, stream):
        classify = PacketClassifier(stream.codec_context)
        for packet in PacketReader(container, stream):
            data = bytes(packet)
            for broken in (b"", data[:3], data[:-1], b"\xff" * 8 + data, b"\0" * 16):
                assert classify.of_bytes(broken) == PacketKind()


def test_long_groups_are_handed_on_in_parts(clip):
    with open_video(str(clip("x264.mp4"))) as (container, stream):
        packets = list(PacketReader(container, stream))[:30]
        many = packets[:1] + packets[1:] * 80
        groups = list(packet_groups(many, PacketClassifier(stream.codec_context)))
    assert [len(group.packets) for group in groups[:2]] == [MAX_GROUP_PACKETS] * 2
    assert not any(group.closed for group in groups)
    assert sum(len(group.packets) for group in groups) == len(many)
