"""What changed in one table of the catalogue since its snapshot: one JSON object a line. The first
line names the snapshot, by the hash of its rows: to any other one the changes do not belong.

Beside it lies the lock that lets only one process write the table.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from assets.fetching.disk import scratch
from assets.fetching.errors import OperatorError
from training.formats import layout
from training.formats.storage import Storage

Change = dict[str, Any]  # field of a row -> new value


def journal_path(storage: Storage, source: str, part: str) -> Path:
    """The journal lies beside a local snapshot; for a remote one it is in this machine's cache."""
    if storage.is_local:
        return Path(storage.path(layout.catalogue(source, f"{part}.journal.jsonl")))
    return scratch(storage, "catalogue", source) / f"{part}.journal.jsonl"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a journal holds.

    Attributes:
        continues: hash of the rows of the snapshot that it was begun on; None where nothing counts.
        by_id: id of a video -> field -> new value.
    """

    continues: str | None = None
    by_id: Mapping[str, Change] = field(default_factory=dict)


def read_journal(path: Path) -> Changes:
    """What a journal holds; nothing where there is no file. A torn last line never counted."""
    try:
        with open(path, "rb") as file:
            lines = list(_whole_lines(file))
    except FileNotFoundError:
        return Changes()
    if not lines:
        return Changes()
    by_id: dict[str, Change] = {}
    for change in lines[1:]:
        by_id.setdefault(change.pop("id"), {}).update(change)
    return Changes(lines[0].get("continues", ""), by_id)


def _whole_lines(file: BinaryIO) -> Iterator[Change]:
    for line in file:
        try:
            yield json.loads(line)
        except ValueError:
            return


class Journal:
    """The journal of one source and part, open for writing.

    Raises:
        OperatorError: another process has it open.
    """

    def __init__(self, storage: Storage, source: str, part: str) -> None:
        self._lock = _lock(storage, source, part)
        self._path = journal_path(storage, source, part)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._continues = ""
        self._open()

    def _open(self) -> None:
        # Unbuffered: a line is written by one call.
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, identifier: str, change: Change) -> None:
        """Add a line; on return it is on the disk."""
        line = json.dumps({"id": identifier, **change}, ensure_ascii=False).encode() + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        if start == 0:  # in one call: a change without the first line would count for nothing
            line = json.dumps({"continues": self._continues}).encode() + b"\n" + line
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            self._file.truncate(start)  # what follows a torn line would be lost
            raise
        os.fsync(self._file.fileno())

    def begin(self, continues: str) -> None:
        """Empty the journal, after a snapshot has taken its changes; what is added from now on
        continues that snapshot.
        """
        self._file.truncate(0)
        self._continues = continues

    def set_aside(self) -> Path:
        """Keep the journal under another name, and go on with an empty one; returns that name."""
        number = 1
        while (kept := self._path.with_name(f"{self._path.name}.{number}")).exists():
            number += 1
        self._file.close()
        self._path.rename(kept)
        self._open()
        return kept

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
