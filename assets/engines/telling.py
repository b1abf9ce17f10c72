"""What people are told of a job: in the run's log, on the asset's page, in the step's output."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import dagster as dg

from assets.engines import slurm
from training.supervise import PREEMPTED

TELL_WAIT_S = 60.0


class JobTeller:
    """Tells the run's log and the asset's page how a job is, when that changes."""

    def __init__(self, context: dg.AssetExecutionContext, product: str) -> None:
        self._context, self._product = context, product
        self._last: object = None
        self._waited = float("-inf")

    def tell(self, job: slurm.Job) -> None:
        now = (job.state, job.reason, job.nodes)
        if now == self._last:
            return
        if job.waits:
            if time.monotonic() - self._waited < TELL_WAIT_S and self._last is not None:
                return
            self._waited = time.monotonic()
            self._context.log.info(_waits(job))
        elif job.state == "RUNNING":
            self._context.log.info(f"job {job.id} runs on {job.nodes}")
            self._context.log_event(
                dg.AssetObservation(
                    asset_key=self._context.asset_key,
                    partition=self._context.partition_key
                    if self._context.has_partition_key
                    else None,
                    description=f"job {job.id} runs on {job.nodes}",
                    metadata={
                        "slurm job": job.id,
                        "nodes": job.nodes,
                        "partition": job.partition,
                    },
                )
            )
        elif job.id:
            self._context.log.info(f"job {job.id}: {job.state.lower()}")
        self._last = now


class LogFollower:
    """Hands what is written to a file on to this process's output, which the UI shows."""

    def __init__(self, file: Path) -> None:
        self._file, self._read = file, 0

    def forward(self) -> None:
        if not self._file.exists():
            return
        with open(self._file, "rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        if text:
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()


def _waits(job: slurm.Job) -> str:
    """`job 12 waits in gpu: Resources, 3rd of 9; expected at 2026-...`."""
    try:
        place, waiting = slurm.position(job)
        where = f", number {place} of {waiting} that wait there"
    except slurm.SlurmUnreachable:
        where = ""
    expected = f"; expected to begin at {job.start}" if job.start else ""
    reason = job.reason or "not looked at yet"
    return f"job {job.id} waits in {job.partition}: {reason}{where}{expected}"


def why(job: slurm.Job, status: int | None, limit_near: bool, preempted: bool) -> str:
    """How a job ended, in words.

    Args:
        status: of its tasks, which end with `PREEMPTED` when they are asked to.
        limit_near: Slurm said that the time limit came near.
        preempted: Slurm wanted its nodes for another job.
    """
    told = {
        slurm.NO_TIME: "reached its time limit",
        "NODE_FAIL": "lost a node",
        "BOOT_FAIL": "lost a node",
        slurm.PREEMPTED: "was preempted: it had to make room for another job",
        slurm.CANCELLED: "was cancelled (scancel), not from here",
        slurm.NO_MEMORY: "was ended because its memory ran out",
    }
    state = slurm.PREEMPTED if preempted else job.state
    if state in told:
        ended = told[state]
    elif status is None and state == slurm.FORGOTTEN:
        ended = "is gone, and Slurm does not know how it ended"
    elif status != PREEMPTED:
        ended = f"ended as {state}, with status {status}"
    elif limit_near:
        ended = "ended in time before its time limit"
    else:
        ended = "was asked to end (SIGTERM), by Slurm or by a person, and did"
    return f"{ended} on {job.nodes}" if job.nodes else ended
