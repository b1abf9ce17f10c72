"""What a stage is run on: which checkpoint it starts from, which shards feed it, where its results
go.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from assets.deployment.settings import Settings
from assets.records.lineage import Lineage, product
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage
from training.recipes import STAGES, ShardInput, stage_inputs
from training.run_config import RunConfig, parse_run


def previous_asset(stage: int) -> str:
    """The asset that a stage starts from."""
    return "base_model" if stage == 1 else f"stage{stage - 1}"


def previous_checkpoint(variant: str, stage: int) -> str:
    """The product that a stage of a variant starts from."""
    return product(previous_asset(stage), variant)


def shard_products(stage: int) -> list[str]:
    """The shard products that feed a stage, or the mixture that it reads them through."""
    if STAGES[stage].reads_long_videos:
        return [layout.MIXTURE]
    inputs = [item for stream in stage_inputs(stage, long_parts=()) for item in stream]
    return [product(item.kind, f"part{item.part}") for item in inputs]


def stage_run(
    settings: Settings,
    storage: Storage,
    variant: str,
    stage: int,
    inputs: Mapping[str, str],
) -> tuple[RunConfig, str]:
    """The run of a stage, and its folder below the storage root.

    The folder's name holds a hash of the inputs and of what this deployment overrides: the same
    inputs continue the same run, changed inputs start a new one and leave the old checkpoint where
    it is.

    Args:
        inputs: versions of the input products, by name.
    """
    row = STAGES[stage]
    overrides = settings.training.overrides.get(f"stage{stage}", {})
    folder = layout.stage_folder(variant, stage, data_version([dict(inputs), overrides])[:12])
    start = Lineage.read(storage, previous_checkpoint(variant, stage)).folder
    indexes: list[tuple[str, ...]]
    if row.reads_long_videos:
        indexes = [(f"{layout.MIXTURE}/{number}/index.json",) for number in range(len(row.streams))]
    else:
        indexes = [_indexes(stream) for stream in stage_inputs(stage, long_parts=())]
    streams = [
        {"name": name, "root": storage.path(layout.SHARDS), "indexes": of_stream}
        for name, of_stream in zip(row.streams, indexes, strict=True)
    ]
    run = parse_run(
        {
            "variant": variant,
            "stage": stage,
            "start": str(storage.local_folder(f"{start}/export")),
            "out": str(run_folder(settings, storage, folder)),
            "streams": streams,
            "features_root": storage.path(layout.features(variant)),
            "videos_root": storage.path(layout.LLAVA_VIDEO_FILES),
            **overrides,
        }
    )
    return run, folder


def run_folder(settings: Settings, storage: Storage, folder: str) -> Path:
    """Where a running stage writes: its final folder, or a scratch one when the root is remote."""
    return Path(storage.path(folder)) if storage.is_local else settings.training.scratch / folder


def publish_results(settings: Settings, storage: Storage, folder: str) -> None:
    """Upload what a finished stage made to a remote root; the resumable state stays on this
    machine.
    """
    if storage.is_local:
        return
    out = run_folder(settings, storage, folder)
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out)
        if name.parts[0] != "state":
            with storage.writing(f"{folder}/{name.as_posix()}") as temporary:
                shutil.copyfile(file, temporary)


def _indexes(stream: Sequence[ShardInput]) -> tuple[str, ...]:
    return tuple(f"{item.folder}/index.json" for item in stream)
