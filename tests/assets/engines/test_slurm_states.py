"""Which states of Slurm end a job, and that no other job is submitted while one still lives."""

from __future__ import annotations

import dagster as dg
import pytest

from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Settings
from assets.engines import slurm
from assets.engines.call import call

# As `man squeue` describes them.
ENDS = [
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
]  # fmt: skip
WAITING = [
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT", "EXPEDITING",
]  # fmt: skip
HOLDING_NODES = [
    "RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED",
]  # fmt: skip
ON_ANOTHER_CLUSTER, OF_A_NEWER_SLURM = "REVOKED", "HIBERNATING"
LIVES = [*WAITING, *HOLDING_NODES, ON_ANOTHER_CLUSTER, OF_A_NEWER_SLURM, "?"]


@pytest.mark.parametrize("state", [*ENDS, slurm.FORGOTTEN])
def test_a_job_that_has_ended_is_over(state):
    assert slurm.Job("7", state).over
    assert not slurm.Job("7", state).waits


@pytest.mark.parametrize("state", LIVES)
def test_a_job_of_any_other_state_is_not_over(state):
    assert not slurm.Job("7", state).over
    assert slurm.Job("7", state).waits == (state in WAITING)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Lets Slurm's commands answer: `answers(squeue="7|RUNNING|...")`."""
    commands = tmp_path / "commands"
    commands.mkdir()
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")

    def answer(**lines: str) -> None:
        for name, line in lines.items():
            (commands / name).write_text(f"#!/bin/sh\nprintf '%s\\n' '{line}'\n")
            (commands / name).chmod(0o755)

    return answer


@pytest.mark.parametrize("state", LIVES)
def test_a_job_that_lives_is_found_again_unless_it_is_just_ending(answers, state):
    answers(squeue=f"7|{state}||||N/A|request=1")
    assert [job.id for job in slurm.find("name")] == ([] if state == "COMPLETING" else ["7"])


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("TIMEOUT", "TIMEOUT"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("RUNNING", slurm.FORGOTTEN),
        (ON_ANOTHER_CLUSTER, slurm.FORGOTTEN),
    ],
)
def test_a_job_that_the_controller_has_forgotten_is_over_whatever_accounting_says(
    answers, told, state
):
    answers(squeue="", sacct=f"{told}|n1|None")
    assert slurm.look("7") == slurm.Job("7", state, "None", "n1")
    assert slurm.look("7").over


def nothing(log):
    """The work of a job that never runs here."""


@pytest.mark.parametrize("state", ["RESV_DEL_HOLD", "REQUEUE_FED", OF_A_NEWER_SLURM])
def test_no_job_is_submitted_beside_one_that_still_lives(tmp_path, monkeypatch, state):
    states, submitted = [state, state, "RUNNING", "CANCELLED"], []
    monkeypatch.setattr(slurm, "find", lambda name: [])
    monkeypatch.setattr(slurm, "submit", lambda *given: submitted.append(given) or "7")
    monkeypatch.setattr(slurm, "look", lambda job_id: slurm.Job(job_id, states.pop(0)))
    monkeypatch.setattr(slurm, "position", lambda job: (1, 1))
    compute = Compute(gpu=Pool(engine="slurm"), folder=tmp_path / "jobs", poll_s=0.01)
    settings = Settings.model_construct(compute=compute)

    @dg.asset(name="features")
    def features(context) -> None:
        call(context, settings, "gpu", None, nothing, context.log.info)

    with dg.instance_for_test() as instance:
        assert not dg.materialize([features], instance=instance, raise_on_error=False).success
    assert len(submitted) == 1
    assert states == []
