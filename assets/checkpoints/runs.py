"""What a stage is run on: which checkpoint it starts from, which shards feed it, where its results
go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from assets.deployment.settings import Settings
from assets.deployment.variants import encoder_from, previous
from assets.records.lineage import Lineage, product
from assets.shards.mixture_views import mixed_streams
from model.atomic import TEMPORARY_PREFIX, writing_file
from training.checkpoint_folder import COMMITTED_NAME, committed, step_of
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import DAMAGED
from training.formats.storage import Storage
from training.recipes import STAGES, ShardInput, stage_inputs
from training.run_config import RunConfig, parse_run
from training.run_folder import EARLIER, IDENTITY_NAME, RESULT_NAME, STATE_FOLDER
from training.run_identity import identity_of, short_name
from training.run_lock import HOLDER_NAME, LOCK_NAME


def previous_checkpoint(settings: Settings, variant: str, stage: int) -> str:
    """The product that a stage of a variant starts from."""
    return product(previous(settings.variants[variant], stage), variant)


def shard_products(stage: int) -> list[str]:
    """The shard products that feed a stage, or the mixture that it reads them through."""
    if STAGES[stage].reads_long_videos:
        return [layout.MIXTURE]
    inputs = [item for stream in stage_inputs(stage, long_parts=()) for item in stream]
    return [product(item.kind, f"part{item.part}") for item in inputs]


def feature_products(settings: Settings, variant: str, parts: Sequence[str]) -> list[str]:
    """The products of features that stage 3 of a variant reads.

    Args:
        parts: of the long videos.
    """
    short = settings.short_video_parts
    return [
        *(product("features", f"{part}|{variant}") for part in parts),
        *(product("short_video_features", f"{part}|{variant}") for part in short),
    ]


def stage_run(
    settings: Settings,
    storage: Storage,
    variant: str,
    stage: int,
    inputs: Mapping[str, str],
) -> tuple[RunConfig, str]:
    """The run of a stage, and its folder below the storage root.

    The folder is named after the run's identity (`training.run_identity`): the same contents and
    steps continue the same run, wherever the root is mounted and whatever else is set; others start
    a new one and leave the old checkpoint where it is.

    Args:
        inputs: versions of the input products, by name.
    """
    before = previous_checkpoint(settings, variant, stage)
    values = stage_values(settings, storage, variant, stage, inputs)
    values |= start_values(storage, before, inputs)
    values |= settings.training.overrides.get(f"stage{stage}", {})
    refuse_other_encoder(settings, storage, variant, before, values, inputs)
    return placed(settings, storage, values, lambda name: layout.stage_folder(variant, stage, name))


def refuse_other_encoder(
    settings: Settings,
    storage: Storage,
    variant: str,
    before: str,
    values: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> None:
    """Stop where features of short videos are not what the run's own vision encoder would give.

    Args:
        before: the product that the run starts from.
        values: of the run.
        inputs: versions of what it is made from.

    Raises:
        ValueError: they were made by another encoder; it says what to materialize.
    """
    if not values.get("short_video_features_root"):
        return
    name = product("vision_encoder", variant)
    encoder = Lineage.read(storage, name)
    chosen = values.get("vision_start")
    of_start = product(encoder_from(settings.variants[variant]), variant) == before
    own = chosen == str(storage.local_folder(encoder.folder)) if chosen else of_start
    if not own or (not chosen and encoder.inputs.get(before) != inputs[before]):
        raise ValueError(
            f"features.short_videos: the run's vision encoder is not {name}, which made the "
            f"features; materialize {name} and short_video_features again, or take vision_start "
            "out of training.overrides"
        )
    for made in feature_products(settings, variant, ()):
        if Lineage.read(storage, made).inputs.get(name) != encoder.version:
            raise ValueError(
                f"{made} was made by another vision encoder than {name} is today; materialize "
                "it again"
            )


def start_values(storage: Storage, before: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """The values of a run that starts from the product `before`, one of `inputs`."""
    folder = Lineage.read(storage, before).folder
    return {
        "start": str(storage.local_folder(f"{folder}/export")),
        "start_version": inputs[before],
    }


def placed(
    settings: Settings,
    storage: Storage,
    values: Mapping[str, Any],
    folder_of: Callable[[str], str],
) -> tuple[RunConfig, str]:
    """A run and its folder below the storage root, named after the run's identity.

    Args:
        values: of the run, as JSON has them, without `out`.
        folder_of: the identity's short name -> the folder.
    """
    run = parse_run({**values, "out": ""})
    folder = folder_of(short_name(identity_of(run, str(run.start_version))))
    return replace(run, out=str(run_folder(settings, storage, folder))), folder


def stage_values(
    settings: Settings,
    storage: Storage,
    variant: str,
    stage: int,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """The values of any run by the recipe of a stage, but for its start and its folder."""
    row = STAGES[stage]
    indexes: dict[str, tuple[str, ...]]
    if row.reads_long_videos:
        names = mixed_streams(settings.training.long_videos_only)
        views = [(f"{layout.MIXTURE}/{number}/index.json",) for number in range(len(names))]
        indexes = dict(zip(names, views, strict=True))
    else:
        parts = [_indexes(stream) for stream in stage_inputs(stage, long_parts=())]
        indexes = dict(zip(row.streams, parts, strict=True))
    streams = [
        {"name": name, "root": storage.path(layout.SHARDS), "indexes": of_stream}
        for name, of_stream in indexes.items()
    ]
    short = row.reads_long_videos and settings.features.short_videos
    return {
        "variant": settings.variants[variant].preset,
        "stage": stage,
        "streams": streams,
        "features_root": storage.path(layout.features(variant)),
        "features_version": _features_version(inputs),
        "short_video_features_root": (
            storage.path(layout.short_video_features(variant)) if short else ""
        ),
        "videos_root": storage.path(layout.LLAVA_VIDEO_FILES),
    }


def _features_version(inputs: Mapping[str, str]) -> str | None:
    """Content of all features that a run reads; None where it reads none."""
    kinds = ("features[", "short_video_features[")
    found = {name: version for name, version in inputs.items() if name.startswith(kinds)}
    return data_version(found) if found else None


def run_folder(settings: Settings, storage: Storage, folder: str) -> Path:
    """Where a running stage writes: its final folder, or a scratch one when the root is remote."""
    return Path(storage.path(folder)) if storage.is_local else settings.training.scratch / folder


def restore_results(settings: Settings, storage: Storage, folder: str) -> None:
    """Fetch what a stage left on a remote root, where this machine holds nothing of the run: the
    results of a finished one, else its newest checkpoint. Otherwise it would be trained again.
    """
    out = run_folder(settings, storage, folder)
    if storage.is_local or (out / STATE_FOLDER).exists() or (out / RESULT_NAME).exists():
        return
    names = [name for name in storage.list(folder) if _leaves(name.removeprefix(f"{folder}/"))]
    last = RESULT_NAME
    if f"{folder}/{RESULT_NAME}" not in names:
        if (state := newest_uploaded(storage, folder)) is None:
            return
        names += storage.list(state)
        last = COMMITTED_NAME
    for name in sorted(names, key=lambda name: name.endswith(f"/{last}")):
        with writing_file(out / name.removeprefix(f"{folder}/")) as temporary:
            storage.fs.get_file(storage.path(name), str(temporary))


def publish_results(settings: Settings, storage: Storage, folder: str) -> None:
    """Upload what a finished stage made to a remote root, `result.json` last; the resumable state
    stays on this machine, and what was uploaded of it goes.
    """
    if storage.is_local:
        return
    files = results(run_folder(settings, storage, folder), folder)
    result = f"{folder}/{RESULT_NAME}"
    storage.upload({name: path for name, path in files.items() if name != result})
    storage.upload({result: files[result]})
    storage.remove(f"{folder}/{STATE_FOLDER}")


def results(out: Path, folder: str) -> dict[str, Path]:
    """What a run in `out` has made but its own state, by its name below the root."""
    return {
        f"{folder}/{file.relative_to(out).as_posix()}": file
        for file in sorted(out.rglob("*"))
        if file.is_file() and _leaves(file.relative_to(out).as_posix())
    }


def newest_uploaded(storage: Storage, folder: str) -> str | None:
    """The newest whole checkpoint of a running stage on a remote root; None where there is none."""
    suffix = f"/{COMMITTED_NAME}"
    found = [
        PurePosixPath(name).parent
        for name in storage.list(f"{folder}/{STATE_FOLDER}")
        if name.endswith(suffix)
    ]
    return str(max(found, key=lambda path: step_of(Path(path)))) if found else None


def _leaves(name: str) -> bool:
    """Whether a file of a run's folder is more than the running run's own."""
    top = name.partition("/")[0]
    own = (STATE_FOLDER, DAMAGED, layout.STAMPS, LOCK_NAME, HOLDER_NAME)
    return top not in own and not top.startswith((EARLIER, TEMPORARY_PREFIX))


def unfinished_before(out: Path) -> list[Path]:
    """Folders beside a new run's with unfinished runs of a release before identities: their names
    were made otherwise, so nothing goes on in them by itself.
    """
    if (out / STATE_FOLDER).exists():
        return []
    return [
        path
        for path in sorted(out.parent.glob("*"))
        if path != out
        and committed(path / STATE_FOLDER)
        and not any((path / name).exists() for name in (IDENTITY_NAME, RESULT_NAME))
    ]


def _indexes(stream: Sequence[ShardInput]) -> tuple[str, ...]:
    return tuple(f"{item.folder}/index.json" for item in stream)
