"""What changed in one table of the catalogue since its snapshot: one JSON object a line.

Beside it lies the lock that lets only one process write the table.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from assets.fetching.disk import scratch
from assets.fetching.errors import OperatorError
from training.formats import layout
from training.formats.storage import Storage

Changes = dict[str, dict[str, Any]]  # id of a video -> field -> new value


def journal_path(storage: Storage, source: str, part: str) -> Path:
    """The journal lies beside a local snapshot; for a remote one it is in this machine's cache."""
    if storage.is_local:
        return Path(storage.path(layout.catalogue(source, f"{part}.journal.jsonl")))
    return scratch(storage, "catalogue", source) / f"{part}.journal.jsonl"


def read_journal(path: Path) -> Changes:
    """The changes of a journal, none where there is no file. A torn last line never counted."""
    changes: Changes = {}
    if path.exists():
        with open(path, "rb") as file:
            for line in file:
                try:
                    change = json.loads(line)
                except ValueError:
                    break
                changes.setdefault(change.pop("id"), {}).update(change)
    return changes


class Journal:
    """The journal of one source and part, open for writing.

    Raises:
        OperatorError: another process has it open.
    """

    def __init__(self, storage: Storage, source: str, part: str) -> None:
        self._lock = _lock(storage, source, part)
        path = journal_path(storage, source, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is written by one call.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, identifier: str, changes: dict[str, Any]) -> None:
        """Add a line; on return it is on the disk."""
        line = json.dumps({"id": identifier, **changes}, ensure_ascii=False).encode() + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(start)  # what follows a torn line would be lost
            raise
        os.fsync(self._file.fileno())

    @property
    def is_empty(self) -> bool:
        """Whether the file holds nothing, not even a torn line."""
        return os.fstat(self._file.fileno()).st_size == 0

    def clear(self) -> None:
        """Empty the journal, after a snapshot has taken its changes."""
        self._file.truncate(0)

    def close(self) -> None:
        """Close the file and let the next writer in."""
        self._file.close()
        os.close(self._lock)


def _lock(storage: Storage, source: str, part: str) -> int:
    """A descriptor that holds the writer's lock until it is closed, also by the death of the
    process. The lock file names the process that has it.
    """
    path = scratch(storage, "locks") / f"{source}.{part}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise OperatorError(
            f"the catalogue of {source}, {part} is being written by process {holder or 'unknown'}; "
            "wait for that run"
        ) from None
    os.truncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())
    return descriptor
