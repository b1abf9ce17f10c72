"""Drawn samples of stages 1 and 2, and of the short stream of stage 3, in the shares of the
published mixture: images cut into tiles, several images, text, and short videos in files that are
decoded in training.

Everything is named and drawn from the name, so a folder that is there already is used again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from benchmarks.feature_baseline import Coding, draw_unit, repeat
from benchmarks.training_data import text_of, write_random_features, write_shards
from model.config import HourLlavaConfig
from model.media.sampling import feature_frame_count
from training.formats.hashing import seed_of
from training.formats.kinds import (
    IMAGE_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    SINGLE_IMAGE_KIND,
    TEXT_KIND,
)
from training.formats.sample import Sample

# Of 32 samples, as benchmarks/estimate.py counts the published annotation files (stage 2: 53 %
# videos, 22 % images, 9 % several images, 15 % text).
STAGE_1 = {IMAGE_KIND: 32}
STAGE_2 = {SHORT_VIDEO_KIND: 17, SINGLE_IMAGE_KIND: 7, MULTI_IMAGE_KIND: 3, TEXT_KIND: 5}
SHORT_STREAM = {SHORT_VIDEO_KIND: 16, SINGLE_IMAGE_KIND: 8, MULTI_IMAGE_KIND: 3, TEXT_KIND: 5}

IMAGES = ((640, 480), (800, 600), (500, 375), (1024, 768), (336, 336), (640, 427), (480, 640))
SPREAD = 7  # any few samples in a row have about the shares
UNIT_S = 6  # so much of a video is drawn; the rest repeats it
X264 = {"preset": "veryfast", "g": "250"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=250"}
VP9 = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}


@dataclass(frozen=True, slots=True)
class ShortVideo:
    """A short video: how it is encoded, its seconds and its container."""

    coding: Coding
    seconds: int
    suffix: str = ".mp4"


# The collection's videos last up to three minutes and come from ten sources, most of them H.264.
VIDEOS = (
    ShortVideo(Coding("libx264", 640, 360, 30, X264), 30),
    ShortVideo(Coding("libx264", 640, 360, 25, X264), 60),
    ShortVideo(Coding("libx264", 1280, 720, 30, X264, 1_500_000), 18),
    ShortVideo(Coding("libvpx-vp9", 640, 360, 30, VP9), 42, ".webm"),
    ShortVideo(Coding("libx264", 480, 360, 24, X264), 120),
    ShortVideo(Coding("libx265", 640, 360, 25, X265), 60),
    ShortVideo(Coding("libx264", 854, 480, 30, X264, 800_000), 90),
    ShortVideo(Coding("libx264", 320, 240, 30, X264, 300_000), 12),
)


def write_stage(
    folder: Path,
    videos: Path,
    shares: dict[str, int],
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    scale: float = 1.0,
) -> list[str]:
    """`count` samples below `folder`, and their videos below `videos`, `scale` times as long.

    Returns:
        The kinds that have a sample, in the order of `shares`.
    """
    kinds = [kind for kind, number in shares.items() for _ in range(number)]
    found: dict[str, list[int]] = {kind: [] for kind in shares}
    for number in range(count):
        found[kinds[SPREAD * number % len(kinds)]].append(number)
    for kind, numbers in found.items():
        if numbers:
            samples = (_sample(kind, number, videos, tokenizer, scale) for number in numbers)
            write_shards(folder / "sharding" / f"{kind}_part0", samples)
    return [kind for kind, numbers in found.items() if numbers]


def video_files(videos: Path, scale: float = 1.0) -> Iterator[tuple[str, ShortVideo]]:
    """Each of `VIDEOS`, as long as it is here, with the name of its file, which is drawn where it
    is not there yet.
    """
    for number, video in enumerate(VIDEOS):
        seconds = max(2, round(video.seconds * scale))
        coding = video.coding
        name = f"{number}-{coding.codec}-{coding.width}x{coding.height}-{seconds}{video.suffix}"
        path = videos / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn, length = path.with_name(f"unit-{path.name}"), min(UNIT_S, seconds)
            draw_unit(drawn, length * coding.fps, number, coding)
            unfinished = path.with_name(f"part-{path.name}")
            repeat(drawn, unfinished, -(-seconds // length))
            drawn.unlink()
            unfinished.rename(path)
        yield name, replace(video, seconds=seconds)


def write_kept(
    folder: Path, videos: Path, scale: float, config: HourLlavaConfig, device: torch.device
) -> None:
    """Random features of each of `VIDEOS`, of as many frames as the loader would decode: none lasts
    longer than the fewest take.
    """
    for name, video in video_files(videos, scale):
        pictures = video.seconds * video.coding.fps
        frames = feature_frame_count(pictures, video.seconds, min_frames=config.memory.min_frames)
        path = folder / f"{name}.safetensors"
        write_random_features(path, frames, video.seconds, config, device)


def _sample(
    kind: str, number: int, videos: Path, tokenizer: PreTrainedTokenizerBase, scale: float
) -> Sample:
    name = f"{kind}-{number}"
    draw = np.random.default_rng(seed_of(name))
    question = text_of(tokenizer, int(draw.integers(60, 230)))
    turns = [
        {"from": "human", "value": question},
        {"from": "gpt", "value": text_of(tokenizer, int(draw.integers(100, 400)))},
    ]
    if kind == TEXT_KIND:
        return Sample(name, kind, "text", turns)
    if kind == SHORT_VIDEO_KIND:
        files = list(video_files(videos, scale))
        file, _ = files[number % len(files)]
        turns[0]["value"] = "<image>\n" + question
        return Sample(name, kind, "video", turns, video=file)
    sizes: Sequence[tuple[int, int]] = [IMAGES[number % len(IMAGES)]]
    if kind == MULTI_IMAGE_KIND:
        sizes = [IMAGES[(number + n) % len(IMAGES)] for n in range(3)]
    turns[0]["value"] = "<image>\n" * len(sizes) + question
    pictures = [photograph(size, f"{name}-{place}") for place, size in enumerate(sizes)]
    modality = "multi_image" if kind == MULTI_IMAGE_KIND else "image"
    return Sample(name, kind, modality, turns, pictures)  # type: ignore[arg-type]


def photograph(size: tuple[int, int], name: str) -> bytes:
    """A JPEG of soft shapes under grain."""
    draw = np.random.default_rng(seed_of("photograph", name))
    soft = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    pixels = pixels + draw.integers(-12, 13, pixels.shape, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
