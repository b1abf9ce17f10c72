"""Two launchers never work in one folder, and a dead one is succeeded."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from training import run_lock
from training.run_lock import FolderInUse, holding

HOLD = """
import sys, time
from pathlib import Path
from training.run_lock import holding
with holding(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "RENEW_S", 0.05)
    monkeypatch.setattr(run_lock, "SILENT_S", 0.4)


def test_the_second_is_told_who_holds_the_folder(tmp_path, other):
    with (
        pytest.raises(
            FolderInUse, match=rf"by process {other.pid} on {socket.gethostname()} since"
        ),
        holding(tmp_path, print),
    ):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    began = time.monotonic()
    with holding(tmp_path, print):  # a dead holder on this machine is succeeded at once
        assert json.loads((tmp_path / "holder.json").read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < run_lock.SILENT_S / 2
    assert not (tmp_path / "holder.json").exists()


def test_a_silent_holder_on_another_machine_is_succeeded_after_a_while(tmp_path, quick):
    (tmp_path / "holder.json").write_text(
        json.dumps({"host": "elsewhere", "pid": 7, "since": "today", "beat": 3})
    )
    told = []
    with holding(tmp_path, told.append):
        pass
    assert "held by process 7 on elsewhere since today; waiting" in told[0]


def test_a_living_holder_is_seen_where_the_file_system_has_no_locks(tmp_path, quick, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)
    with (
        holding(tmp_path, print),
        pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"),
        holding(tmp_path, print),
    ):
        pass


def test_a_record_that_was_cut_short_keeps_nobody_out(tmp_path, quick):
    (tmp_path / "holder.json").write_text('{"host": "el')
    with holding(tmp_path, print):
        pass
