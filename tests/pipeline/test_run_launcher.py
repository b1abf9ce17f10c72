"""Whether a run's process is still there; and a copied history while the original runs: two running
`hourllava ui`.
"""

import json
import shutil
import subprocess
import time
from contextlib import contextmanager

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG

from pipeline.demo.client import FINISHED
from pipeline.demo.instance import REPOSITORY, dagster
from pipeline.run_launcher import INSTANCE_TAG, InstanceRunLauncher, _this_moment

SLEEPY = """
import time
import dagster as dg

@dg.op
def rest():
    for _ in range(1200):
        time.sleep(0.25)

@dg.job
def nap():
    rest()

defs = dg.Definitions(jobs=[nap])
"""
LAUNCH = """
mutation L($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """
mutation T($id: String!) { terminateRun(runId: $id) {
  __typename ... on TerminateRunFailure { message } ... on PythonError { message } } }"""


@contextmanager
def instance_in(folder):
    workspace = folder / "workspace.yaml"
    workspace.write_text(
        "load_from: [{python_file: {relative_path: sleepy.py, location_name: hourllava}}]\n"
    )
    with dagster(
        REPOSITORY / "tests/deployment.yaml", folder / "dagster.log", folder, workspace
    ) as client:
        yield client


def status(client, run: str) -> str:
    return client.runs([run]).get(run, {}).get("status", "unknown")


def wait_for(client, run: str, *wanted: str) -> str:
    deadline = time.monotonic() + 120
    while (state := status(client, run)) not in wanted:
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
    return state


@dg.job
def nothing():
    pass


def health(process: int, launched: dict, local: bool = True) -> WorkerStatus:
    """What is said of a run that was launched so, and whose process had that number."""
    with dg.instance_for_test() as instance:
        launcher = InstanceRunLauncher()
        launcher.register_instance(instance)
        tags = {
            INSTANCE_TAG: json.dumps(launched),
            GRPC_INFO_TAG: json.dumps({"socket": "/s"} if local else {"port": 4000}),
        }
        run = instance.create_run_for_job(nothing, tags=tags)
        instance.report_engine_event("Started process", run, EngineEventData.in_process(process))
        return launcher.check_run_worker_health(run).status


def test_a_run_is_failed_when_its_own_process_is_gone_and_never_otherwise():
    launched = _this_moment()
    with subprocess.Popen(["sleep", "600"]) as sleeping:
        process = sleeping.pid
        assert health(process, launched) is WorkerStatus.RUNNING
        # The number is that of another process: of another start of the machine, or begun later.
        assert health(process, launched | {"boot": "another"}) is WorkerStatus.NOT_FOUND
        assert health(process, launched | {"since_boot": -9999.0}) is WorkerStatus.NOT_FOUND
        sleeping.kill()
    assert health(process, launched) is WorkerStatus.NOT_FOUND
    assert health(process, launched | {"host": "another machine"}) is WorkerStatus.RUNNING
    assert health(process, launched, local=False) is WorkerStatus.RUNNING


@pytest.mark.slow
def test_a_run_that_is_ended_in_a_copy_goes_on_in_the_original(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", original)
    (original / "sleepy.py").write_text(SLEEPY)
    with instance_in(original) as client:
        launched = client.query(
            LAUNCH,
            p={
                "selector": {
                    "repositoryLocationName": "hourllava",
                    "repositoryName": "__repository__",
                    "pipelineName": "nap",
                },
                "mode": "default",
                "runConfigData": {},
            },
        )["launchPipelineExecution"]
        run = launched["run"]["runId"]
        wait_for(client, run, "STARTED")
        shutil.copytree(original, copy)
        with instance_in(copy) as copied:
            assert status(copied, run) == "STARTED"
            assert copied.query(TERMINATE, id=run)["terminateRun"]["__typename"] == (
                "TerminateRunSuccess"
            )
            assert wait_for(copied, run, *FINISHED) == "CANCELED"
            time.sleep(6)
            assert status(client, run) == "STARTED"
        client.query(TERMINATE, id=run)
        assert wait_for(client, run, *FINISHED) == "CANCELED"
