"""Whatever ends, nothing of a training survives its owner, and the owner learns why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.stand_in import Acting, start, torchrun_command
from training.run_config import parse_run
from training.supervise import (
    CONFIGURATION,
    CONTROL_VARIABLE,
    FAILED,
    PREEMPTED,
    read_failure,
    report_failure,
)

LAUNCH = [sys.executable, "-m", "training.supervise"]


def alive(pid):
    """Whether the process exists and is more than an entry that nobody has collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone_within(pids, seconds):
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def pids_in(folder, count, seconds=60.0):
    deadline = time.monotonic() + seconds
    while len(found := [p for p in folder.glob("*") if p.read_text().strip()]) < count:
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)
    return [int(path.read_text()) for path in found]


def shell(folder, text):
    """A command whose grandchild lives in a session of its own, as a rank of torchrun does."""
    child = f"setsid sh -c 'echo $$ > {folder}/child; {text}'"
    return [*LAUNCH, "sh", "-c", f"echo $$ > {folder}/agent; {child} & wait"]


def test_the_exit_status_is_the_commands(tmp_path):
    assert subprocess.run([*LAUNCH, "sh", "-c", "exit 0"]).returncode == 0
    assert subprocess.run([*LAUNCH, "sh", "-c", "exit 7"]).returncode == 7
    assert subprocess.run([*LAUNCH, "sh", "-c", "kill -9 $$"]).returncode == FAILED


def test_a_status_with_a_meaning_counts_only_with_a_word():
    assert subprocess.run([*LAUNCH, "sh", "-c", f"exit {PREEMPTED}"]).returncode == FAILED
    code = "import training.supervise as l, sys; l.report_failure(l.CONFIGURATION, 'wrong'); sys.exit(1)"
    done = subprocess.run([*LAUNCH, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == CONFIGURATION
    assert "wrong" in done.stderr


def test_the_first_word_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(CONTROL_VARIABLE, str(tmp_path))
    assert read_failure(tmp_path) is None
    report_failure(FAILED, "the cause")
    report_failure(FAILED, "what it caused")
    assert read_failure(tmp_path)["message"] == "the cause"
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]


def test_no_command_is_a_usage_error():
    assert subprocess.run(LAUNCH, capture_output=True).returncode == CONFIGURATION


@pytest.mark.parametrize("victim", ["agent", "launch", "owner"])
def test_a_killed_process_takes_its_descendants_along(tmp_path, victim):
    command = shell(tmp_path, "trap '' INT TERM; sleep 300")
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()",
            *command,
        ]
    )
    agent, child = (
        int((tmp_path / name).read_text()) for name in ("agent", "child") if pids_in(tmp_path, 2)
    )
    launch = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill({"agent": agent, "launch": launch, "owner": owner.pid}[victim], signal.SIGKILL)
    # When launch itself is killed, its grandchildren are those of torchrun, which ask the kernel to
    # follow it.
    followers = [agent] if victim == "launch" else [agent, child, launch]
    try:
        assert gone_within(followers, 10)
    finally:
        owner.kill()
        owner.wait()
        if alive(child):
            os.kill(child, signal.SIGKILL)


def test_a_deaf_command_is_killed_at_the_third_signal(tmp_path):
    process = subprocess.Popen(shell(tmp_path, "trap '' INT TERM; sleep 300"))
    agent, child = pids_in(tmp_path, 2)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.wait(10) == FAILED
    assert gone_within([agent, child], 5)


def test_what_a_finished_command_left_behind_is_ended(tmp_path):
    done = subprocess.run(
        [*LAUNCH, "sh", "-c", f"setsid sh -c 'echo $$ > {tmp_path}/child; sleep 300' & sleep 0.5"]
    )
    assert done.returncode == 0
    assert gone_within(pids_in(tmp_path, 1), 5)


def ranks_of(tmp_path, acting):
    """Torchrun with two stand-ins: (process of `training.supervise`, pid of torchrun, pids of the
    ranks).
    """
    (tmp_path / "pids").mkdir()
    (tmp_path / "out").mkdir()
    acting = replace(acting, pid_folder=str(tmp_path / "pids"))
    values = {"name": "x", "root": "r", "indexes": ["i"]}
    run = parse_run(
        {
            "variant": "tiny",
            "stage": 3,
            "start": "s",
            "out": str(tmp_path / "out"),
            "streams": [values],
        }
    )
    process = start(torchrun_command(run, 2, acting.json(), "tests.training.stand_in"))
    ranks = pids_in(tmp_path / "pids", 2)
    agent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    return process, agent, ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    ["a rank crashes", "a rank is killed", "torchrun is killed", "launch is killed", "deaf"],
)
def test_no_rank_survives(tmp_path, event):
    crash = 1 if event == "a rank crashes" else None
    process, agent, ranks = ranks_of(
        tmp_path, Acting(steps=1000, crash_rank=crash, deaf=event == "deaf")
    )
    if event == "a rank is killed":
        os.kill(ranks[1], signal.SIGKILL)
    elif event == "torchrun is killed":
        os.kill(agent, signal.SIGKILL)
    elif event == "launch is killed":
        process.kill()
    elif event == "deaf":
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, CONFIGURATION, PREEMPTED)
    assert gone_within([agent, *ranks], 30)
    assert time.monotonic() - began < 45
    if event == "a rank crashes":
        assert "RuntimeError: the rank was told to fail" in output.splitlines()[-1]


@pytest.mark.slow
def test_one_signal_ends_all_ranks_in_order(tmp_path):
    process, agent, ranks = ranks_of(tmp_path, Acting(steps=1000))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED
    assert "asked to stop after step" in output.splitlines()[-1]
    assert gone_within([agent, *ranks], 5)
