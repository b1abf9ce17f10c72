"""A copied history while the original runs: two running `dagster dev`."""

import shutil
import time
from contextlib import contextmanager

import pytest

from pipeline.demo.client import FINISHED
from pipeline.demo.instance import REPOSITORY, dagster

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
