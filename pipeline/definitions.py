"""The code location: every asset, job and resource of a deployment. Loading it never imports torch."""

from __future__ import annotations

import os

import dagster as dg

from assets.checkpoints import assets as checkpoints
from assets.conversations import assets as conversations
from assets.evaluation import assets as evaluation
from assets.features import assets as features
from assets.resources import Deployment
from assets.settings import CONFIG_VARIABLE, DEFAULT_CONFIG
from assets.shards import assets as shards
from assets.sources import assets as sources
from assets.videos import assets as videos
from pipeline.automation import SENSORS
from pipeline.jobs import JOBS, step_executor

ROOMS = [sources, videos, conversations, shards, checkpoints, features, evaluation]


@dg.definitions
def definitions() -> dg.Definitions:
    return dg.Definitions(
        assets=dg.load_assets_from_modules(ROOMS, include_specs=True),
        jobs=JOBS,
        sensors=SENSORS,
        resources={"deployment": Deployment(config=os.environ.get(CONFIG_VARIABLE) or str(DEFAULT_CONFIG))},
        executor=step_executor(),
    )
