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

from assets.deployment.yaml_file import read_yaml

PODS_VARIABLE = "HOURLLAVA_PODS"
POOLS = ("gpu", "download", "endpoint", "cpu")
# Steps are forked from a process that has imported these, so that each starts fast. The last one
# makes steps die with their run.
PRELOADED = ["dagster", "pipeline.definitions", "pipeline.fork_server"]


def step_executor(assets: Iterable[Any]) -> dg.ExecutorDefinition:
    """The executor of every job that names none.

    Args:
        assets: what the code location holds; those with a pool get its pod on a cluster.

    Raises:
        ValueError: the file of pods names a pool that there is not.
        DagsterInvalidConfigError: a pod of the file does not fit Dagster's schema.
    """
    if pods := os.environ.get(PODS_VARIABLE):
        return pod_executor(Path(pods), assets)
    return dg.multiprocess_executor.configured(
        {"start_method": {"forkserver": {"preload_modules": PRELOADED}}}
    )


def single_process_executor() -> dg.ExecutorDefinition | None:
    """For jobs of one step, or of several short ones: the run's own process does them.

    It spares a fork server, and with it an import of some seconds.

    Returns:
        None on a cluster, where the step needs the pod of its pool.
    """
    return None if os.environ.get(PODS_VARIABLE) else dg.in_process_executor


def pod_executor(pods: Path, assets: Iterable[Any]) -> dg.ExecutorDefinition:
    """Runs each step in a pod of its own, configured by its asset's pool.

    Args:
        pods: YAML: pool -> what Dagster's `k8s_job_executor` takes for a step.
    """
    from dagster_k8s import k8s_job_executor  # an extra, installed for clusters only

    by_pool = read_yaml(pods) or {}
    if unknown := sorted(set(by_pool) - set(POOLS)):
        raise ValueError(
            f"{pods}: there is no pool {', '.join(unknown)}; the pools are {', '.join(POOLS)}"
        )
    steps = {item.op.name: item.op.pool for item in assets if isinstance(item, dg.AssetsDefinition)}
    configured = {step: by_pool[pool] for step, pool in steps.items() if pool in by_pool}
    return k8s_job_executor.configured({"per_step_k8s_config": configured})
