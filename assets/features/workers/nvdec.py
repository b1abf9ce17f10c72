"""A backend that decodes on the GPU's video engine (NVDEC), through PyNvVideoCodec.

Who reads what of a stranger's file: the container is read, the frames are chosen and the packets
are sorted out by the same locked-down code as on the CPU, so a hostile container meets no other
reader. The compressed pictures themselves go to NVIDIA's parser and engine, inside this decoding
process: it can be killed, knows no secrets and has no network. A decoder of this kind that dies is
replaced by one on the CPU.

Surfaces become RGB squares on the GPU (`model.media.surfaces`), with the CPU's arithmetic; only the
finished squares come to the frame buffer. The engine gets no packet that no wanted picture can
need, and surfaces that nobody wants are never looked at.

The engine does not report damage that it mends. Where it refuses something, or a wanted frame does
not come out, the CPU decodes the rest of the video and says what is wrong with it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.stream import VideoStream

from assets.features.workers.backends import (
    OpenedVideo,
    choose_frames,
    ffmpeg_version,
    open_pyav,
)
from model.media import reader
from model.media.container import FrameDecoder, PacketReader, open_video
from model.media.groups import PacketClassifier, packet_groups
from model.media.pictures import colour_matrix, display_matrix, full_range
from model.media.refusals import MediaError
from model.media.sampling import Sampling
from model.media.timeline import Timeline

# FFmpeg's name -> PyNvVideoCodec's name, and FFmpeg's bitstream filter that turns a container's
# packets into what the engine reads.
CODECS = {
    "h264": ("H264", "h264_mp4toannexb"),
    "hevc": ("HEVC", "hevc_mp4toannexb"),
    "vp9": ("VP9", "null"),
}
# 8 bits, one colour value for two by two pixels: what an NV12 surface holds.
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
# Surfaces that become pictures together: fewer, larger pieces of work beside the encoder's.
TOGETHER = 8


def nvdec_installed() -> bool:
    """Whether PyNvVideoCodec is there. It does not look for a GPU."""
    return importlib.util.find_spec("PyNvVideoCodec") is not None


@contextmanager
def open_nvdec(
    path: str,
    size: int,
    min_frames: int,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "one a second",
    device: int = 0,
) -> Iterator[OpenedVideo]:
    """A `Backend`: the video engine of GPU `device`; PyAV for what the engine cannot decode."""
    timeline, indices = choose_frames(path, min_frames, max_frames, max_pixels, sampling)
    first = _first_frame(timeline, max_pixels)
    if reason := _unsuitable(timeline, first):
        with open_pyav(path, size, min_frames, max_frames, max_pixels, sampling) as video:
            video.facts["why"] = f"NVDEC does not take it: {reason}"
            yield video
        return
    import PyNvVideoCodec

    report = reader.DecodeReport()
    report.decoder = (
        f"nvdec {PyNvVideoCodec.__version__}, av {av.__version__}, ffmpeg {ffmpeg_version()}"
    )
    why = "NVDEC takes part; damage that it mends is not counted"
    video = OpenedVideo(timeline, indices, iter(()), report, why)
    decoder = partial(NvdecDecoder, like=first, size=size, device=device)
    video.pictures = _pictures(video, timeline, indices, size, max_pixels, report, decoder)
    yield video


def _pictures(
    video: OpenedVideo,
    timeline: Timeline,
    indices: np.ndarray,
    size: int,
    max_pixels: int,
    report: reader.DecodeReport,
    decoder: partial[NvdecDecoder],
) -> Iterator[np.ndarray]:
    """Pictures from the engine as far as it goes, the rest from the CPU."""
    decode = partial(reader.decode, timeline, size=size, max_pixels=max_pixels)
    try:
        for picture in decode(indices, decoder=decoder, pictures=_pixels):
            yield picture
            video.on_gpu += 1
    # PyNvVideoCodec and torch raise errors of many kinds, and none of them is about this project.
    except Exception as error:
        video.gave_up = f"{type(error).__name__}: {error}"
    if video.gave_up:
        yield from decode(indices[video.on_gpu :], report=report)


def _first_frame(timeline: Timeline, max_pixels: int) -> av.VideoFrame:
    """A frame as the CPU decodes it, which says how it is turned and what its colours mean."""
    with open_video(timeline.path, max_pixels=max_pixels, index=timeline.stream) as (
        container,
        stream,
    ):
        for frame in FrameDecoder(PacketReader(container, stream), stream):
            return frame
    raise MediaError("no_frame_decodes", timeline.path, "not one frame")


def _unsuitable(timeline: Timeline, first: av.VideoFrame) -> str:
    """Why the engine cannot decode a video; empty if it can."""
    if timeline.codec not in CODECS:
        return f"codec {timeline.codec}"
    if not timeline.skippable:
        return "its frames cannot be told from its packets"
    if first.format.name not in PIXEL_FORMATS:
        return f"pixel format {first.format.name}"
    if not np.array_equal(display_matrix(first), np.eye(2)):
        return "it is turned or mirrored"
    if first.width % 2 or first.height % 2:
        return "odd dimensions"
    return ""


class Square(NamedTuple):
    """A wanted frame as `NvdecDecoder` gives it: uint8 [S, S, 3], and what `reader.decode` asks of
    a frame.
    """

    picture: np.ndarray
    pts: int
    width: int
    height: int


def _pixels(square: Square) -> np.ndarray:
    return square.picture


class NvdecDecoder:
    """Like `FrameDecoder`, decoded on the GPU: the wanted frames of a stream, in the order shown.

    Args:
        packets: of the stream.
        stream: what to decode.
        wanted: ticks of the frames that are wanted.
        like: a frame of the same stream, for its dimensions and colours.
        size: S, of the pictures.
        device: number of the GPU.
    """

    def __init__(
        self,
        packets: Iterable[av.Packet],
        stream: VideoStream,
        wanted: set[int],
        *,
        like: av.VideoFrame,
        size: int,
        device: int,
    ) -> None:
        self.bad_packets = self.concealed = 0  # which the engine does not tell
        self._packets, self._stream = packets, stream
        self._wanted, self._like, self._size, self._device = wanted, like, size, device

    def __iter__(self) -> Iterator[Square]:
        """Raises MediaError `decoder_disagrees` where a wanted frame does not come out in its
        place, or has other dimensions than the stream's frames.
        """
        import torch

        from model.media.surfaces import SurfaceConverter

        like = self._like
        converter = SurfaceConverter(self._size, colour_matrix(like), full_range(like))
        rows = like.height * 3 // 2
        held_THW: torch.Tensor | None = None
        ticks: list[int] = []

        def squares() -> Iterator[Square]:
            if held_THW is None:
                return
            luma_THW = held_THW[: len(ticks), : like.height]
            chroma_Thw2 = held_THW[: len(ticks), like.height :].unflatten(-1, (-1, 2))
            pictures = converter(luma_THW, chroma_Thw2).cpu().numpy()
            for pts, picture in zip(ticks, pictures, strict=True):
                yield Square(picture, pts, like.width, like.height)
            ticks.clear()

        due = sorted(self._wanted)
        for surface in self._surfaces():
            pts = surface.getPTS()
            if pts not in self._wanted:
                continue
            if not due or due.pop(0) != pts:
                self._disagree(f"NVDEC gives frame {pts} out of order")
            nv12 = torch.from_dlpack(surface)
            # Rows of brightness, then half as many in which both colours alternate.
            nv12 = nv12.reshape(nv12.shape[0], -1)[:rows]
            if nv12.shape != (rows, like.width):
                self._disagree(f"NVDEC gives a surface of {tuple(nv12.shape)}")
            if held_THW is None:
                held_THW = nv12.new_empty((TOGETHER, rows, like.width))
            held_THW[len(ticks)].copy_(nv12)  # the engine will write to the surface again
            ticks.append(pts)
            if len(ticks) == TOGETHER:
                yield from squares()
        yield from squares()
        if due:
            self._disagree(f"NVDEC does not give {len(due)} of {len(self._wanted)} wanted frames")

    def _disagree(self, detail: str) -> None:
        raise MediaError("decoder_disagrees", self._stream.container.name, detail)

    def _surfaces(self) -> Iterator[Any]:
        """What the engine gives for the packets that a wanted frame can need: NV12 surfaces of
        wanted frames, and perhaps some others, valid until the next one is asked for.
        """
        import PyNvVideoCodec as nvc

        name, filters = CODECS[self._stream.codec_context.name]
        decoder = nvc.CreateDecoder(
            gpuid=self._device,
            codec=getattr(nvc.cudaVideoCodec, name),
            cudacontext=0,
            cudastream=0,
            usedevicememory=True,
        )
        converter = BitStreamFilterContext(filters, self._stream)
        classify = PacketClassifier(self._stream.codec_context)
        for group in packet_groups(self._packets, classify):
            last = group.last_needed(self._wanted)
            for packet, kind in zip(group.packets[: last + 1], group.kinds, strict=False):
                shown = packet.pts in self._wanted
                if not shown and kind.unreferenced and not kind.parameters:
                    continue
                for ready in converter.filter(packet):
                    data = nvc.PacketData()
                    data.bsl_data, data.bsl = ready.buffer_ptr, ready.buffer_size
                    data.pts = ready.pts
                    # Decoded for others to refer to, but not copied out of the engine.
                    data.discardable = not shown
                    yield from decoder.Decode(data)
        # An empty packet makes the engine give what it still holds back.
        yield from decoder.Decode(nvc.PacketData())
