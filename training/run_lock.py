"""One launcher in a run's folder at a time: a second one would take the same steps into the same
files.

Two things together, because file systems differ. A lock of the kernel (`lock`), which ends with its
holder however that dies; it holds on local disks and on most network file systems. And a record of
the holder (`holder.json`), renewed every few seconds: it names who is there, and shows on a network
file system without locks between machines that somebody lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.atomic import remove_unfinished, writing_file

LOCK_NAME = "lock"
HOLDER_NAME = "holder.json"

RENEW_S = 5.0
SILENT_S = 30.0  # a holder on another machine that renewed nothing for so long is gone

_HELD = (errno.EACCES, errno.EAGAIN)


class FolderInUse(RuntimeError):
    """Another launcher works in the run's folder."""


@contextmanager
def holding(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder while the block runs. For one rank of a run.

    A holder that died is succeeded: at once where it was on this machine, otherwise after it was
    silent for `SILENT_S`.

    Args:
        note: is told of a wait.

    Raises:
        FolderInUse: somebody else holds it; the sentence says who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Closing any descriptor of a file ends a process's locks on it, so it is opened only here.
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locks = _lock(descriptor, folder)
        _succeed(folder, locks, note)
        ended = threading.Event()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        _record(folder, since, 0)
        renewing = threading.Thread(target=_renew, args=(folder, since, ended), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            (folder / HOLDER_NAME).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> bool:
    """Take the kernel's lock; whether this file system has such locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise _in_use(folder, _holder(folder)) from None
        return False
    return True


def _succeed(folder: Path, locks: bool, note: Callable[[str], None]) -> None:
    """Return once whoever is recorded as the holder is known to be gone."""
    first = _holder(folder)
    if first is None or (locks and first.get("host") == socket.gethostname()):
        return  # the kernel gave the lock: on this machine nobody has it any more
    note(f"{folder}: held by {_described(first)}; waiting {SILENT_S:.0f} s to see whether it lives")
    deadline = time.monotonic() + SILENT_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENT_S / 4))
        now = _holder(folder)
        if now is None:
            return
        if now != first:
            raise _in_use(folder, now)


def _renew(folder: Path, since: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(RENEW_S):
        beat += 1
        try:
            _record(folder, since, beat)
        except OSError:  # a full disk, or one that is away for a moment: the kernel's lock stays
            continue


def _record(folder: Path, since: str, beat: int) -> None:
    remove_unfinished(folder / HOLDER_NAME)
    with writing_file(folder / HOLDER_NAME, durable=False) as temporary:
        temporary.write_text(
            json.dumps(
                {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "beat": beat}
            )
        )


def _holder(folder: Path) -> dict[str, Any] | None:
    """What the record says; None where there is none, an empty one where it cannot be read."""
    try:
        found = json.loads((folder / HOLDER_NAME).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(folder: Path, holder: dict[str, Any] | None) -> FolderInUse:
    return FolderInUse(
        f"{folder} is in use by {_described(holder or {})}; wait until that run ends, or end it "
        "first. Two runs in one folder would overwrite each other's steps"
    )


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "a run that has not said its name yet"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
