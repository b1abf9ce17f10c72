"""Named jobs: what a person wants done, in the order the graph needs."""

from __future__ import annotations

import dagster as dg

from training.samples import LLAVA_KINDS, LONG_VIDEO_KIND


def step_executor() -> dg.ExecutorDefinition:
    """Steps as processes forked from one that has already imported the code location: each starts fast, dies alone."""
    return dg.multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": ["dagster", "pipeline.definitions"]}}}
    )


def _job(name: str, assets: list[str], description: str, executor: dg.ExecutorDefinition | None = None):
    return dg.define_asset_job(
        name, selection=dg.AssetSelection.assets(*assets), description=description, executor_def=executor
    )


# One step, or several short ones that share an import of seconds: the run's own process does them.
_IN_ONE_PROCESS = dg.in_process_executor

JOBS = [
    _job(
        "collect_sources",
        ["annotations", "catalogue", "llava_onevision", "llava_video"],
        "Read the annotations, list the videos they need, and fetch the two LLaVA collections.",
    ),
    _job("acquire_videos", ["videos"], "Fetch the long videos of one source and one part.", _IN_ONE_PROCESS),
    _job("shard_llava", list(LLAVA_KINDS), "Write one part of the five kinds of LLaVA shards.", _IN_ONE_PROCESS),
    _job(
        "shard_long_videos",
        ["conversations", LONG_VIDEO_KIND],
        "Group the questions of one part and write its shards.",
        _IN_ONE_PROCESS,
    ),
    _job(
        "export_annotations",
        ["videomarathon_json"],
        "Write the grouped conversations of all parts as one file in LLaVA's format.",
        _IN_ONE_PROCESS,
    ),
    _job(
        "train_to_stage2",
        ["base_model", "stage1", "stage2", "vision_encoder"],
        "Train stages 1 and 2 of one variant and export its vision encoder.",
    ),
    _job("extract_features", ["features"], "Make the features of one variant and one part.", _IN_ONE_PROCESS),
    _job("mix", ["hourllava_s3"], "Renew the stage-3 mixture over all parts.", _IN_ONE_PROCESS),
    _job("train_stage3", ["stage3", "evaluation"], "Train stage 3 of one variant and score every stage."),
]
