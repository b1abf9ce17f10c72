"""Kill -9 wherever a run is: the next start goes on, nothing is left, and the bytes are the same.

HOURLLAVA_KILLS sets how often each phase is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.training.fake_training import ROOT

KILLS = int(os.environ.get("HOURLLAVA_KILLS", "3"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def forked(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.forked", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("phase", ["start-up", "first step", "save", "export"])
def test_kills_in_every_phase_end_in_the_bytes_of_a_run_that_was_left_alone(tmp_path, phase):
    seen = forked("kills", tmp_path, phase, KILLS)
    assert seen["killed"] + seen["ended"] == KILLS
    assert seen["killed"] > 0
    assert seen["steps"] == [1, 2, 3, 4]
    assert seen["same bytes"]
    assert seen["left"] == []
    assert not seen["damaged"]


def test_two_days_in_fast_motion_take_every_step_and_every_sample_once(tmp_path):
    seen = forked("life", tmp_path)
    assert seen["seen"] == {
        "out of memory": [1, 2],
        "smaller packs, pre-empted": [75, 5],
        "disk full": [1, 5],
        "moved, upgraded": [0, 12],
    }
    assert seen["steps"] == seen["sample steps"] == list(range(1, 13))
    assert seen["samples"] == [96, 96]
    assert seen["result"] == 12
    assert seen["left"] == []


def test_a_second_launcher_is_refused_and_the_first_one_is_not_disturbed(tmp_path):
    seen = forked("two", tmp_path)
    first, status = seen["first"]
    assert status == 0
    assert seen["second"] == 1
    assert f"FolderInUse: {tmp_path / 'out'} is in use by process {first} on " in seen["told"]
    assert seen["steps"] == [1, 2, 3, 4, 5, 6]
