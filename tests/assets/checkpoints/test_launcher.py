"""Training inside a Dagster step: what a person sees, how it fails, that it ends with the step."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import dagster as dg
import pytest

from assets.checkpoints.launcher import Torchrun, thread_variables
from assets.deployment.settings import Training
from tests.training.fake_training import FakeTraining, start
from tests.training.test_supervise import gone_within, pids_in
from training.run_config import load_run, parse_run

pytestmark = pytest.mark.timeout(300)


def stand_ins(acting, processes=2, **fields):
    """A launcher whose ranks only pretend to train."""
    settings = Training(processes=processes, cpu_threads=1)
    arguments = (acting.json(),)
    return Torchrun(
        settings,
        module="tests.training.fake_training",
        arguments=arguments,
        observe_every_s=0.0,
        **fields,
    )


def make_run(folder):
    stream = {"name": "x", "root": "r", "indexes": ["i"]}
    return parse_run(
        {
            "variant": "tiny",
            "stage": 3,
            "start": "s",
            "out": str(folder / "out"),
            "streams": [stream],
        }
    )


def materialize(run, launcher, **options):
    """The result of one step that trains, and what training returned."""
    returned = {}

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1))
    def stage(context) -> dg.MaterializeResult:
        returned.update(launcher.run(context, run))
        return dg.MaterializeResult()

    with dg.instance_for_test() as instance:
        result = dg.materialize([stage], instance=instance, raise_on_error=False, **options)
        logs = [entry.user_message for entry in instance.all_logs(result.run_id)]
    return result, returned, logs


def attempts(result):
    return sum(
        event.event_type_value in ("STEP_START", "STEP_RESTARTED") for event in result.all_events
    )


def failure_of(result):
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return event.event_specific_data


@pytest.mark.slow
def test_a_step_reports_while_it_trains_and_returns_the_result(tmp_path):
    run = make_run(tmp_path)
    result, returned, logs = materialize(run, stand_ins(FakeTraining(steps=6, pause_s=0.4)))
    assert result.success
    assert returned == {"steps": 6}
    assert load_run(tmp_path / "out" / "run.json") == run
    observations = [
        e.asset_observation_data.asset_observation for e in result.get_asset_observation_events()
    ]
    steps = [observation.metadata["step"].value for observation in observations]
    assert steps == sorted(set(steps))
    assert len(steps) >= 2
    assert steps[-1] == 6
    assert {"loss", "rate/llm", "rate/memaug"} <= set(observations[-1].metadata)
    assert any("training.supervise" in message for message in logs)


@pytest.mark.slow
def test_a_configuration_error_is_not_tried_again_and_says_what_to_change(tmp_path):
    result, _, _ = materialize(make_run(tmp_path), stand_ins(FakeTraining(misconfigured=True)))
    data = failure_of(result)
    assert "global batch 9 cannot be shared evenly by 2 ranks" in data.error.message
    assert data.user_failure_data.metadata["exit status"].value == 2
    assert attempts(result) == 1


@pytest.mark.slow
def test_another_failure_may_be_tried_again_and_names_its_cause(tmp_path):
    result, _, _ = materialize(make_run(tmp_path), stand_ins(FakeTraining(crash_rank=1)))
    assert attempts(result) == 2
    (first,) = [
        event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"
    ]
    error = first.event_specific_data.error
    told = error.message + (error.cause.message if error.cause else "")
    assert "RuntimeError: the rank was told to fail; materialize again to continue" in told


def test_a_run_over_several_machines_needs_a_meeting_point(tmp_path):
    launcher = Torchrun(Training(nodes=2, processes=8))
    with pytest.raises(ValueError, match=r"set training\.rendezvous to host:port"):
        launcher.command(tmp_path / "run.json")
    command = Torchrun(Training(nodes=2, processes=8, rendezvous="first:29400")).command(
        tmp_path / "run.json"
    )
    assert command[1:3] == ["-m", "training.supervise"]
    assert command[6:10] == [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=first:29400",
        "--nproc-per-node=8",
    ]


STEP = """
import sys
from pathlib import Path
import dagster as dg
from tests.assets.checkpoints.test_launcher import stand_ins
from tests.training.fake_training import FakeTraining
from training.run_config import load_run

@dg.asset
def stage(context) -> dg.MaterializeResult:
    acting = FakeTraining(steps=1000, ignores_signals=sys.argv[3] == "deaf", pid_folder=sys.argv[2])
    stand_ins(acting, grace_s=2.0, force_s=2.0).run(context, load_run(Path(sys.argv[1])))
    return dg.MaterializeResult()

with dg.instance_for_test() as instance:
    dg.materialize([stage], instance=instance)
"""


@pytest.mark.slow
@pytest.mark.parametrize("event", ["the step is killed", "the step is interrupted", "deaf"])
def test_no_rank_survives_its_step(tmp_path, event):
    pids = tmp_path / "pids"
    pids.mkdir()
    make_run(tmp_path).write(tmp_path / "run.json")
    step = start([sys.executable, "-c", STEP, str(tmp_path / "run.json"), str(pids), event])
    try:
        ranks = pids_in(pids, 2)
        time.sleep(0.5)
        os.kill(step.pid, signal.SIGKILL if event == "the step is killed" else signal.SIGINT)
        assert gone_within(ranks, 60)
        step.communicate(timeout=60)
        assert step.returncode != 0
    finally:
        step.kill()


@pytest.mark.slow
def test_a_step_trains_for_real(tmp_path):
    from tests.training import generated_samples

    run = generated_samples.make_run(tmp_path)
    settings = Training(processes=1, cpu_threads=1)
    arguments = (generated_samples.LoaderBehaviour().json(),)
    launcher = Torchrun(settings, module="tests.training.generated_samples", arguments=arguments)
    result, returned, logs = materialize(run, launcher)
    assert result.success
    assert returned == json.loads((tmp_path / "out" / "result.json").read_text())
    assert returned["steps"] == 8
    assert any(message.startswith("stage 3 of tiny on 1 x CPU") for message in logs)
    assert any(message.startswith("finished: loss") for message in logs)


def test_threads_of_a_rank_sleep_while_they_wait_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert thread_variables(2) == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert thread_variables(1)["OMP_WAIT_POLICY"] == "ACTIVE"
