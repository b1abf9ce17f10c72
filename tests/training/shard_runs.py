"""Runs over small real shards: images, short clips that really decode, and long videos with stored
features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from assets.shards.writer import write_kind_part, write_long_video_part
from model.config import PRESETS
from model.processor import Processor
from model.weights.tiny import build_tiny
from tests.assets.shards.roots import make_conversations, make_root, quiet, settings_for
from tests.model.media import clips
from training.formats.feature_file import write_features
from training.run_config import RunConfig, StreamConfig

CONFIG = PRESETS["tiny"]
LONG_PARTS, VIDEOS, SAMPLES, FRAMES = 2, 8, 4, 20
CLIPS = 40


class WithoutImages(Processor):
    """Leaves the image out of an image sample, which makes it quick to prepare."""

    def image(self, image, conversations, **named):
        return self.text(
            [{**turn, "value": turn["value"].replace("<image>", "")} for turn in conversations],
            **named,
        )


@dataclass(frozen=True)
class ShardCorpus:
    root: Path
    processor: Processor

    def run(self, **changes) -> RunConfig:
        """A stage-3 run of images (stream 0) and long videos (1) that reads in this process."""
        sharding = str(self.root / "VideoMarathon/sharding")
        images = tuple(f"llavavideo_si_part{part}/index.json" for part in range(10))
        long = tuple(f"videomarathon_video_part{part}/index.json" for part in range(LONG_PARTS))
        settings = {
            "variant": "tiny",
            "stage": 3,
            "start": "",
            "out": "",
            "streams": (
                StreamConfig("images", sharding, images),
                StreamConfig("long", sharding, long),
            ),
            "features_root": str(self.root / "features"),
            "videos_root": str(self.root / "LLaVA-Video-178K/videos"),
            "global_batch": 4,
            "micro_batch": 2,
            "workers": 0,
            "shuffle_block": 16,
            "data_timeout_s": 60.0,
        }
        return RunConfig(**{**settings, **changes})

    def short_run(self, parts: tuple[int, ...] = (0,), **changes) -> RunConfig:
        """A run over the short videos of some parts alone."""
        indexes = tuple(f"llavavideo_video_part{part}/index.json" for part in sorted(set(parts)))
        return self.run(
            streams=(StreamConfig("clips", str(self.root / "VideoMarathon/sharding"), indexes),),
            **changes,
        )


def make_corpus(root: Path) -> ShardCorpus:
    storage = make_root(root)
    settings = settings_for(root)
    clips.encode(root / "clip.mp4", 12)
    for number in range(CLIPS):
        (root / f"LLaVA-Video-178K/videos/a/{number}.mp4").write_bytes(
            (root / "clip.mp4").read_bytes()
        )
    for kind in ("llavavideo_si", "llavavideo_video"):
        for part in range(10):
            write_kind_part(storage, settings, kind, part, quiet)
    for part in range(LONG_PARTS):
        make_conversations(storage, part, VIDEOS, SAMPLES, duration=float(FRAMES))
        write_long_video_part(storage, settings, part, quiet)
        for number in range(VIDEOS):
            write_video_features(root, f"panda/p{part}v{number}")
    build_tiny(root / "tiny")
    return ShardCorpus(root, Processor(CONFIG, AutoTokenizer.from_pretrained(root / "tiny")))


def features_of(video: str) -> torch.Tensor:
    """The stored features of a video: [T, P, C] bfloat16, different for each."""
    seed = int.from_bytes(video.encode()[-6:], "big") % 2**31
    generator = torch.Generator().manual_seed(seed)
    shape = (FRAMES, CONFIG.memory.frame_tokens, CONFIG.vision.hidden_size)
    return torch.randn(shape, generator=generator).bfloat16()


def write_video_features(root: Path, video: str) -> None:
    path = root / f"features/{video}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(FRAMES, dtype=np.float32)
    write_features(path, features_of(video), times, {"duration": json.dumps(float(FRAMES))})
