"""A stage as jobs of a real Slurm of two nodes: it ends in the bytes of a local run, whatever
happens to its jobs.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import dagster as dg
import pytest

from assets.checkpoints.launcher import Torchrun
from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Training
from tests.assets.engines.test_call import until
from tests.training.generated_samples import LoaderBehaviour, make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MODULE = "tests.training.generated_samples"


def launcher(compute: Compute, processes: int = 1, **behaviour) -> Torchrun:
    return Torchrun(
        Training(processes=processes, cpu_threads=1),
        compute,
        module=MODULE,
        arguments=(LoaderBehaviour(**behaviour).json(),),
        observe_every_s=0.0,
    )


def on_slurm(folder: Path, **pool) -> Compute:
    given = {"engine": "slurm", "partition": "p", "nodes": 2, **pool}
    return Compute(gpu=Pool(**given), folder=folder / "jobs", poll_s=0.2)


def train(run, torchrun, meanwhile=lambda: None):
    """The result of the stage, and what the run's log says."""
    results = []

    @dg.asset(name="stage3")
    def stage(context) -> dg.MaterializeResult:
        results.append(torchrun.run(context, run))
        return dg.MaterializeResult()

    acting = threading.Thread(target=meanwhile)
    acting.start()
    with dg.instance_for_test() as instance:
        done = dg.materialize([stage], instance=instance, raise_on_error=False)
        logs = [entry.user_message for entry in instance.all_logs(done.run_id)]
    acting.join()
    assert done.success, logs
    return results[0], logs, done


def made(folder: Path) -> dict[str, str]:
    """Hash of every file of an export."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "out/export").iterdir())
    }


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The export of the same run by two ranks of this machine."""
    folder = tmp_path_factory.mktemp("local")
    train(make_run(folder), launcher(Compute(), processes=2))
    return made(folder)


def test_a_stage_over_two_nodes_ends_in_the_bytes_of_a_local_run(cluster, tmp_path, local):
    result, logs, done = train(make_run(tmp_path), launcher(on_slurm(tmp_path)))
    assert result["ranks"] == 2
    assert made(tmp_path) == local
    assert any("runs on n[1-2]" in line for line in logs)
    assert any(line.startswith("finished: loss") for line in logs)
    observed = [
        event.asset_observation_data.asset_observation.metadata
        for event in done.get_asset_observation_events()
    ]
    assert [found["slurm job"].value for found in observed if "slurm job" in found]
    assert "loss" in observed[-1]
    until(lambda: not cluster.processes())


def wait_for_step(folder: Path, step: int) -> None:
    metrics = folder / "out/metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= step, seconds=120)


def test_the_signal_before_the_time_limit_leads_to_the_next_job(cluster, tmp_path, local):
    """As Slurm sends it (`--signal=B:USR1@...`), at once."""

    def signal_it():
        wait_for_step(tmp_path, 2)
        cluster.run("scancel", "--batch", "--signal=USR1", *cluster.jobs())

    torchrun = launcher(on_slurm(tmp_path), pause_s=0.7)
    _, logs, _ = train(make_run(tmp_path), torchrun, signal_it)
    assert made(tmp_path) == local
    assert any("ended in time before its time limit on n[1-2]" in line for line in logs)
    assert any(line.startswith("continuing from step-") for line in logs)


def test_a_dead_node_is_followed_by_a_job_on_what_is_there(cluster, tmp_path):
    def kill_a_node():
        until(lambda: (tmp_path / "out/state/step-4/COMMITTED").exists(), seconds=120)
        cluster.kill("n2")

    torchrun = launcher(on_slurm(tmp_path, least_nodes=1), pause_s=0.7)
    result, logs, _ = train(make_run(tmp_path), torchrun, kill_a_node)
    assert result["steps"] == 8
    assert result["ranks"] == 1
    assert "continuing from step-4" in logs
    assert any("runs on n1" in line for line in logs)
