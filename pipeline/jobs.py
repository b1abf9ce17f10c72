"""Named jobs: what a person wants done. Their numbers are the order of use, also in the UI's lists.

A job is materialized for one partition (or for none), because a Dagster run has one: assets whose
partitions differ cannot share a job. The job `02_everything_for_variant` (`pipeline/backfill.py`)
spans them by starting a backfill.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.deployment.graph import (
    ABLATION,
    COLLECTIONS,
    HOLDS_OUT,
    LLAVA_READ,
    SHORT_VIDEO_PARTS,
)
from assets.deployment.partitions import stage_partitions, variant_partitions
from pipeline.executors import single_process_executor
from pipeline.integrity import check_integrity, without_intact
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND

_SINGLE_PROCESS = single_process_executor()


def _job(
    name: str,
    step: str,
    assets: Sequence[str],
    description: str,
    executor: dg.ExecutorDefinition | None = None,
) -> UnresolvedAssetJobDefinition:
    """A job; `step` becomes the tag `hourllava/step`, which finds its runs in the UI."""
    return dg.define_asset_job(
        name,
        selection=without_intact(*assets),
        description=description,
        tags={"hourllava/step": step},
        executor_def=executor,
    )


ACQUIRE_VIDEOS = _job(
    "04_acquire_videos",
    "data",
    ["videos"],
    "Fetch the long videos of one source and one part. Run it again to retry what failed in "
    "passing: finished files are never fetched again. The schedule download_nightly does so "
    "every evening.",
    _SINGLE_PROCESS,
)


def _shard_llava() -> Iterator[UnresolvedAssetJobDefinition]:
    if LLAVA_READ:
        yield _job(
            "03_shard_llava",
            "shards",
            LLAVA_READ,
            "Write one part of the kinds of LLaVA shards that are trained on. All ten parts: "
            "backfill it.",
            _SINGLE_PROCESS,
        )


def _ablations() -> Iterator[UnresolvedAssetJobDefinition]:
    if ABLATION is None:
        return
    yield _job(
        "13_ablate",
        "training",
        ["ablation", "ablation_scores"],
        "Train and score one arm of the ablations with one seed. All of them: backfill it, or run "
        "`hourllava ablate --config` with these settings.",
        _SINGLE_PROCESS,
    )
    yield _job(
        "14_compare_arms",
        "training",
        ["ablation_table"],
        "Put all arms that were scored into one table.",
        _SINGLE_PROCESS,
    )


def _early_stages() -> Iterator[UnresolvedAssetJobDefinition]:
    """Jobs up to the vision encoder. The assets of one have the same variants: where some start
    later than others, a stage and what every variant has are made by different jobs.
    """
    partitions = {
        "base_model": variant_partitions,
        **{f"stage{stage}": of_stage for stage, of_stage in stage_partitions.items()},
        "vision_encoder": variant_partitions,
    }

    def alike(assets: Sequence[str], to: str) -> list[str]:
        return [name for name in assets if partitions.get(name) == partitions[to]]

    late = any(partitions.get(name) != variant_partitions for name in ("stage1", "stage2"))
    if late:
        yield _job(
            "06_prepare_start",
            "training",
            ["base_model", "vision_encoder"],
            "Get the checkpoint that one variant starts from, and its vision encoder. Where the "
            "variant trains stage 2, the encoder comes after that.",
        )
    if 1 in stage_partitions:
        yield _job(
            "06_train_stage1",
            "training",
            alike(["base_model", "stage1"], "stage1"),
            "Get the starting point of one variant and train stage 1 on single images. Stopped or "
            "killed, it goes on from its newest checkpoint when it is run again.",
        )
    if 2 in stage_partitions:
        yield _job(
            "07_train_to_stage2",
            "training",
            alike(["base_model", "stage1", "stage2", "vision_encoder"], "stage2"),
            "Train stages 1 and 2 of one variant and export its vision encoder. Needs the LLaVA "
            "shards.",
        )


def _short_video_features() -> Iterator[UnresolvedAssetJobDefinition]:
    if SHORT_VIDEO_PARTS:
        yield _job(
            "08_extract_short_video_features",
            "features",
            ["short_video_features"],
            "Make the features of one variant and the short videos of one LLaVA part, which stage "
            "3 reads. All of its parts: backfill it.",
            _SINGLE_PROCESS,
        )


JOBS: list[UnresolvedAssetJobDefinition | dg.JobDefinition] = [
    _job(
        "01_collect_sources",
        "data",
        ["annotations", "catalogue", *COLLECTIONS],
        "Where to begin: read the annotations, list the videos they need, and fetch the "
        "LLaVA collections that are trained on. The catalogue registers the parts that the other "
        "jobs are run for.",
    ),
    ACQUIRE_VIDEOS,
    *_shard_llava(),
    _job(
        "05_shard_long_videos",
        "shards",
        ["conversations", LONG_VIDEO_KIND],
        "Group the questions of one part and write its shards; the part's videos of every source "
        "come first.",
        _SINGLE_PROCESS,
    ),
    _job(
        "12_export_annotations",
        "data",
        ["videomarathon_json"],
        "Write the grouped conversations of all parts as one file in LLaVA's format, for people "
        "and other tools.",
        _SINGLE_PROCESS,
    ),
    *_early_stages(),
    _job(
        "08_extract_features",
        "features",
        ["features"],
        "Make the features of one variant and one part. Needs the variant's vision encoder and "
        "the part's videos; files whose video and encoder are unchanged are not made again.",
        _SINGLE_PROCESS,
    ),
    *_short_video_features(),
    _job(
        "09_mix",
        "shards",
        [layout.MIXTURE, *(["held_out_questions"] if HOLDS_OUT else [])],
        "Renew the stage-3 mixture over all parts, and the held-out questions where there are any.",
        _SINGLE_PROCESS,
    ),
    _job(
        "10_train_stage3",
        "training",
        ["stage3", "evaluation"],
        "Train stage 3 of one variant and score every stage. Needs stage 2, the mixture, and "
        "features of every part.",
    ),
    _job(
        "11_evaluate",
        "training",
        ["evaluation"],
        "Score every stage of one variant on the held-out questions again, without training "
        "anything.",
        _SINGLE_PROCESS,
    ),
    *_ablations(),
    check_integrity,
]
