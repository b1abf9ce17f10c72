"""What runs the steps: processes of this machine, or pods of a Kubernetes cluster where
`HOURLLAVA_PODS` names a file.

That file gives a pod to each pool of work, so that only what needs a GPU holds one
(`deploy/kubernetes/config.yaml`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

PODS_VARIABLE = "HOURLLAVA_PODS"
POOLS = ("gpu", "download", "cpu")


def step_executor(assets: Iterable[Any]) -> dg.ExecutorDefinition:
    """The executor of every job that names none.

    Raises:
        ValueError: the file of pods names a pool that there is not, or does not fit Dagster's
            schema.
    """
    if pods := os.environ.get(PODS_VARIABLE):
        return pod_steps(Path(pods), assets)
    # Forked from a process that has already imported the code location: each starts fast, dies
    # alone or with its run.
    preloaded = ["dagster", "pipeline.definitions", "pipeline.forked"]
    return dg.multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": preloaded}}}
    )


def in_one_process() -> dg.ExecutorDefinition | None:
    """For jobs of one step, or of several short ones that share an import of seconds: the run's own
    process does them.

    None on a cluster, where the step needs the pod of its pool.
    """
    return None if os.environ.get(PODS_VARIABLE) else dg.in_process_executor


def pod_steps(pods: Path, assets: Iterable[Any]) -> dg.ExecutorDefinition:
    """Each step in a pod of its own, configured by its asset's pool."""
    from dagster_k8s import k8s_job_executor

    by_pool = yaml.safe_load(pods.read_text()) or {}
    if unknown := sorted(set(by_pool) - set(POOLS)):
        raise ValueError(
            f"{pods}: there is no pool {', '.join(unknown)}; the pools are {', '.join(POOLS)}"
        )
    steps = {item.op.name: item.op.pool for item in assets if isinstance(item, dg.AssetsDefinition)}
    configured = {step: by_pool[pool] for step, pool in steps.items() if pool in by_pool}
    return k8s_job_executor.configured({"per_step_k8s_config": configured})
