"""The coordinator's handles on its child processes: the fork server, its decoders, the encoders."""

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
from typing import IO, Any

from assets.features.workers.connection import Connection
from assets.features.workers.frame_buffer import FrameBuffer
from assets.fetching.isolation import bare_environment

PROJECT = Path(__file__).parents[3]
START_S = 300.0  # for an encoder to load, or the fork server to import torch
EXIT_S = 5.0  # for a process to end by itself once its connection is closed
EXCERPT_BYTES = 1500  # of the beginning and of the end of what a process wrote to stderr


@dataclass(slots=True)
class DecoderProcess:
    """One decoding process.

    Attributes:
        id: number, never used twice.
        opener: `module:function` of its backend.
        connection: to the process.
        stderr: descriptor of the memfd that it writes its stderr to.
        slots: slots of the frame buffer that it may write to.
        job: number of the job it works on.
        jobs: how many it was given so far.
        started: when it was given the job.
        heard: when it last sent a message, or last got slots after it had none.
        without_slots_since: since when it has had no slot and so cannot go on; None if it has one.
        waited_s: seconds of the job in which it had no slot.
        killed: why it was killed or asked to end; empty while it is wanted.
    """

    id: int
    opener: str
    connection: Connection
    stderr: int
    slots: set[int] = field(default_factory=set)
    job: int | None = None
    jobs: int = 0
    started: float = 0.0
    heard: float = 0.0
    without_slots_since: float | None = None
    waited_s: float = 0.0
    killed: str = ""

    def stderr_excerpt(self) -> str:
        """What it wrote to stderr; of much, the beginning and the end."""
        return _excerpt(self.stderr)

    def close(self) -> None:
        """Close what connects us to it. It must have ended."""
        self.connection.close()
        os.close(self.stderr)


class ChildProcess:
    """A Python process that runs a module of this project, with a connection to it.

    The process ends by itself once the connection is closed, also when that is because the
    coordinator was killed.

    Args:
        title: what error messages call it.
        module: what it runs.
        arguments: after the connection's descriptor.
        environment: all of its environment.
    """

    def __init__(
        self, title: str, module: str, arguments: list[str], environment: dict[str, str]
    ) -> None:
        self.title = title
        self.connection, theirs = Connection.pair()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        descriptor = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(descriptor), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            env=environment,
            pass_fds=[descriptor],
            start_new_session=True,
        )
        theirs.close()

    def receive_within(self, seconds: float = START_S) -> list[Any]:
        """Its next message.

        Raises:
            RuntimeError: it has ended, or sent nothing in that time.
        """
        self.connection.sock.settimeout(seconds)
        try:
            message = self.connection.receive()
        except TimeoutError:
            raise RuntimeError(
                f"{self.title} did not start within {seconds:.0f} s: {self.stderr_excerpt()}"
            ) from None
        self.connection.sock.settimeout(None)
        if message is None:
            raise RuntimeError(f"{self.title} ended while starting:\n{self.stderr_excerpt()}")
        return message

    def receive(self) -> list[Any]:
        """Its next message, waiting for as long as it takes.

        Raises:
            RuntimeError: it has ended.
        """
        message = self.connection.receive()
        if message is None:
            raise RuntimeError(f"{self.title} ended:\n{self.stderr_excerpt()}")
        return message

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def stderr_excerpt(self) -> str:
        """What it wrote to stderr; of much, the beginning and the end."""
        return _excerpt(self._stderr.fileno())

    def close(self) -> None:
        """Have it end; kill it if it does not."""
        self.connection.close()
        try:
            self._process.wait(timeout=EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


class ForkServer(ChildProcess):
    """The process that decoders are forked from; see `assets.features.workers.fork_server`.

    Closing it ends every decoder with it.
    """

    def __init__(self) -> None:
        environment = bare_environment()
        environment |= {"PYTHONPATH": _python_path(), "CUDA_CACHE_DISABLE": "1"}
        module = "assets.features.workers.fork_server"
        super().__init__("the fork server of decoders", module, [], environment)
        self._last_id = 0

    def fork(self, opener: str, buffer: FrameBuffer, limits: dict[str, Any]) -> DecoderProcess:
        """Start a decoder.

        Args:
            opener: `module:function` of its backend.
            buffer: where its pictures go.
            limits: see `assets.features.workers.fork_server.run_decoder`.
        """
        ours, theirs = Connection.pair()
        stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self._last_id += 1
        files = (theirs.fileno(), stderr, buffer.descriptor)
        self.connection.send(
            "fork", self._last_id, opener, buffer.side, buffer.slots, limits, files=files
        )
        theirs.close()
        return DecoderProcess(self._last_id, opener, ours, stderr, heard=time.monotonic())

    def kill(self, decoder: DecoderProcess) -> None:
        """Kill a decoder; a message tells of its exit, as of any other."""
        self.connection.send("kill", decoder.id)


class EncoderProcess(ChildProcess):
    """One encoder on one device; see `assets.features.workers.encode`.

    Attributes:
        facts: what it said of itself when it was ready.
        pending: pictures announced to it whose slots have not come back.
        jobs: videos that it has begun and not finished.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": _python_path()}
        title = f"the encoder on {options['device']}"
        module = "assets.features.workers.encode"
        super().__init__(title, module, [json.dumps(options)], environment)
        self.facts: dict[str, Any] = {}
        self.pending = 0
        self.jobs = 0


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


def _python_path() -> str:
    """Where children find this project, however it was found here."""
    return os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _excerpt(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    if size <= 2 * EXCERPT_BYTES:
        return os.pread(descriptor, size, 0).decode(errors="replace").strip()
    ends = (
        os.pread(descriptor, EXCERPT_BYTES, start).decode(errors="replace").strip()
        for start in (0, size - EXCERPT_BYTES)
    )
    return "\n[...]\n".join(ends)
