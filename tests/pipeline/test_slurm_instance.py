"""A running ``hourllava ui`` whose step is a job of a real Slurm and holds its pool's only place:
killed, restarted, terminated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.demo.instance import REPOSITORY, dagster
from tests.servers.slurm import (
    SlurmCluster,
    environment_of,
    kill_all,
    missing_programs,
    slurm_cluster,
)

LOCATION = """
from pathlib import Path
import dagster as dg
from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Settings
from assets.engines.call import call
from tests.assets.engines.test_call import write_when_allowed

FOLDER = Path({folder!r})
settings = Settings.model_construct(
    compute=Compute(gpu=Pool(engine="slurm"), folder=FOLDER / "jobs", poll_s=0.2)
)

@dg.asset(pool="gpu")
def features(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    call(context, settings, "gpu", None, write_when_allowed, FOLDER, context.log.info)
    return dg.MaterializeResult()

forked = {{"start_method": {{"forkserver": {{"preload_modules": ["pipeline.fork_server"]}}}}}}
defs = dg.Definitions(
    assets=[features],
    jobs=[dg.define_asset_job("make", selection="*")],
    executor=dg.multiprocess_executor.configured(forked),
)
"""
TERMINATE = """
mutation T($id: String!) { terminateRun(runId: $id) {
  __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""
LOGS = """
query L($id: ID!) { logsForRun(runId: $id, limit: 1000) {
  ... on EventConnection { events { ... on MessageEvent { message } } } } }"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Iterator[SlurmCluster]:
    if missing := missing_programs():
        pytest.skip(f"no Slurm here ({', '.join(missing)}); `make slurm` installs it")
    with slurm_cluster(tmp_path / "cluster") as running:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, running.environment[name])
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # of the function in tests/
        yield running


def until(reached, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)
    return found


def dagster_processes(home: Path) -> list[int]:
    """Everything that `hourllava ui` started, but what Slurm runs."""
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if environment_of(process).get("DAGSTER_HOME") == str(home)
        and "SLURM_JOB_ID" not in environment_of(process)
    ]


def kill_dagster(home: Path) -> list[int]:
    """Kill what there is of it; what was there, since a process may just have started another."""
    found = dagster_processes(home)
    kill_all(found)
    return found


@contextlib.contextmanager
def running_dagster(home: Path):
    workspace = home / "workspace.yaml"
    workspace.write_text(
        "load_from: [{python_file: {relative_path: location.py, location_name: hourllava}}]\n"
    )
    config = REPOSITORY / "tests/deployment.yaml"
    with dagster(config, home / "dagster.log", home, workspace) as client:
        yield client


def logs(client, run: str) -> list[str]:
    events = client.query(LOGS, id=run)["logsForRun"]["events"]
    return [event["message"] for event in events if event.get("message")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_dagster_finds_its_job_again_and_terminate_leaves_nothing(cluster, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    instance["run_monitoring"] |= {
        "poll_interval_seconds": 1,
        "free_slots_after_run_end_seconds": 1,
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(instance))
    (home / "location.py").write_text(LOCATION.format(folder=str(tmp_path)))
    with contextlib.suppress(ProcessLookupError), running_dagster(home) as client:
        killed = client.launch("make")
        until((tmp_path / "calls").exists)
        (job,) = cluster.jobs()
        until(lambda: not kill_dagster(home))
    assert cluster.jobs() == [job]

    with running_dagster(home) as client:
        until(lambda: client.runs([killed])[killed]["status"] == "FAILURE")
        assert any("is gone: Dagster or the machine was killed" in m for m in logs(client, killed))
        assert cluster.jobs() == [job]
        run = client.launch("make")
        found = f"found job {job} of an earlier run, RUNNING; it is not started twice"
        until(lambda: found in logs(client, run))
        assert cluster.jobs() == [job]
        client.query(TERMINATE, id=run)
        until(lambda: client.runs([run])[run]["status"] == "CANCELED")
        assert cluster.jobs() == []
        assert cluster.processes() == []
        assert f"job {job} has ended" in logs(client, run)
    assert len((tmp_path / "calls").read_text().split()) == 1
