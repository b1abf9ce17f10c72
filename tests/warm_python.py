"""Python processes that start with their imports done: forked from one that has them.

A rank of `training.train` imports for eight seconds of processor time, torchrun for five. Where it
is not tested how a process starts but what it then does, `WarmPython.start` stands for
`subprocess.Popen`. Each process, and each that it starts in turn, has the id, the parent, the
environment, the signals, the descriptors and the exit status that a started one would have.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class WarmPython:
    """Starts processes of `python -m MODULE` by forking one that has imported the module.

    Args:
        modules: those that may be run, and with them what they import late. Whatever else a process
            starts, also another module, starts as usual. None may start a thread when imported.
    """

    def __init__(self, *modules: str) -> None:
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.warm_python", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._server.wait()

    def start(self, command: Sequence[str]) -> WarmProcess:
        """Start a command of this Python, with this environment; its output goes to a pipe."""
        output, written = os.pipe()
        ended, status = os.pipe()
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        request = json.dumps({"command": list(command), "env": variables}).encode()
        socket.send_fds(self._connection, [request], [written, status])
        os.close(written)
        os.close(status)
        return WarmProcess(output, ended)


class WarmProcess:
    """What the tests use of `subprocess.Popen`.

    Attributes:
        pid: process id.
        returncode: exit status, or minus the signal; None before `poll`, `wait` or `communicate`
            has seen the end.
    """

    def __init__(self, output: int, ended: int) -> None:
        self._output, self._ended = os.fdopen(output, "rb", 0), os.fdopen(ended)
        self.pid = int(self._ended.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._await(self._ended, timeout)
            self.returncode = int(self._ended.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pieces = []
        while not pieces or pieces[-1]:
            self._await(self._output, deadline and max(0.0, deadline - time.monotonic()))
            pieces.append(self._output.read(1 << 16))
        self.wait(deadline and max(0.0, deadline - time.monotonic()))
        return b"".join(pieces).decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _await(self, stream: Any, timeout: float | None) -> None:
        if not select.select([stream], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)


def main(descriptor: str, *modules: str) -> None:
    """Import the modules, then fork what is asked for until nobody can ask any more."""
    _Popen.modules = modules
    subprocess.Popen = _Popen  # type: ignore[misc]  # before others take the name from there
    for module in modules:
        importlib.import_module(module)
    connection = socket.socket(fileno=int(descriptor))
    while True:
        request, descriptors, *_ = socket.recv_fds(connection, 1 << 20, 2)
        if not request:
            return
        _forked(functools.partial(_start, json.loads(request), *descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _start(request: dict[str, Any], output: int, ended: int) -> int:
    """Start a process, and tell its id and then how it ended, which only its parent learns."""
    process = _Fork(request["command"], env=request["env"], stdout=output, stderr=output)
    os.write(ended, f"{process.pid}\n".encode())
    os.close(output)
    os.write(ended, f"{process.wait()}\n".encode())
    return 0


def _forked(work: Callable[[], int]) -> int:
    """Do something in a forked process, which ends with the status that it gives; its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = work()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Popen(subprocess.Popen):  # type: ignore[type-arg]
    """A fork where one of the modules is to be run, and a started process otherwise."""

    modules: tuple[str, ...] = ()

    def __new__(cls, args: Any, *rest: Any, **options: Any) -> Any:
        if isinstance(args, (list, tuple)) and _module_of(args) in cls.modules:
            return _Fork(args, *rest, **options)
        return super().__new__(cls)


class _Fork:
    """What `training.supervise` and torchrun use of `subprocess.Popen`."""

    def __init__(
        self,
        args: Sequence[str],
        env: dict[str, str],
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
        preexec_fn: Callable[[], Any] | None = None,
    ) -> None:
        self.returncode: int | None = None

        def work() -> int:
            for target, source in ((1, stdout), (2, stderr)):
                if source is not None:
                    os.dup2(source, target)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    default = number == signal.SIGINT
                    signal.signal(number, signal.default_int_handler if default else signal.SIG_DFL)
            if start_new_session:
                os.setsid()
            if preexec_fn is not None:
                preexec_fn()
            os.environ.clear()
            os.environ.update(env)
            module = _module_of(args)
            sys.argv = list(args[args.index(module) :])
            with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            return 0

        self.pid = _forked(work)

    def poll(self) -> int | None:
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        if timeout is None:
            return self._wait(0)
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # collected by `end_descendants`
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _module_of(args: Sequence[Any]) -> str:
    """The module that a command of this Python runs; empty for another command."""
    if not args or args[0] != sys.executable:
        return ""
    given = [argument for argument in args[1:] if argument != "-u"]
    return str(given[1]) if given[:1] == ["-m"] else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
