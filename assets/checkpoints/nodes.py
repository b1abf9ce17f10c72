"""On how many nodes of a cluster a stage can train: their ranks share its global batch evenly."""

from __future__ import annotations

from assets.deployment.compute import Pool
from assets.deployment.settings import Settings, Training
from training.run_config import RunConfig


def ranks_of_node(training: Training, pool: Pool) -> int:
    """How many ranks of a stage a node of the pool has."""
    return pool.gpus_per_node or training.processes


def ranks_of_stage(settings: Settings) -> int:
    """How many ranks train a stage, before any node is lost."""
    training, pool = settings.training, settings.compute.gpu
    if pool.is_slurm:
        return pool.nodes * ranks_of_node(training, pool)
    return training.processes * training.nodes


def refuse_nodes(run: RunConfig, pool: Pool, ranks: int) -> None:
    """Stop where the pool asks for a number of nodes that the run cannot use, or where there would
    be none to go on with after a lost node although `least_nodes` wants that.

    Args:
        ranks: of a node.

    Raises:
        ValueError: which numbers of nodes fit.
    """
    total = run.recipe.global_batch
    fitting = [nodes for nodes in range(1, total + 1) if run.is_shared_by(nodes * ranks)]
    if not fitting:
        run.batches(pool.nodes * ranks)
    known = f"numbers of nodes that fit: {', '.join(map(str, fitting))}"
    where = f"{run.variant}, stage {run.stage}"
    if pool.nodes not in fitting:
        raise ValueError(
            f"compute.gpu.nodes is {pool.nodes}, and {pool.nodes} x {ranks} ranks cannot share the "
            f"global batch {total} of {where} evenly; {known}. Set nodes, gpus_per_node or "
            "global_batch"
        )
    least = pool.least_nodes or pool.nodes
    if least < pool.nodes and not any(least <= nodes < pool.nodes for nodes in fitting):
        raise ValueError(
            f"compute.gpu.least_nodes is {least}, and no number of nodes from there to below "
            f"{pool.nodes} has ranks, {ranks} on each, that can share the global batch {total} of "
            f"{where} evenly; {known}. Set a lower least_nodes, or leave it out"
        )
