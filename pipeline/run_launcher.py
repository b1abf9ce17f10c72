"""Dagster's own run launcher, safe in a copied history and after a kill.

A run's record holds the address of the code server that runs it. Whoever copies a history while the
original runs, and ends a run in the copy, would end it in the original: the address is the same. So
each run also records the folder of its own instance, and an instance ends only its own runs. A run
of another one is marked as canceled here, and left alone there.

When all of Dagster is killed, nobody is left to say that its runs ended: they would stay started,
and hold their places in the pools, for ever. So each run also records where it was launched, and
Dagster's run monitoring asks here whether its process is still there. If not, the run has failed.
It is not resumed by itself: that is for executors whose steps outlive their run, and here they die
with it. What outlives it are jobs of Slurm, which the next run finds.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterRun, DefaultRunLauncher
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.base import LaunchRunContext
from dagster._core.storage.tags import GRPC_INFO_TAG, HIDDEN_TAG_PREFIX

INSTANCE_TAG = f"{HIDDEN_TAG_PREFIX}instance_folder"
_PROC = Path("/proc")
_RUNNING = CheckRunHealthResult(WorkerStatus.RUNNING)


class InstanceRunLauncher(DefaultRunLauncher):
    """Launches runs on this machine's code server, ends those of its own instance alone, and knows
    which of them were killed.
    """

    def launch_run(self, context: LaunchRunContext) -> None:
        """Launch a run, after noting whose it is and where it begins."""
        tag = {"folder": str(self._folder()), "identity": self._identity()} | _this_moment()
        self._instance.add_run_tags(context.dagster_run.run_id, {INSTANCE_TAG: json.dumps(tag)})
        super().launch_run(context)

    def terminate(self, run_id: str) -> bool:
        """End a run of this instance; mark one of another instance as canceled in this history."""
        run = self._instance.get_run_by_id(run_id) if self.has_instance else None
        if run is None or run.is_finished or INSTANCE_TAG not in run.tags:
            return bool(super().terminate(run_id))
        owner = json.loads(run.tags[INSTANCE_TAG])
        if owner["identity"] == self._identity():
            return bool(super().terminate(run_id))
        self._instance.report_run_canceled(
            run,
            f"This history is a copy: the run belongs to the instance in {owner['folder']}. It is "
            "marked as canceled here, and was left alone there; end it there if it still runs.",
        )
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Where the kernel tells when a process began."""
        return (_PROC / "self/stat").exists()

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a started run is still there.

        Its code server is not asked: that may have been killed alone, and a run that goes on
        without it has not failed. Of a run that another machine began nothing can be said.
        """
        begun = json.loads(run.tags.get(INSTANCE_TAG, "{}"))
        on_this_machine = begun.get("host") == socket.gethostname() and (
            "socket" in json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        )
        process = self._process(run) if on_this_machine else None
        if process is None or self._lives(process, begun):
            return _RUNNING
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            f"the process of this run, {process} on {begun['host']}, is gone: Dagster or the "
            "machine was killed. Materialize again to go on from what is there; jobs of Slurm that "
            "the run waited for go on, and the next run finds them",
        )

    def _process(self, run: DagsterRun) -> int | None:
        """The process that Dagster says it started for a run."""
        for entry in self._instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
            event: Any = entry.get_dagster_event().event_specific_data
            if "pid" in event.metadata:
                return int(event.metadata["pid"].value)
        return None

    def _lives(self, process: int, begun: dict[str, Any]) -> bool:
        """Whether a process is there, and the one that began after the launch: numbers of processes
        are used again.
        """
        try:
            fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        # One that took longer to start was failed for it, unless that is switched off with 0.
        timeout = self._instance.run_monitoring_start_timeout_seconds or math.inf
        latest = begun["since_boot"] + timeout
        return (
            fields[0] != "Z"
            and begun["boot"] == _boot()
            and begun["since_boot"] - 1 <= since_boot <= latest
        )

    def _folder(self) -> Path:
        return Path(self._instance.root_directory).resolve()

    def _identity(self) -> str:
        """What tells this instance's folder from a copy of it, wherever either is moved to."""
        status = self._folder().stat()
        return f"{status.st_dev}:{status.st_ino}"


def _this_moment() -> dict[str, Any]:
    """Machine and time, by a clock that nobody sets."""
    if not _PROC.joinpath("self/stat").exists():
        return {}
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "since_boot": time.clock_gettime(time.CLOCK_BOOTTIME),
    }


def _boot() -> str:
    """What tells one start of this machine from another."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
