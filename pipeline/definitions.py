"""The code location: every asset, job and resource of a deployment.

Loading it never imports torch.
"""

from __future__ import annotations

import os
import warnings

import dagster as dg

from assets.ablations import assets as ablations
from assets.annotations import assets as annotation_assets
from assets.captions import assets as captions
from assets.checkpoints import assets as checkpoints
from assets.collections import assets as collections
from assets.conversations import assets as conversations
from assets.deployment.resources import Deployment
from assets.deployment.settings import CONFIG_VARIABLE, DEFAULT_CONFIG
from assets.evaluation import assets as evaluation
from assets.features import assets as features
from assets.questions import assets as questions
from assets.shards import assets as shards
from assets.tracing import assets as tracing
from assets.videos import assets as videos
from pipeline.backfill import everything_for_variant
from pipeline.executors import step_executor
from pipeline.fine_tuning import fine_tune_job
from pipeline.front_page import tell_front_page
from pipeline.integrity import intact_checks
from pipeline.jobs import JOBS
from pipeline.look_up import look_up_video
from pipeline.parts import part_jobs
from pipeline.schedules import check_integrity_nightly, download_nightly
from pipeline.sensors import SENSORS
from pipeline.telling import TELLING
from pipeline.withdraw import withdraw_job

ROOMS = [
    tracing,
    captions,
    questions,
    annotation_assets,
    collections,
    videos,
    conversations,
    shards,
    checkpoints,
    features,
    evaluation,
    ablations,
]


@dg.definitions
def definitions() -> dg.Definitions:
    """Everything that Dagster shows and runs for the deployment of `HOURLLAVA_CONFIG`."""
    assets = dg.load_assets_from_modules(ROOMS, include_specs=True)
    with warnings.catch_warnings():
        # Dagster calls the links from the UI to the code a beta feature.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = dg.with_source_code_references(assets)
    config = os.environ.get(CONFIG_VARIABLE) or str(DEFAULT_CONFIG)
    # These jobs resolve the graph when they run: they are themselves part of the definitions.
    made = dg.Definitions(
        assets=assets,
        jobs=[
            *JOBS,
            everything_for_variant(lambda: made.resolve_asset_graph()),
            fine_tune_job(lambda: made.resolve_asset_graph()),
            *part_jobs(lambda: made.resolve_asset_graph()),
            look_up_video,
            withdraw_job(lambda: made.resolve_asset_graph()),
        ],
        asset_checks=intact_checks(assets),
        schedules=[download_nightly, check_integrity_nightly],
        sensors=[*SENSORS, *TELLING, tell_front_page],
        resources={"deployment": Deployment(config=config)},
        executor=step_executor(assets),
    )
    return made
