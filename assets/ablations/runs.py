"""How the arms of a study are trained: which products they read, and the runs.

A run is one of stage 3's recipe from a common start, with the arm's change and seed; the data, the
loop and the export are those of the stages. All arms read the same rows, but for those that ask
about the mixture itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from assets.checkpoints.runs import (
    feature_products,
    placed,
    refuse_other_encoder,
    shard_products,
    stage_values,
    start_values,
)
from assets.deployment.ablation import (
    VIDEO_KINDS,
    Ablation,
    Arm,
    of_key,
    pretrains,
)
from assets.deployment.settings import Settings
from assets.deployment.variants import encoder_from
from assets.records.lineage import Lineage, product
from assets.records.withdrawals import active_parts
from assets.shards.mixture_views import read_views
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND, SHORT_VIDEO_KIND
from training.formats.storage import Storage
from training.run_config import RunConfig

STAGE = 3  # whose recipe the arms are trained by
PRETRAINING = 1  # the stage that an arm with another MemAug trains for itself


def study_of(settings: Settings) -> tuple[str, Ablation]:
    """The variant and the settings of the study.

    Raises:
        ValueError: the settings hold none.
    """
    if settings.ablation is None:
        raise ValueError("the settings have no section `ablation`; `ablation: {}` is a whole one")
    (variant,) = settings.variants
    return variant, settings.ablation


def arms_of(settings: Settings) -> dict[str, Arm]:
    """The arms of the study by name, the reference first."""
    variant, study = study_of(settings)
    return study.chosen(settings.variants[variant].preset, settings.training.long_videos_only)


def arm_of(settings: Settings, key: str) -> tuple[Arm, int]:
    """The arm and the seed of a partition."""
    name, seed = of_key(key)
    return arms_of(settings)[name], seed


def start_asset(settings: Settings) -> str:
    """The asset that all arms start from."""
    variant, study = study_of(settings)
    trained = settings.variants[variant].stages
    return study.start or ("stage1" if PRETRAINING in trained else "base_model")


def needs_pretraining(settings: Settings, key: str) -> bool:
    """Whether an arm trains stage 1 for itself."""
    variant, _ = study_of(settings)
    arm, _ = arm_of(settings, key)
    return pretrains(arm, settings.variants[variant].preset, start_asset(settings))


def read_products(settings: Settings, storage: Storage, key: str) -> list[str]:
    """The products that a run of an arm is made from."""
    variant, _ = study_of(settings)
    shared = feature_products(settings, variant, active_parts(storage))
    shared += [*shard_products(STAGE), product("vision_encoder", variant)]
    if needs_pretraining(settings, key):
        return [product("base_model", variant), *shard_products(PRETRAINING), *shared]
    return [product(start_asset(settings), variant), *shared]


def pretraining_run(
    settings: Settings, storage: Storage, key: str, inputs: Mapping[str, str]
) -> tuple[RunConfig, str]:
    """Stage 1 of an arm with a MemAug of its own, and the folder below the root."""
    variant, _ = study_of(settings)
    arm, seed = arm_of(settings, key)
    values = stage_values(settings, storage, variant, PRETRAINING, inputs)
    # It reads no features, whatever else the arm reads.
    values |= {"features_version": None}
    values |= start_values(storage, product("base_model", variant), inputs)
    values |= settings.training.overrides.get(f"stage{PRETRAINING}", {})
    values |= _own(arm, seed)
    return placed(settings, storage, values, _folder(variant, key, f"stage{PRETRAINING}-"))


def arm_run(
    settings: Settings,
    storage: Storage,
    key: str,
    inputs: Mapping[str, str],
    pretrained: tuple[str, str] | None = None,
) -> tuple[RunConfig, str]:
    """The run of an arm with one of its seeds, and the folder below the root.

    Args:
        inputs: versions of `read_products`.
        pretrained: export folder and version of the arm's own stage 1.

    Raises:
        ValueError: the mixture has fewer rows than the settings ask for.
    """
    variant, study = study_of(settings)
    arm, seed = arm_of(settings, key)
    values = stage_values(settings, storage, variant, STAGE, inputs)
    if pretrained is None:
        start = start_asset(settings)
        values |= start_values(storage, product(start, variant), inputs)
    else:
        start = f"stage{PRETRAINING}"
        values |= {"start": pretrained[0], "start_version": pretrained[1]}
    if start != encoder_from(settings.variants[variant]):
        # The features were made by this one, and the export is to answer about videos.
        folder = Lineage.read(storage, product("vision_encoder", variant)).folder
        values |= {"vision_start": str(storage.local_folder(folder))}
    values |= settings.training.overrides.get(f"stage{STAGE}", {})
    values |= {**study.overrides, **_own(arm, seed)}
    refuse_other_encoder(settings, storage, variant, product(start, variant), values, inputs)
    rows = rows_of(study, arm, kind_totals(storage), settings.training.long_videos_only)
    if rows:
        values |= {"rows": rows, "streams": _with_rows(storage, values["streams"], rows)}
    return placed(settings, storage, values, _folder(variant, key))


def rows_of(
    study: Ablation, arm: Arm, totals: Mapping[str, int], long_videos_only: bool
) -> dict[str, int]:
    """How many rows of each kind an arm reads; of kinds that are not named, all.

    Args:
        totals: rows of each kind in the mixture.

    Raises:
        ValueError: there are not as many.
    """
    long, short = totals.get(LONG_VIDEO_KIND, 0), totals.get(SHORT_VIDEO_KIND, 0)
    if long_videos_only:
        wanted = {LONG_VIDEO_KIND: study.videos} if study.videos is not None else {}
    else:
        # So many that each arm can be of long or of short videos alone.
        videos = min(long, short) if study.videos is None else study.videos
        of_long = round(videos * arm.long)
        wanted = {LONG_VIDEO_KIND: of_long, SHORT_VIDEO_KIND: videos - of_long}
    wanted |= study.others
    for kind, count in wanted.items():
        if count > totals.get(kind, 0):
            setting = "videos" if kind in VIDEO_KINDS else "others"
            raise ValueError(
                f"ablation.{setting}: the arm needs {count:,} rows of {kind}, and the mixture has "
                f"{totals.get(kind, 0):,}; set fewer"
            )
    return wanted


def kind_totals(storage: Storage) -> dict[str, int]:
    """Rows of each kind in the mixture."""
    totals: dict[str, int] = {}
    for view in read_views(storage):
        for entry in view:
            kind = entry["raw_data"]["basename"].partition("/")[0].rpartition("_part")[0]
            totals[kind] = totals.get(kind, 0) + entry["samples"]
    return totals


def _with_rows(
    storage: Storage, streams: list[dict[str, Any]], rows: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The streams of the mixture that still have rows: one of long videos alone has none where an
    arm reads none of them.
    """
    from training.data.shard_index import Shard, first_rows

    shards = [
        Shard(number, entry["raw_data"]["basename"], entry["samples"], 0, "")
        for number, view in enumerate(read_views(storage))
        for entry in view
    ]
    counts = first_rows(shards, rows)
    left = {shard.stream for shard, count in zip(shards, counts, strict=True) if count}
    return [stream for number, stream in enumerate(streams) if number in left]


def _own(arm: Arm, seed: int) -> dict[str, Any]:
    """What an arm and its seed set of a run. Seeds are the same in all arms."""
    changes = {name: value for name, value in asdict(arm.model).items() if value is not None}
    return {"seed": f"ablation {seed}", "model": changes or None}


def _folder(variant: str, key: str, prefix: str = "") -> Callable[[str], str]:
    return lambda name: layout.ablation_folder(variant, key, f"{prefix}{name}")
