"""Small real videos, made once and kept for the whole run of the tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import av
import numpy as np


@functools.cache
def clip(
    seed: int = 0,
    seconds: float = 8.0,
    suffix: str = ".mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
) -> bytes:
    """A video whose content depends on `seed`; the header of an mp4 stands at its front."""
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        options = {"movflags": "faststart"} if suffix == ".mp4" else {}
        with av.open(str(path), "w", options=options) as file:
            stream = file.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = (
                width,
                height,
                "yuv420p",
                10,
            )
            noise = np.random.default_rng(seed)
            for _ in range(round(seconds * 10)):
                picture = noise.integers(0, 255, (height, width, 3), dtype=np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
        return path.read_bytes()


@functools.cache
def sound(seconds: float = 2.0) -> bytes:
    """An mp4 that holds sound alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("aac", rate=16000)
            for _ in range(round(seconds * 16000 / 1024)):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                frame.sample_rate = 16000
                for packet in stream.encode(frame):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
        return path.read_bytes()
