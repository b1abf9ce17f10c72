"""A small storage root with videos, and a tiny encoder, for the tests of feature extraction."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Features
from assets.features.extract import extract
from assets.features.options import ExtractionOptions
from assets.features.report import FeatureReport
from model.config import PRESETS
from model.vision_encoders import build_encoder
from model.weights.vision_encoder import save_vision_encoder
from training.formats import layout
from training.formats.storage import Storage

TINY = PRESETS["tiny"]
FOLDER = layout.features("tiny")


@pytest.fixture(scope="session", autouse=True)
def _project_is_where_children_look():
    """Backends of these tests are found by decoding processes through the project's own folder."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def make_encoder(folder: Path, seed: int) -> Path:
    """A tiny encoder with random weights."""
    generator = torch.Generator().manual_seed(seed)
    encoder = build_encoder(TINY.vision)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_vision_encoder(encoder, folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"), seed=1)


def after_layer(model: torch.nn.Module, number: int, run: Callable[[], object]) -> torch.Tensor:
    """What comes out of one layer of a SigLIP tower of transformers, in any of its versions."""
    end = f"encoder.layers.{number}"
    (layer,) = (
        module
        for name, module in model.named_modules()
        if name.endswith(end) and "text" not in name
    )
    seen: list[torch.Tensor] = []

    def keep(
        module: torch.nn.Module, inputs: object, out: torch.Tensor | tuple[torch.Tensor, ...]
    ) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    hook = layer.register_forward_hook(keep)
    run()
    hook.remove()
    return seen[0]


def video_path(root: Path, video: str, suffix: str = ".mp4") -> Path:
    path = root / "VideoMarathon/videos" / f"{video}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def present_video(root: Path, path: Path, duration: float = 10.0) -> PresentVideo:
    """What the catalogue says of a file; the file may be missing."""
    rel = path.relative_to(root)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    video = f"{path.parent.name}/{path.stem}"
    return PresentVideo(video, duration, digest, rel.as_posix(), damaged=False)


def videos_of(root: Path, duration: float = 10.0) -> list[PresentVideo]:
    """What the catalogue says of all videos of a root, in order."""
    paths = sorted((root / "VideoMarathon/videos").glob("*/*"))
    return [present_video(root, path, duration) for path in paths]


def feature_file(root: Path, video: str) -> Path:
    return root / f"VideoMarathon/features/tiny/{video}.safetensors"


def options(devices: tuple[str, ...] = ("cpu",), **changes: object) -> ExtractionOptions:
    """Options of the tiny variant.

    Args:
        devices: where encoders run.
        changes: of the deployment's `features` section.
    """
    settings = Features(**{"decode_workers": 2, "batch_size": 16, **changes})
    return ExtractionOptions(settings, TINY.memory.pooled_side, TINY.memory.min_frames, devices)


@pytest.fixture(scope="session")
def run(encoder) -> Callable[..., FeatureReport]:
    """Extract videos of a root; returns the report, whose log is printed."""

    def go(
        root: Path, videos: list[PresentVideo], *, encoder: Path = encoder, backends=None, **changes
    ) -> FeatureReport:
        return extract(
            Storage(str(root)), options(**changes), FOLDER, videos, encoder, print, backends
        )

    return go


def copy_videos(root: Path, to: Path) -> Path:
    """Another root with the same videos and no features."""
    shutil.copytree(root / "VideoMarathon/videos", to / "VideoMarathon/videos")
    return to
