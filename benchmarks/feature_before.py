"""Decoding as this project did it before it sorted packets out and resized four channels; to
compare. Used by `benchmarks.features`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
import torch
import torch.nn.functional as F

from assets.features.workers.backends import OpenedVideo, choose_frames
from model.media import reader
from model.media.container import FrameDecoder
from model.media.sampling import Sampling


class EveryPacket(FrameDecoder):
    """Gives the decoder every packet, and has it skip frames that nothing refers to: how this
    project decoded before it sorted packets out.
    """

    def __iter__(self) -> Iterator[av.VideoFrame]:
        for packet in self._packets:
            if self._skip_unless is not None:
                self._codec.skip_frame = "DEFAULT" if packet.pts in self._skip_unless else "NONREF"
            yield from self._decode(packet)
        yield from self._decode(None)


@contextmanager
def open_before(
    path: str,
    size: int,
    min_frames: int,
    max_frames: int,
    max_pixels: int,
    sampling: Sampling = "one a second",
) -> Iterator[OpenedVideo]:
    """A `Backend`: as it was before."""
    timeline, indices = choose_frames(path, min_frames, max_frames, max_pixels, sampling)
    report = reader.DecodeReport()

    def picture(frame: av.VideoFrame) -> np.ndarray:
        return resize_three(frame.to_ndarray(format="rgb24"), size)

    pictures = reader.decode(
        timeline,
        indices,
        size=size,
        max_pixels=max_pixels,
        report=report,
        decoder=EveryPacket,
        pictures=picture,
    )
    yield OpenedVideo(timeline, indices, pictures, report, "to compare")


def resize_three(frame_HWC: np.ndarray, size: int) -> np.ndarray:
    """The resize of before, of three channels in a layout that torch does not know as such."""
    frame_1CHW = torch.from_numpy(np.require(frame_HWC, requirements=["C", "W"]))
    frame_1CHW = frame_1CHW.permute(2, 0, 1)[None]
    resized = F.interpolate(frame_1CHW, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
