"""One row of a shard -> what the model takes, or the reason why not. Runs in the loader's worker
processes.

Stored features of an hour are half a gigabyte: a worker only chooses the frames, and the training
process reads them by memory map. What goes through the worker queue stands in for them, with their
shape and no bytes.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from model.config import HourLlavaConfig
from model.inputs import SampleInputs
from model.media.container import MediaError
from model.packing import plan_sample
from model.processor import Processor
from training.data.order import RowReader
from training.formats.feature_file import FeatureFile, FeatureStore
from training.formats.file_cache import DamagedFileError, FileCache
from training.formats.hashing import seed_of
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.sample import Sample, decode
from training.formats.storage import Storage
from training.run_config import RunConfig
from training.supervise import die_with_parent

FORGETTING: Literal["random"] = (
    "random"  # only lengths are looked at here, and they do not depend on it
)
NO_LIMIT = 1 << 31


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Frames of a stored video that a sample shows."""

    video: str
    indices: np.ndarray  # int64 [n]


@dataclass(slots=True)
class Prepared:
    """A sample ready for the model; ``frames`` names what its visual still lacks."""

    sample: SampleInputs
    frames: FrameChoice | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that cannot be trained on: what it is called, one of a few fixed phrases, and the
    details.
    """

    name: str
    reason: str
    detail: str


class Refused(ValueError):
    """Why a sample is dropped."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, str(detail)


class _Chosen:
    """A feature file that notes which frames are asked for and hands out a stand-in of their shape."""

    def __init__(self, file: FeatureFile) -> None:
        self.frames, self.duration = file.frames, file.duration
        self._shape = (file.header.tokens, file.header.width)
        self.indices = np.zeros(0, np.int64)

    def read(self, indices: np.ndarray) -> Tensor:
        self.indices = np.asarray(indices, np.int64)
        return torch.zeros(1, dtype=torch.bfloat16).expand(len(self.indices), *self._shape)


@dataclass
class Preparing(Dataset):
    """(epoch, row number) -> `Prepared` or `Dropped`; nothing about one row ever touches another."""

    rows: RowReader
    processor: Processor
    run: RunConfig
    features: FeatureStore | None = None
    videos: FileCache | None = None
    _config: HourLlavaConfig = field(init=False)
    _most_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        config = (
            self.processor.config
        )  # lengths are limited here, so that a long sample has a reason of its own
        unlimited = replace(config.llm, max_position_embeddings=NO_LIMIT)
        self._config = replace(config, llm=unlimited, max_length=NO_LIMIT)
        self._most_tokens = min(self.processor.config.max_length, self.run.recipe.max_length)

    def __getitem__(self, item: tuple[int, int]) -> Prepared | Dropped:
        epoch, row = item
        try:
            sample = decode(self.rows.read(row))
        except (DamagedFileError, ValueError) as error:
            return Dropped(self.rows.name(row), "damaged shard", str(error))
        try:
            return self._prepared(sample, seed_of(self.run.seed, epoch, sample.id))
        except Refused as refused:
            return Dropped(sample.id, refused.reason, refused.detail)

    def _prepared(self, sample: Sample, seed: int) -> Prepared:
        prepared = (
            self._about_video(sample, seed) if sample.video else self._about_images(sample, seed)
        )
        try:
            length = plan_sample(prepared.sample, self._config, FORGETTING).length
        except ValueError as error:
            raise Refused("unusable sample", error) from error
        if length > self._most_tokens:
            raise Refused(
                "too long", f"{length:,} tokens, at most {self._most_tokens:,} are trained on"
            )
        if not bool((prepared.sample.labels[1:] >= 0).any()):
            raise Refused("unusable sample", "no token of it is supervised")
        return prepared

    def _about_images(self, sample: Sample, seed: int) -> Prepared:
        try:
            return Prepared(
                self.processor.sample(
                    sample.conversations, images=sample.images, id=sample.id, seed=seed
                )
            )
        except ValueError as error:
            raise Refused("unusable sample", error) from error

    def _about_video(self, sample: Sample, seed: int) -> Prepared:
        try:
            if sample.kind != LONG_VIDEO_KIND:
                return Prepared(
                    self.processor.video(
                        self._video(sample.video), sample.conversations, id=sample.id, seed=seed
                    )
                )
            chosen = _Chosen(self._stored(sample.video))
            inputs = self.processor.video(chosen, sample.conversations, id=sample.id, seed=seed)
            return Prepared(inputs, FrameChoice(sample.video, chosen.indices))
        except MediaError as error:
            raise Refused(f"video {error.reason.replace('_', ' ')}", error) from error
        except FileNotFoundError as error:
            raise Refused(
                "features missing" if sample.kind == LONG_VIDEO_KIND else "video missing", error
            ) from error
        except Refused:
            raise
        except (ValueError, OSError) as error:
            raise Refused("unusable sample", error) from error

    def _video(self, name: str) -> str:
        if self.videos is None:
            raise ValueError("the run's videos_root is empty, but its samples name short videos")
        return os.fspath(self.videos.path(name))

    def _stored(self, video: str) -> FeatureFile:
        if self.features is None:
            raise ValueError("the run's features_root is empty, but its samples name long videos")
        try:
            return self.features.open(video)
        except ValueError as error:
            raise Refused("features damaged", error) from error


def preparing(run: RunConfig, rows: RowReader, processor: Processor) -> Preparing:
    """What the loader of ``run`` gives to its workers."""
    return Preparing(
        rows,
        processor,
        run,
        features=feature_store(run),
        videos=FileCache(Storage(run.videos_root)) if run.videos_root else None,
    )


def feature_store(run: RunConfig) -> FeatureStore | None:
    """The run's feature files, where it has any."""
    if not run.features_root:
        return None
    return FeatureStore(
        Storage(run.features_root), cache=run.features_cache, max_bytes=run.features_cache_bytes
    )


def start_worker(number: int) -> None:
    """First thing in a worker: it ends with its parent, and leaves the machine's cores to the
    others.
    """
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
