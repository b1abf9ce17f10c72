"""A backend that decodes on the GPU's video engine (NVDEC), through PyNvVideoCodec.

Only the decoding itself differs. The container is read, the frames are chosen, and the pictures are
converted and resized by the same code as on the CPU. So a hostile container meets no other reader,
and pixels are the same bit for bit: H.264 and HEVC define every one of them.

The engine decodes each frame, wanted or not, and does not report damage that it mends. So it is
used only where the settings ask for it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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
from model.media.container import FrameDecoder, MediaError, PacketReader, open_video
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


def nvdec_installed() -> bool:
    """Whether PyNvVideoCodec is there. It does not look for a GPU."""
    return importlib.util.find_spec("PyNvVideoCodec") is not None


@contextmanager
def open_nvdec(
    path: str, size: int, min_frames: int, max_frames: int, max_pixels: int
) -> Iterator[OpenedVideo]:
    """A `Backend`: the GPU's video engine; PyAV for what the engine cannot decode."""
    timeline, indices = choose_frames(path, min_frames, max_frames, max_pixels)
    first = _first_frame(timeline, max_pixels)
    if reason := _unsuitable(timeline, first):
        with open_pyav(path, size, min_frames, max_frames, max_pixels) as video:
            video.facts["why"] = f"NVDEC is asked for but does not take it: {reason}"
            yield video
        return
    import PyNvVideoCodec

    report = reader.DecodeReport()
    source = partial(NvdecDecoder, like=first)
    pictures = reader.decode(
        timeline, indices, size=size, max_pixels=max_pixels, report=report, decoder=source
    )
    report.decoder = (
        f"nvdec {PyNvVideoCodec.__version__}, av {av.__version__}, ffmpeg {ffmpeg_version()}"
    )
    why = "NVDEC is asked for; damage that it mends is not counted"
    yield OpenedVideo(timeline, indices, pictures, report, why)


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
    if first.rotation:
        return "it is turned"
    if first.width % 2 or first.height % 2:
        return "odd dimensions"
    return ""


class NvdecDecoder(FrameDecoder):
    """Like `FrameDecoder`, decoded on the GPU: the wanted frames of a stream, in the order shown.

    Args:
        packets: of the stream.
        stream: what to decode.
        wanted: ticks of the frames that are brought back from the GPU.
        like: a frame of the same stream, for its dimensions and colours.
    """

    def __init__(
        self,
        packets: Iterable[av.Packet],
        stream: VideoStream,
        wanted: set[int],
        *,
        like: av.VideoFrame,
    ) -> None:
        super().__init__(packets, stream)
        self._stream, self._wanted, self._like = stream, wanted, like

    def __iter__(self) -> Iterator[av.VideoFrame]:
        import PyNvVideoCodec as nvc

        name, filters = CODECS[self._stream.codec_context.name]
        decoder = nvc.CreateDecoder(
            gpuid=0,
            codec=getattr(nvc.cudaVideoCodec, name),
            cudacontext=0,
            cudastream=0,
            usedevicememory=True,
        )
        converter = BitStreamFilterContext(filters, self._stream)
        for packet in self._packets:
            for ready in converter.filter(packet):
                data = nvc.PacketData()
                data.bsl_data, data.bsl, data.pts = ready.buffer_ptr, ready.buffer_size, ready.pts
                for surface in decoder.Decode(data):
                    if surface.getPTS() in self._wanted:
                        yield self._picture(surface)
        # An empty packet makes the engine give what it still holds back.
        for surface in decoder.Decode(nvc.PacketData()):
            if surface.getPTS() in self._wanted:
                yield self._picture(surface)

    def _picture(self, surface: Any) -> av.VideoFrame:
        """A decoded surface, NV12 in GPU memory, as the frame that FFmpeg's own decoder gives.

        Raises:
            MediaError: the surface has other dimensions than the stream's frames.
        """
        import torch

        width, height = self._like.width, self._like.height
        nv12 = torch.from_dlpack(surface).cpu().numpy()
        # Rows of brightness, then half as many rows in which both colours alternate.
        nv12 = nv12.reshape(nv12.shape[0], -1)[: height * 3 // 2]
        if nv12.shape != (height * 3 // 2, width):
            detail = f"NVDEC gives a surface of {nv12.shape}, expected {(height * 3 // 2, width)}"
            raise MediaError("decoder_disagrees", self._stream.container.name, detail)
        planar = np.empty_like(nv12)
        planar[:height] = nv12[:height]
        planar[height:].reshape(2, -1)[:] = nv12[height:].reshape(-1, 2).T
        frame = av.VideoFrame.from_ndarray(planar, format=self._like.format.name)
        frame.pts, frame.time_base = surface.getPTS(), self._stream.time_base
        frame.color_range, frame.colorspace = self._like.color_range, self._like.colorspace
        return frame
