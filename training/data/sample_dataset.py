"""One row of a shard -> what the model takes, or the reason why not. Runs in the loader's worker
processes.

Stored features of an hour are half a gigabyte: a worker only chooses the frames, and the training
process reads them by memory map. What goes through the worker's queue stands in for them, with
their shape and no bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from model.config import HourLlavaConfig
from model.conversation import tokenize_seen, video_prompt
from model.inputs import SampleInputs, Visual
from model.media.refusals import MediaError
from model.media.sampling import stored_frame_indices
from model.packing import plan_sample
from model.processor import Processor, ReadVideo
from training.data.held_out import HELD_OUT, NOTHING_HELD_OUT, HeldOutSplit
from training.data.micro_batch import HeldOutQuestion
from training.data.rows import RowReader
from training.formats.feature_file import FeatureFile
from training.formats.feature_store import FeatureStore
from training.formats.file_cache import DamagedFileError, FileCache
from training.formats.hashing import seed_of
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.machine_faults import gone, machine_fault
from training.formats.sample import IMAGE_TOKEN, Sample, decode, text_fault
from training.formats.storage import Storage
from training.run_config import RunConfig

# Only lengths are looked at here, and they do not depend on what is forgotten.
FORGETTING: Literal["random"] = "random"
NO_LIMIT = 1 << 31


# Which of a run's folders of feature files.
StoreName = Literal["long", "short"]


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """Frames of a stored video that a sample shows.

    Attributes:
        store: where its feature file is.
        video: name of the feature file, without its suffix.
        indices: int64 [n].
    """

    store: StoreName
    video: str
    indices: np.ndarray


@dataclass(slots=True)
class PreparedSample:
    """A sample ready for the model, except for the stored frames that `frames` names."""

    sample: SampleInputs
    frames: FrameChoice | None = None


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that cannot be trained on.

    Attributes:
        name: of the sample, or of the row where that could not be read.
        reason: one of a few fixed phrases.
        detail: what exactly is wrong.
        known: whether this was known, and allowed, before training.
    """

    name: str
    reason: str
    detail: str
    known: bool = False


@dataclass(frozen=True, slots=True)
class PostponedRow:
    """A row that could not be prepared because the machine is at fault: to be tried again."""

    epoch: int
    row: int
    fault: str


WorkerResult = PreparedSample | DroppedRow | PostponedRow


class UnusableSampleError(ValueError):
    """Why a sample is dropped; see `DroppedRow`."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, str(detail)


@dataclass
class SampleDataset(Dataset):
    """(epoch, row number) -> `PreparedSample`, `DroppedRow` or `PostponedRow`. No row depends on
    another one.

    Attributes:
        lost: videos that cannot be used, as was known before training -> reason and detail.
        split: samples that are never trained on: they come out as dropped ones of the reason
            `HELD_OUT`.
        features: the run's feature files of long videos, and those of short ones where it reads
            features in place of their pixels.
    """

    rows: RowReader
    processor: Processor
    run: RunConfig
    features: Mapping[StoreName, FeatureStore] = field(default_factory=dict)
    videos: FileCache | None = None
    lost: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    split: HeldOutSplit = NOTHING_HELD_OUT
    _unlimited: HourLlavaConfig = field(init=False)
    _max_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        # Lengths are limited here and not by the model, so that a long sample has its own reason.
        config = self.processor.config
        llm = replace(config.llm, max_position_embeddings=NO_LIMIT)
        self._unlimited = replace(config, llm=llm, max_length=NO_LIMIT)
        self._max_tokens = min(config.max_length, self.run.recipe.max_length)

    def __getitem__(self, item: tuple[int, int]) -> WorkerResult:
        try:
            return self.prepare(*item)
        except Exception as error:
            if (fault := machine_fault(error)) is None:
                raise
            return PostponedRow(*item, fault)

    def prepare(
        self, epoch: int, row: int, *, measured: bool = False
    ) -> PreparedSample | DroppedRow:
        """The sample of a row.

        Args:
            measured: also give a sample that is held out.

        Raises:
            Exception: the machine is at fault (see `machine_faults`).
        """
        try:
            sample = decode(self.rows.read(row))
        except (DamagedFileError, ValueError) as error:
            known = self.rows.is_damaged(row)
            return DroppedRow(self.rows.name(row), "damaged shard", str(error), known)
        if not measured and self.split.holds(sample.video, *self.rows.place(row)):
            return DroppedRow(sample.id, HELD_OUT, "", known=True)
        if sample.video in self.lost:
            return DroppedRow(sample.id, *self.lost[sample.video], known=True)
        try:
            return self._prepare(sample, seed_of(self.run.seed, epoch, sample.id))
        except UnusableSampleError as error:
            return DroppedRow(sample.id, error.reason, error.detail)

    def question(self, row: int) -> HeldOutQuestion | None:
        """The first question of a row, or None where it cannot be asked.

        Raises:
            Exception: the machine is at fault (see `machine_faults`).
        """
        prepared = self.prepare(0, row, measured=True)
        if isinstance(prepared, DroppedRow):
            return None
        sample = decode(self.rows.read(row))
        first, answer = sample.conversations[0], sample.conversations[1]["value"]
        visuals, images = prepared.sample.visuals, sample.images
        if sample.modality == "multi_image" and first["value"].count(IMAGE_TOKEN) != len(images):
            return None
        turns = [first]
        if prepared.frames is not None:
            file = self.features[prepared.frames.store].open(prepared.frames.video)
            turns = video_prompt(turns, duration=file.duration, frames=len(prepared.frames.indices))
            features = file.read(prepared.frames.indices)
            visuals = [replace(visuals[0], features=features)]
        elif sample.video:
            return None  # to decode it once more is not worth it
        ids, labels, seen = tokenize_seen(
            turns, self.processor.tokenizer, add_generation_prompt=True
        )
        shown = seen if self.processor.config.template_tokens == "seen" else None
        prompt = SampleInputs(sample.id, ids, labels, visuals, prepared.sample.seed, shown=shown)
        return HeldOutQuestion(prompt, first["value"], answer)

    def _prepare(self, sample: Sample, seed: int) -> PreparedSample:
        if fault := text_fault(sample):  # shards of an earlier release may hold such
            raise UnusableSampleError("unusable sample", fault)
        prepare = self._prepare_video if sample.video else self._prepare_images
        prepared = prepare(sample, seed)
        try:
            length = plan_sample(prepared.sample, self._unlimited, FORGETTING).length
        except ValueError as error:
            raise UnusableSampleError("unusable sample", error) from error
        if length > self._max_tokens:
            raise UnusableSampleError(
                "too long", f"{length:,} tokens, at most {self._max_tokens:,} are trained on"
            )
        if not bool((prepared.sample.labels[1:] >= 0).any()):
            raise UnusableSampleError("unusable sample", "no token of it is supervised")
        return prepared

    def _prepare_images(self, sample: Sample, seed: int) -> PreparedSample:
        try:
            inputs = self.processor.sample(
                sample.conversations, images=sample.images, id=sample.id, seed=seed
            )
        except ValueError as error:
            raise UnusableSampleError("unusable sample", error) from error
        return PreparedSample(inputs)

    def _prepare_video(self, sample: Sample, seed: int) -> PreparedSample:
        store: StoreName = "long" if sample.kind == LONG_VIDEO_KIND else "short"
        stored = store == "long" or store in self.features
        try:
            if not stored:
                path = self._video_path(sample.video)
                inputs = self.processor.video(path, sample.conversations, id=sample.id, seed=seed)
                return PreparedSample(inputs)
            file = self._feature_file(store, sample.video)
            # Of a short video there are just the frames that would be decoded.
            shown = (
                stored_frame_indices(file.frames, file.duration)
                if store == "long"
                else np.arange(file.frames)
            )
            # Zeros of their shape that take no memory.
            shape = (len(shown), file.header.tokens, file.header.width)
            stand_in = Visual("features", features=torch.zeros(1).bfloat16().expand(shape))
            video = ReadVideo(stand_in, file.duration, file.damage)
            inputs = self.processor.about(video, sample.conversations, id=sample.id, seed=seed)
            return PreparedSample(inputs, FrameChoice(store, sample.video, shown))
        except MediaError as error:
            if machine_fault(error) is None:
                _read_through(error.path)
            raise UnusableSampleError(f"video {error.reason.replace('_', ' ')}", error) from error
        except FileNotFoundError as error:
            if machine_fault(error):
                raise
            reason = "features missing" if stored else "video missing"
            raise UnusableSampleError(reason, error) from error
        except UnusableSampleError:
            raise
        except (ValueError, OSError) as error:
            if machine_fault(error):
                raise
            raise UnusableSampleError("unusable sample", error) from error

    def _video_path(self, name: str) -> str:
        if self.videos is None:
            raise ValueError("the run's videos_root is empty, but its samples name short videos")
        path, storage = self.videos.path(name), self.videos.storage
        if not path.exists() and storage.is_local and (fault := gone(Path(storage.root))):
            raise fault
        return os.fspath(path)

    def _feature_file(self, store: StoreName, video: str) -> FeatureFile:
        if store not in self.features:
            raise ValueError("the run's features_root is empty, but its samples name long videos")
        try:
            return self.features[store].open(video)
        except ValueError as error:
            raise UnusableSampleError("features damaged", error) from error


def _read_through(path: str) -> None:
    """Read a file that no decoder can use: a disk that does not give its bytes is at fault, not
    they.
    """
    with open(path, "rb") as file:
        while file.read(1 << 22):
            pass


def sample_dataset(
    run: RunConfig,
    rows: RowReader,
    processor: Processor,
    lost: Mapping[str, tuple[str, str]],
    split: HeldOutSplit,
) -> SampleDataset:
    """What the workers of a run's loader read from."""
    videos = (
        FileCache(Storage(run.videos_root), shard_cache(run), run.shard_cache_bytes)
        if run.videos_root
        else None
    )
    return SampleDataset(
        rows, processor, run, features=feature_stores(run), videos=videos, lost=lost, split=split
    )


def shard_cache(run: RunConfig) -> Path | None:
    """Where copies of remote shards and short videos are kept, where the run says it."""
    return Path(run.shard_cache) if run.shard_cache else None


def feature_stores(run: RunConfig) -> dict[StoreName, FeatureStore]:
    """The run's feature files; copies of remote ones share one cache."""
    roots: dict[StoreName, str] = {
        "long": run.features_root,
        "short": run.short_video_features_root,
    }
    return {
        name: FeatureStore(
            Storage(root), cache=run.features_cache, max_bytes=run.features_cache_bytes
        )
        for name, root in roots.items()
        if root
    }
