"""A function in a job of a real Slurm: what it returns and says, and how the job can end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Settings
from assets.engines.call import call
from pipeline.instance_folder import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def where_it_runs(word, log, pause=0.0):
    log(f"working on {word}")
    print(f"printed {word}", flush=True)
    time.sleep(pause)
    return {"word": word, "node": os.environ.get("SLURMD_NODENAME"), "pid": os.getpid()}


def refuse(log):
    raise FileNotFoundError("panda.parquet: not there")


def write_when_allowed(folder, log):
    """Appends a line, and ends when there is a file `go`."""
    with open(folder / "calls", "a") as file:
        file.write(f"{os.getpid()}\n")
    log("waiting")
    while not (folder / "go").exists():
        time.sleep(0.1)
    return "went"


def settings_for(folder: Path, **pool) -> Settings:
    compute = Compute(
        gpu=Pool(engine="slurm", partition="p", **pool), folder=folder / "jobs", poll_s=0.2
    )
    return Settings.model_construct(compute=compute)


def step(settings, function, *arguments):
    """An asset whose work is the function, and what it returned."""
    returned = []

    @dg.asset(name="features")
    def features(context) -> dg.MaterializeResult:
        log = context.log.info
        found = call(context, settings, "gpu", None, function, *arguments, log)
        returned.append(found)
        return dg.MaterializeResult()

    return features, returned


def materialize(asset, instance, meanwhile=lambda: None):
    """Its result and what its log says; `meanwhile` runs beside it, to its end."""
    beside = threading.Thread(target=meanwhile)
    beside.start()
    result = dg.materialize([asset], instance=instance, raise_on_error=False)
    beside.join()
    return result, [entry.user_message for entry in instance.all_logs(result.run_id)]


def all_messages(instance):
    """What the logs of all runs say."""
    runs = [run.run_id for run in instance.get_runs()]
    return [entry.user_message for run in runs for entry in instance.all_logs(run)]


def until(reached, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
    return found


@pytest.fixture
def instance():
    with dg.instance_for_test() as made:
        yield made


def test_a_job_returns_what_the_function_returns_and_says_what_it_says(
    cluster, tmp_path, instance, capfd
):
    asset, returned = step(settings_for(tmp_path), where_it_runs, "panda")
    result, logs = materialize(asset, instance)
    assert result.success
    (found,) = returned
    assert found["word"] == "panda"
    assert found["node"] in ("n1", "n2")
    assert found["pid"] != os.getpid()
    assert "working on panda" in logs
    assert any(f"runs on {found['node']}" in line for line in logs)
    (observed,) = result.get_asset_observation_events()
    assert (
        observed.asset_observation_data.asset_observation.metadata["nodes"].value == found["node"]
    )
    assert "printed panda" in capfd.readouterr().out
    until(lambda: not cluster.jobs())
    assert cluster.processes() == []


def test_the_nodes_own_interpreter_does_the_work_after_setup(cluster, tmp_path, instance):
    nodes = tmp_path / "nodes' own"
    nodes.mkdir()
    (nodes / "python").write_text(
        f"""#!/bin/sh
[ "$FROM_SETUP" = ready ] || exit 9
echo "$2" >> "$(dirname "$0")/used"
PYTHONPATH={REPOSITORY} exec {sys.executable} "$@"
"""
    )
    (nodes / "python").chmod(0o700)
    pool = {"python": str(nodes / "python"), "setup": ["export FROM_SETUP=ready"]}
    asset, returned = step(settings_for(tmp_path, **pool), where_it_runs, "panda")
    result, _ = materialize(asset, instance)
    assert result.success
    assert returned[0]["word"] == "panda"
    assert (nodes / "used").read_text().splitlines()[-1] == "assets.engines.worker"


def test_an_error_of_the_function_is_the_error_of_the_step(cluster, tmp_path, instance):
    asset, _ = step(settings_for(tmp_path), refuse)
    result, _ = materialize(asset, instance)
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    told = event.event_specific_data.error.cause
    assert told.cls_name == "FileNotFoundError"
    assert "panda.parquet: not there" in told.message


def test_a_full_queue_is_told_with_its_reason_and_position(cluster, tmp_path, instance):
    waiting = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    for _ in range(3):
        cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", waiting)
    until(lambda: len(cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()) == 2)
    asset, _ = step(settings_for(tmp_path), where_it_runs, "panda")

    def empty_the_queue():
        until(lambda: any("waits in p: " in line for line in all_messages(instance)))
        (tmp_path / "go").touch()

    result, logs = materialize(asset, instance, empty_the_queue)
    assert result.success
    waits = [line for line in logs if "waits in p: " in line]
    assert any("number 2 of 2 that wait there" in line for line in waits)
    assert any(
        reason in line for line in waits for reason in ("Priority", "Resources", "not looked")
    )


def test_scancel_by_somebody_else_fails_the_step_with_a_sentence(cluster, tmp_path, instance):
    asset, _ = step(settings_for(tmp_path), write_when_allowed, tmp_path)

    def cancel():
        until((tmp_path / "calls").exists)
        cluster.run("scancel", *cluster.jobs())

    result, _ = materialize(asset, instance, cancel)
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert "was cancelled (scancel), not from here" in event.event_specific_data.error.message
    assert "materialize again" in event.event_specific_data.error.message
    until(lambda: not cluster.processes())


def test_a_dead_controller_is_waited_for(cluster, tmp_path, instance):
    asset, returned = step(settings_for(tmp_path), write_when_allowed, tmp_path)

    def interrupt():
        until((tmp_path / "calls").exists)
        (job,) = cluster.jobs()
        cluster.save(job)
        cluster.kill("slurmctld")
        until(lambda: any("does not answer" in line for line in all_messages(instance)))
        cluster.start_controller()
        (tmp_path / "go").touch()

    result, logs = materialize(asset, instance, interrupt)
    assert result.success
    assert returned == ["went"]
    assert len((tmp_path / "calls").read_text().split()) == 1
    assert "Slurm's controller answers again" in logs


def test_a_dead_node_costs_one_job(cluster, tmp_path, instance):
    asset, returned = step(settings_for(tmp_path), write_when_allowed, tmp_path)

    def kill_its_node():
        until((tmp_path / "calls").exists)
        (job,) = cluster.jobs()
        cluster.kill(cluster.run("squeue", "-h", "-j", job, "-o", "%N"))
        (tmp_path / "go").touch()

    result, logs = materialize(asset, instance, kill_its_node)
    assert result.success
    assert returned == ["went"]
    assert len((tmp_path / "calls").read_text().split()) == 2
    assert any("the next job goes on from what is there" in line for line in logs)


def test_a_preempted_job_is_told_as_one_and_costs_no_node(cluster, tmp_path, instance):
    """By a job of a partition with a higher tier; Slurm asks the first one to end, and it does."""
    asset, returned = step(settings_for(tmp_path), write_when_allowed, tmp_path)

    def submit_an_urgent_job():
        until((tmp_path / "calls").exists)
        cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=:")
        until(lambda: any("was preempted" in line for line in all_messages(instance)))
        (tmp_path / "go").touch()

    result, logs = materialize(asset, instance, submit_an_urgent_job)
    assert result.success
    assert returned == ["went"]
    assert len((tmp_path / "calls").read_text().split()) == 2
    (line,) = [line for line in logs if "the next job goes on from what is there" in line]
    assert "was preempted: it had to make room for another job" in line


def interrupted(asset, instance, tmp_path, before):
    """Materialize; once the function runs, do `before` and interrupt the step as Dagster does."""

    def interrupt():
        until((tmp_path / "calls").exists)
        before()
        os.kill(os.getpid(), signal.SIGINT)

    ending = threading.Thread(target=interrupt)
    ending.start()
    with pytest.raises((KeyboardInterrupt, DagsterExecutionInterruptedError)):
        dg.materialize([asset], instance=instance)
    ending.join()


def test_terminate_cancels_the_job_and_leaves_nothing(cluster, tmp_path, instance):
    asset, _ = step(settings_for(tmp_path), write_when_allowed, tmp_path)
    running = lambda: next(iter(instance.get_runs()))  # noqa: E731
    interrupted(asset, instance, tmp_path, lambda: instance.report_run_canceling(running()))
    assert cluster.jobs() == []
    assert cluster.processes() == []
    assert any("terminated: job" in line for line in all_messages(instance))


def test_a_step_that_ends_otherwise_leaves_its_job_to_the_next_one(cluster, tmp_path, instance):
    asset, returned = step(settings_for(tmp_path), write_when_allowed, tmp_path)
    interrupted(asset, instance, tmp_path, lambda: None)
    (job,) = cluster.jobs()
    allow = threading.Timer(1.0, (tmp_path / "go").touch)
    allow.start()
    result, logs = materialize(asset, instance)
    assert result.success
    assert returned == ["went"]
    assert len((tmp_path / "calls").read_text().split()) == 1
    assert f"found job {job} of an earlier run, RUNNING; it is not started twice" in logs
    assert "waiting" in logs  # the job's messages are told again in the new run


def test_a_job_of_other_arguments_is_cancelled_first(cluster, tmp_path, instance):
    asset, _ = step(settings_for(tmp_path), write_when_allowed, tmp_path)
    interrupted(asset, instance, tmp_path, lambda: None)
    (job,) = cluster.jobs()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/go").touch()
    asset, returned = step(settings_for(tmp_path), write_when_allowed, tmp_path / "other")
    result, logs = materialize(asset, instance)
    assert result.success
    assert returned == ["went"]
    assert any(f"job {job} makes features from other inputs" in line for line in logs)
    assert job not in cluster.jobs()


def test_a_folder_where_others_may_write_is_refused(tmp_path, instance):
    (tmp_path / "jobs").mkdir(mode=0o777)
    (tmp_path / "jobs").chmod(0o777)
    asset, _ = step(settings_for(tmp_path), where_it_runs, "panda")
    result, _ = materialize(asset, instance)
    (event,) = [e for e in result.all_events if e.event_type_value == "STEP_FAILURE"]
    assert "others may write here" in event.event_specific_data.error.cause.message
