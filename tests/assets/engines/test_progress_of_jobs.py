"""Jobs that end early are counted in a row while they get no further, and the step says so only of
work whose progress is measured.
"""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from assets.deployment.compute import Compute, Pool
from assets.deployment.settings import Settings
from assets.engines import slurm
from assets.engines.call import RESULT_NAME, call
from assets.engines.script import STATUS_NAME

RESTARTS = 3
NEVER = 99


def nothing(log):
    """The work of jobs that are not run here."""


@pytest.fixture
def extracted(tmp_path, monkeypatch):
    """`extracted(measured, each, ends_after)`: how many jobs a step takes whose jobs each
    make so many videos and are preempted, until one ends well; and how it failed, if it did.
    """

    def extract(measured: bool, each: int, ends_after: int):
        submitted, videos = [], []

        def submit(options, script):
            submitted.append(script)
            videos.extend(range(each))
            if len(submitted) == ends_after:
                (Path(script).parent / RESULT_NAME).write_text(json.dumps({"returned": None}))
                (Path(script).parent / STATUS_NAME).write_text("0")
            return str(len(submitted))

        def look(job_id):
            return slurm.Job(job_id, "COMPLETED" if int(job_id) == ends_after else "PREEMPTED")

        monkeypatch.setattr(slurm, "find", lambda name: [])
        monkeypatch.setattr(slurm, "submit", submit)
        monkeypatch.setattr(slurm, "look", look)
        pool = Pool(engine="slurm", restarts=RESTARTS)
        compute = Compute(gpu=pool, folder=tmp_path / "jobs", poll_s=0.01)
        settings = Settings.model_construct(compute=compute)

        @dg.asset(name="features")
        def features(context) -> None:
            reached = (lambda: len(videos)) if measured else None
            call(context, settings, "gpu", reached, nothing, context.log.info)

        with dg.instance_for_test() as instance:
            result = dg.materialize([features], instance=instance, raise_on_error=False)
        failed = [event for event in result.all_events if event.is_step_failure]
        told = failed[0].step_failure_data.user_failure_data if failed else None
        return len(submitted), told and told.description

    return extract


def test_jobs_that_each_get_further_are_followed_by_the_next_until_the_work_is_done(extracted):
    assert extracted(measured=True, each=100, ends_after=7) == (7, None)


def test_jobs_that_get_no_further_end_the_step_which_says_so(extracted):
    jobs, told = extracted(measured=True, each=0, ends_after=NEVER)
    assert jobs == RESTARTS + 1
    assert "was preempted: it had to make room for another job" in told
    assert "Jobs in a row that got no further: 4;" in told


def test_of_work_that_nothing_measures_it_is_not_said_that_it_got_no_further(extracted):
    jobs, told = extracted(measured=False, each=100, ends_after=NEVER)
    assert jobs == RESTARTS + 1
    assert "Jobs in a row that did not finish (how far they got, nothing tells): 4;" in told
    assert "no further" not in told
