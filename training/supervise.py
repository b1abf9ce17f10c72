"""Run a training command so that none of its processes is left when its owner ends:
`python -m training.supervise COMMAND ...`.

The ranks that torchrun starts live in sessions of their own, so ending torchrun's process group
misses them. Therefore:

- this process becomes the parent of what its descendants orphan, and at its end it ends every
  descendant that is left;
- the command dies with this process (also when this is killed outright), and a rank dies with the
  command, because both ask the kernel for it (`die_with_parent`). One that begins after its parent
  died sees it: it is told who its parent, or its parent's parent, has to be;
- the first SIGINT or SIGTERM asks the ranks to write a checkpoint and end (a file that they look at
  after every step); a second signal ends the command, a third one kills it; when the owner of this
  process died, the command is killed at once;
- the exit status is the one that the first failing rank wrote down, since torchrun itself answers 1
  for everything.

Standard library only: it starts in milliseconds. Linux gives the guarantees; elsewhere only the
orderly ends work.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

# Names the folder in which this process and the ranks leave each other messages.
CONTROL_VARIABLE = "HOURLLAVA_CONTROL"
# Process ids, which whoever starts a process tells it: by the time it asks, its parent may have
# died, and another process be its parent.
OWNER_VARIABLE = "HOURLLAVA_OWNER"  # of who starts this module; without it, who is the parent now
SUPERVISOR_VARIABLE = "HOURLLAVA_SUPERVISOR"  # of this module's process, for the ranks
STOP_NAME = "stop"
FAILURE_NAME = "failure.json"

OK = 0
FAILED = 1
CONFIGURATION = 2  # trying again cannot help
MACHINE = 74  # a disk or a store is at fault; mended, the same command continues
PREEMPTED = 75  # a checkpoint was written on request; the same command continues from it

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.1


def main(command: list[str]) -> int:
    """Run `command` to its end.

    Returns:
        0 when it ended well; otherwise the status that a rank reported, or 1.
    """
    if not command:
        print("usage: python -m training.supervise COMMAND [ARGUMENT ...]", file=sys.stderr)
        return CONFIGURATION
    owner = int(os.environ.pop(OWNER_VARIABLE, os.getppid()))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    die_with_parent(signal.SIGTERM, expected_parent=owner)
    given = os.environ.get(CONTROL_VARIABLE)
    control = Path(given or tempfile.mkdtemp(prefix="hourllava-control-"))
    control.mkdir(parents=True, exist_ok=True)
    for name in (STOP_NAME, FAILURE_NAME):
        (control / name).unlink(missing_ok=True)
    status = _run(command, control, owner)
    failure = read_failure(control)
    if not given:
        shutil.rmtree(control, ignore_errors=True)
    if status == OK:
        return OK
    if failure is not None:
        print(f"training.supervise: {failure['message']}", file=sys.stderr)
        return int(failure["code"])
    print(
        f"training.supervise: the command ended with status {status} and reported no reason",
        file=sys.stderr,
    )
    # Without a report these two, and death by a signal, do not mean what they mean here.
    return FAILED if status in (CONFIGURATION, MACHINE, PREEMPTED) or status < 0 else status


def _run(command: list[str], control: Path, owner: int) -> int:
    """Start the command, wait for it, and end what it left; its exit status."""
    this = os.getpid()
    signals = _SignalHandler(control, owner)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signals)
    process = signals.process = subprocess.Popen(
        command,
        env={**os.environ, CONTROL_VARIABLE: str(control), SUPERVISOR_VARIABLE: str(this)},
        # Ctrl-C reaches this process alone, which then asks for the orderly end.
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(signal.SIGKILL, expected_parent=this),
    )
    try:
        while process.poll() is None:
            if os.getppid() != owner:
                process.kill()
            time.sleep(_POLL_S)
        return process.returncode
    finally:
        end_descendants()


class _SignalHandler:
    """Asks for the orderly end, then ends, then kills the command."""

    def __init__(self, control: Path, owner: int) -> None:
        self.control = control
        self.owner = owner
        self.received = 0
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.received += 1
        if self.process is None:
            raise SystemExit(PREEMPTED)
        if os.getppid() != self.owner or self.received > 2:
            self.process.kill()
        elif self.received == 2:
            self.process.terminate()
        else:
            (self.control / STOP_NAME).touch()


def die_with_parent(number: int, expected_parent: int | None = None) -> None:
    """Have the kernel send this process the signal `number` when its parent ends (Linux).

    Args:
        expected_parent: end at once if the parent is another one, that is, if it died before this
            call.
    """
    _prctl(_PR_SET_PDEATHSIG, int(number))
    if expected_parent is not None and os.getppid() != expected_parent:
        os._exit(FAILED)


def die_with_torchrun() -> None:
    """Have the kernel kill this rank when the torchrun process that started it ends; end at once if
    that, or the supervisor above it, died already.
    """
    parent = os.getppid()
    die_with_parent(signal.SIGKILL, expected_parent=parent)
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    # Without /proc nobody can tell; there the supervisor alone ends what is left.
    if supervisor is not None and _parent_of(parent) not in (int(supervisor), None):
        os._exit(FAILED)


def stop_requested() -> bool:
    """Whether this machine's `training.supervise` was asked to stop."""
    folder = os.environ.get(CONTROL_VARIABLE)
    return folder is not None and os.path.exists(os.path.join(folder, STOP_NAME))


class StopRequest:
    """Whether this rank is to stop: its supervisor was asked to, or, inside the block, it got
    SIGTERM or SIGINT itself.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._earlier: dict[int, Any] = {}  # handlers by signal

    def made(self) -> bool:
        """Whether somebody asked."""
        return self._signalled or stop_requested()

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True


def report_failure(code: int, message: str) -> None:
    """Write down why this rank ends, for `training.supervise` and who started it; the first report
    counts.

    Args:
        code: exit status, one of those above.
    """
    folder = os.environ.get(CONTROL_VARIABLE)
    if folder is None:
        return
    temporary = Path(folder) / f".{FAILURE_NAME}-{os.getpid()}"
    temporary.write_text(
        json.dumps({"code": code, "message": message, "rank": os.environ.get("RANK", "0")})
    )
    try:
        os.link(temporary, Path(folder) / FAILURE_NAME)
    except FileExistsError:
        pass  # another rank was first, and this one probably fails because of it
    finally:
        temporary.unlink()


def read_failure(control: Path) -> dict[str, str | int] | None:
    """What `report_failure` wrote: `code`, `message`, `rank`; None where it was not called."""
    try:
        return dict(json.loads((control / FAILURE_NAME).read_text()))
    except FileNotFoundError:
        return None


def end_descendants() -> None:
    """Kill every descendant of this process and wait for it, until there is none."""
    while descendants := _descendants(os.getpid()):
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
        _reap()


def _descendants(pid: int) -> list[int]:
    """Processes below `pid`, parents first; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if (parent := _parent_of(int(folder.name))) is not None:
            parents.setdefault(parent, []).append(int(folder.name))
    found = list(parents.get(pid, []))
    for child in found:
        found += parents.get(child, [])
    return found


def _parent_of(pid: int) -> int | None:
    """The parent of a process; None where it is gone, or there is no /proc."""
    try:
        # The name, in parentheses, may hold anything; state and parent follow the last one.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
