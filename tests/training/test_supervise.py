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

from tests.training.fake_training import FakeTraining, start, torchrun_command
from training.run_config import parse_run
from training.supervise import (
    CONFIGURATION,
    CONTROL_VARIABLE,
    FAILED,
    PREEMPTED,
    SUPERVISOR_VARIABLE,
    read_failure,
    report_failure,
)

SUPERVISE = [sys.executable, "-m", "training.supervise"]


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
    return [*SUPERVISE, "sh", "-c", f"echo $$ > {folder}/agent; {child} & wait"]


def test_the_exit_status_is_the_commands(tmp_path):
    assert subprocess.run([*SUPERVISE, "sh", "-c", "exit 0"]).returncode == 0
    assert subprocess.run([*SUPERVISE, "sh", "-c", "exit 7"]).returncode == 7
    assert subprocess.run([*SUPERVISE, "sh", "-c", "kill -9 $$"]).returncode == FAILED


def test_a_status_with_a_meaning_counts_only_with_a_report():
    assert subprocess.run([*SUPERVISE, "sh", "-c", f"exit {PREEMPTED}"]).returncode == FAILED
    code = (
        "import sys, training.supervise as supervise;"
        "supervise.report_failure(supervise.CONFIGURATION, 'wrong'); sys.exit(1)"
    )
    done = subprocess.run([*SUPERVISE, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == CONFIGURATION
    assert "wrong" in done.stderr


def test_the_first_report_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(CONTROL_VARIABLE, str(tmp_path))
    assert read_failure(tmp_path) is None
    report_failure(FAILED, "the cause")
    report_failure(FAILED, "what it caused")
    assert read_failure(tmp_path)["message"] == "the cause"
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]


def test_no_command_is_a_usage_error():
    assert subprocess.run(SUPERVISE, capture_output=True).returncode == CONFIGURATION


@pytest.mark.parametrize("victim", ["agent", "supervisor", "owner"])
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
    supervisor = int(Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill({"agent": agent, "supervisor": supervisor, "owner": owner.pid}[victim], signal.SIGKILL)
    # When the supervisor itself is killed, only processes that asked the kernel for it die with it,
    # as the ranks of torchrun do; the child here did not ask.
    followers = [agent] if victim == "supervisor" else [agent, child, supervisor]
    try:
        assert gone_within(followers, 10)
    finally:
        owner.kill()
        owner.wait()
        if alive(child):
            os.kill(child, signal.SIGKILL)


OWNER = """
import os, subprocess, sys
variables = {**os.environ, "HOURLLAVA_OWNER": str(os.getpid())}
subprocess.Popen(sys.argv[1:], env=variables).wait()
"""


def running(marker):
    """Processes whose command line holds the marker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes() and alive(int(folder.name)):
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.slow
def test_an_owner_that_is_killed_while_everything_starts_leaves_nothing(tmp_path):
    marker = str(tmp_path / "left")
    for number in range(20):
        command = [*SUPERVISE, "sh", "-c", f"sleep 60 # {marker}"]
        owner = subprocess.Popen([sys.executable, "-c", OWNER, *command])
        time.sleep(0.015 * number)
        owner.kill()
        owner.wait()
    assert gone_within(running(marker), 10)
    time.sleep(0.5)  # what was about to start
    assert running(marker) == []


@pytest.mark.parametrize("orphan", [False, True])
def test_a_rank_that_begins_after_its_torchrun_died_ends_at_once(orphan):
    code = "from training.supervise import die_with_torchrun; die_with_torchrun(); print('lives')"
    # The shell stands for torchrun; its parent, and not the one of an orphan, is the supervisor.
    supervisor = 1 if orphan else os.getpid()
    done = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{code}"; exit $?'],
        env={**os.environ, SUPERVISOR_VARIABLE: str(supervisor)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == ((FAILED, "") if orphan else (0, "lives\n"))


def test_a_command_that_ignores_signals_is_killed_at_the_third_signal(tmp_path):
    process = subprocess.Popen(shell(tmp_path, "trap '' INT TERM; sleep 300"))
    agent, child = pids_in(tmp_path, 2)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert process.wait(10) == FAILED
    assert gone_within([agent, child], 5)


def test_what_a_finished_command_left_behind_is_ended(tmp_path):
    done = subprocess.run(
        [
            *SUPERVISE,
            "sh",
            "-c",
            f"setsid sh -c 'echo $$ > {tmp_path}/child; sleep 300' & sleep 0.5",
        ]
    )
    assert done.returncode == 0
    assert gone_within(pids_in(tmp_path, 1), 5)


def ranks_of(tmp_path, fake):
    """Torchrun with two stand-ins: (process of `training.supervise`, pid of torchrun, pids of the
    ranks).
    """
    (tmp_path / "pids").mkdir()
    (tmp_path / "out").mkdir()
    fake = replace(fake, pid_folder=str(tmp_path / "pids"))
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
    process = start(torchrun_command(run, 2, fake.json(), "tests.training.fake_training"))
    ranks = pids_in(tmp_path / "pids", 2)
    agent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rpartition(")")[2].split()[1])
    return process, agent, ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    "event",
    [
        "a rank crashes",
        "a rank is killed",
        "torchrun is killed",
        "the supervisor is killed",
        "signals are ignored",
    ],
)
def test_no_rank_survives(tmp_path, event):
    crash = 1 if event == "a rank crashes" else None
    process, agent, ranks = ranks_of(
        tmp_path,
        FakeTraining(steps=1000, crash_rank=crash, ignores_signals=event == "signals are ignored"),
    )
    if event == "a rank is killed":
        os.kill(ranks[1], signal.SIGKILL)
    elif event == "torchrun is killed":
        os.kill(agent, signal.SIGKILL)
    elif event == "the supervisor is killed":
        process.kill()
    elif event == "signals are ignored":
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
    process, agent, ranks = ranks_of(tmp_path, FakeTraining(steps=1000))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED
    assert "asked to stop after step" in output.splitlines()[-1]
    assert gone_within([agent, *ranks], 5)
