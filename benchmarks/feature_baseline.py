"""The plain way to make features, and the videos and encoder that both ways work on. Used by
`benchmarks.features`.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from assets.annotations.catalogue import PresentVideo
from model.config import HourLlavaConfig
from model.vision_encoders.siglip import SiglipEncoder
from model.weights.vision_encoder import save_vision_encoder
from training.formats.hashing import hash_file

CHUNK = 128  # of the plain way
FPS = 30


def make_videos(root: Path, count: int, minutes: float) -> list[PresentVideo]:
    """Long clips: a minute of moving, grainy pictures each, repeated by copying packets."""
    folder = root / "VideoMarathon/videos/panda"
    folder.mkdir(parents=True)
    kinds = min(4, count)
    unit = min(60.0, minutes * 60)
    with multiprocessing.get_context("spawn").Pool(kinds) as pool:
        units = pool.starmap(
            encode_unit, [(root / f"unit{i}.mp4", round(unit * FPS), i) for i in range(kinds)]
        )
    videos: list[PresentVideo] = []
    for i in range(count):
        path = folder / f"v{i:03}.mp4"
        if i < kinds:
            repeat(units[i], path, round(minutes * 60 / unit))
        else:
            shutil.copyfile(folder / f"v{i % kinds:03}.mp4", path)
        videos.append(
            PresentVideo(
                f"panda/v{i:03}",
                minutes * 60,
                hash_file(path),
                path.relative_to(root).as_posix(),
                damaged=False,
            )
        )
    return videos


def encode_unit(path: Path, frames: int, seed: int) -> Path:
    """640x360 H.264 at 30 frames a second and some 0.5 Mbit a second."""
    return draw_unit(path, frames, seed, Coding())


@dataclass(frozen=True, slots=True)
class Coding:
    """How a drawn video is encoded."""

    codec: str = "libx264"
    width: int = 640
    height: int = 360
    fps: int = FPS
    options: Mapping[str, str] = field(
        default_factory=lambda: {"preset": "veryfast", "b": "500k", "g": "250"}
    )
    bit_rate: int = 500_000


def draw_unit(path: Path, frames: int, seed: int, coding: Coding) -> Path:
    """Drifting textures with grain and a cut every ten seconds."""
    rng = np.random.default_rng(seed)
    width, height = coding.width, coding.height
    texture = np.asarray(
        Image.fromarray(rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)).resize(
            (width + 960, height + 600), Image.Resampling.BICUBIC
        )
    )
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            coding.codec, rate=coding.fps, options=dict(coding.options)
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = coding.bit_rate
        stream.codec_context.thread_count = 4
        for i in range(frames):
            scene, t = divmod(i, 10 * coding.fps)
            x, y = (scene * 311 + 2 * t) % 900, (scene * 173 + t) % 560
            picture = texture[y : y + height, x : x + width].astype(np.int16)
            grain = rng.integers(-6, 7, (-(-height // 4), -(-width // 4), 1), dtype=np.int16)
            grain = grain.repeat(4, 0).repeat(4, 1)[:height, :width]
            frame = av.VideoFrame.from_ndarray(
                np.clip(picture + grain, 0, 255).astype(np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat(unit: Path, path: Path, times: int) -> None:
    """The same minute `times` over."""
    with av.open(str(path), "w") as out:
        target = None
        shift = 0
        for _ in range(times):
            with av.open(str(unit)) as source:
                stream = source.streams.video[0]
                target = target or out.add_stream_from_template(stream)
                end = 0
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = (
                        packet.pts + shift,
                        packet.dts + shift,
                        target,
                    )
                    out.mux(packet)
                shift += end


def make_encoder(folder: Path, config: HourLlavaConfig) -> Path:
    torch.manual_seed(0)
    encoder = SiglipEncoder(config.vision)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.02)
    save_vision_encoder(encoder.bfloat16(), folder)
    return folder


def file_size(root: Path) -> Callable[[PresentVideo], int]:
    return lambda video: (root / video.rel).stat().st_size


@torch.no_grad()
def baseline(
    root: Path, videos: list[PresentVideo], encoder: Path, config: HourLlavaConfig, chunks: int
) -> dict[str, float]:
    """Decode everything, resize with Pillow, fp32 eager tower, chunk by chunk, each after the
    other.
    """
    from transformers import SiglipVisionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = SiglipVisionModel.from_pretrained(
        encoder,
        attn_implementation="eager",
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
    )
    model = model.to(device).eval()
    side, pooled = config.vision.image_size, config.memory.pooled_side

    def tower(pixels: np.ndarray) -> torch.Tensor:
        states = model(
            torch.from_numpy(pixels).to(device), output_hidden_states=True
        ).hidden_states[-1]
        grid = states.transpose(1, 2).unflatten(-1, (config.vision.patches_per_side,) * 2)
        return F.interpolate(grid, (pooled, pooled), mode="bilinear").cpu()

    spent = {"decode": 0.0, "preprocess": 0.0, "tower": 0.0}
    tower(np.zeros((8, 3, side, side), np.float32))
    frames = plain_frames(root / videos[0].rel)
    done = 0
    for _ in range(chunks):
        with timed(spent, "decode"):
            pictures = [picture for _, picture in zip(range(CHUNK), frames, strict=False)]
        if not pictures:
            break
        with timed(spent, "preprocess"):
            pixels = np.stack([pillow(picture, side) for picture in pictures])
        with timed(spent, "tower"):
            tower(pixels)
        done += len(pictures)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    model.cpu()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rates = {name: done / seconds for name, seconds in spent.items()}
    return {
        **rates,
        "end_to_end": done / sum(spent.values()),
        "frames": done,
        "gpu_memory_gib": memory,
    }


def plain_frames(path: Path, threads: int = 0) -> Iterator[np.ndarray]:
    """Every FPS-th picture, having decoded all of them; with as many threads as FFmpeg likes, or
    so many.
    """
    with av.open(str(path)) as container:
        if threads:
            container.streams.video[0].codec_context.thread_count = threads
        for i, frame in enumerate(container.decode(video=0)):
            if i % FPS == 0:
                yield frame.to_ndarray(format="rgb24")


def pillow(picture: np.ndarray, side: int) -> np.ndarray:
    square = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    return (np.asarray(square, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


@contextmanager
def timed(spent: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - started
