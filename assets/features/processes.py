"""The coordinator's handles on its child processes: the nursery with the decoders it forks, and the
encoders.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.features.channel import Channel
from assets.features.ring import Ring

PROJECT = Path(__file__).parents[2]
EXCERPT = 1500

# What decoders may know of the environment. Everything else stays out: it may hold credentials.
DECODER_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)


@dataclass(slots=True)
class Worker:
    """One decoding process.

    Attributes:
        name: number, never used twice.
        opener: ``module:function`` of its backend.
        granted: slots that are its own: it holds them or is filling them.
        job: what it works on.
        last: when it was last heard of, or last had to wait for us.
        waited: seconds of the job in which it had no slot.
    """

    name: int
    opener: str
    channel: Channel
    stderr: int
    granted: set[int] = field(default_factory=set)
    job: int | None = None
    jobs: int = 0
    started: float = 0.0
    last: float = 0.0
    empty_since: float | None = None
    waited: float = 0.0
    killed: str = ""

    def said(self) -> str:
        """What it wrote to stderr; of much, the beginning and the end."""
        return _excerpt(self.stderr)

    def close(self) -> None:
        self.channel.close()
        os.close(self.stderr)


class Nursery:
    """The process that decoders are forked from; see :mod:`assets.features.nursery`."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in DECODER_ENVIRONMENT if name in os.environ}
        environment |= {"PYTHONPATH": python_path(), "CUDA_CACHE_DISABLE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process, self.channel, self._log = _start("assets.features.nursery", [], environment)
        self._names = 0

    def fork(self, opener: str, ring: Ring, limits: dict[str, Any]) -> Worker:
        ours, theirs = Channel.pair()
        stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._names += 1
        files = (theirs.fileno(), stderr, ring.descriptor)
        self.channel.send("fork", self._names, opener, ring.side, ring.slots, limits, files=files)
        theirs.close()
        return Worker(self._names, opener, ours, stderr, last=time.monotonic())

    def kill(self, worker: Worker) -> None:
        self.channel.send("kill", worker.name)

    def error(self) -> str:
        return _said(self._log)

    def close(self) -> None:
        """End it and every decoder with it."""
        self.channel.close()
        _end(self.process)
        self._log.close()


class EncoderProcess:
    """One encoder on one device; see :mod:`assets.features.encode`."""

    def __init__(self, options: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": python_path()}
        self.process, self.channel, self._log = _start(
            "assets.features.encode", [json.dumps(options)], environment
        )
        self.device = options["device"]
        self.facts: dict[str, Any] = {}
        self.pending = 0  # pictures announced to it whose slots have not come back
        self.jobs = 0

    def error(self) -> str:
        return _said(self._log)

    def close(self) -> None:
        self.channel.close()
        _end(self.process)
        self._log.close()


def describe_exit(status: int) -> tuple[str, str]:
    """Reason and detail for a decoder that ended without being asked to, from its wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        if number == signal.SIGKILL:
            return "oom", "killed by the system, which does that when memory runs out"
        if number == signal.SIGXCPU:
            return "timeout", "used up its CPU time"
        return "crash", f"the decoding process died of {name}"
    return "crash", f"the decoding process ended with code {os.waitstatus_to_exitcode(status)}"


def python_path() -> str:
    """Where children find this project, however it was found here."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _start(
    module: str, arguments: list[str], environment: dict[str, str]
) -> tuple[Any, Channel, Any]:
    ours, theirs = Channel.pair()
    log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
    descriptor = theirs.fileno()
    process = subprocess.Popen(
        [sys.executable, "-m", module, str(descriptor), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        pass_fds=[descriptor],
        start_new_session=True,
    )
    theirs.close()
    return process, ours, log


def _said(log: Any) -> str:
    return _excerpt(log.fileno())


def _excerpt(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    if size <= 2 * EXCERPT:
        return os.pread(descriptor, size, 0).decode(errors="replace").strip()
    ends = (
        os.pread(descriptor, EXCERPT, start).decode(errors="replace").strip()
        for start in (0, size - EXCERPT)
    )
    return "\n[...]\n".join(ends)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment for a process that has lost its channel, then kill it."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
