"""A file that is being fetched: which bytes of it are there, and of which file of the server.

The record outlives a kill. It is believed only while the machine has not been started anew: after a
loss of power the record may be on the disk and the bytes it speaks of may not.
"""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Self

from assets.fetching.retry import raise_if_disk
from model.atomic import writing_file

BLOCK_BYTES = 16 << 20  # what one connection asks for at a time
BOOT = Path("/proc/sys/kernel/random/boot_id")
CLEARLY_BEFORE_S = 1.0  # RFC 9110, 8.8.2.2: from then on Last-Modified tells two files apart


class PartialFile:
    """A file of known size, in blocks. Many threads may write to it, each to a block of its own.

    Attributes:
        path: of the bytes.
        total: size of the whole file.
        validator: what the server's file is known by, sent as If-Range; None where the server names
            nothing that is safe to resume by.
    """

    def __init__(self, folder: Path, total: int, validator: str | None, done: list[int]) -> None:
        self.path, self.total, self.validator = folder / "direct.part", total, validator
        self._record, self._counters = folder / "direct.json", folder / "direct.done"
        self.done = done  # bytes of each block, from its start
        self._lock = threading.Lock()
        self._claimed: set[int] = set()
        self._reserved: set[int] = set()
        self._bytes = self._numbers = -1

    @classmethod
    def created(cls, folder: Path, total: int, validator: str | None) -> Self:
        """An empty one, in the place of any that is there."""
        part = cls(folder, total, validator, [0] * -(-total // BLOCK_BYTES))
        part.remove()
        part._counters.write_bytes(bytes(8 * len(part.done)))
        part.path.write_bytes(b"")
        if validator is not None:
            record = {"total": total, "validator": validator, "boot": _boot()}
            with writing_file(part._record, durable=False) as temporary:
                temporary.write_text(json.dumps(record))
        return part

    @classmethod
    def left(cls, folder: Path) -> Self | None:
        """What an interrupted transfer left, if it can be gone on with."""
        try:
            record = json.loads((folder / "direct.json").read_text())
            raw = (folder / "direct.done").read_bytes()
            done = [count for (count,) in struct.iter_unpack("<Q", raw)]
            part = cls(folder, record["total"], record["validator"], done)
            believed = record["boot"] == _boot() and part._is_possible()
        except (OSError, ValueError, KeyError, struct.error):
            return None
        return part if believed else None

    def _is_possible(self) -> bool:
        size = self.path.stat().st_size
        ends = [n * BLOCK_BYTES + count for n, count in enumerate(self.done) if count]
        fits = all(count <= self.length(n) for n, count in enumerate(self.done))
        return (
            fits
            and len(self.done) == -(-self.total // BLOCK_BYTES)
            and max(ends, default=0) <= size
        )

    def __enter__(self) -> Self:
        self._bytes = os.open(self.path, os.O_WRONLY)
        self._numbers = os.open(self._counters, os.O_WRONLY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._bytes)
        os.close(self._numbers)

    def length(self, block: int) -> int:
        """Bytes that a block has when it is whole."""
        return min(BLOCK_BYTES, self.total - block * BLOCK_BYTES)

    def next_byte(self, block: int) -> int:
        """The first byte of a block that is not there."""
        return block * BLOCK_BYTES + self.done[block]

    @property
    def missing(self) -> int:
        """Bytes that are not there."""
        return self.total - sum(self.done)

    def first_gap(self) -> int | None:
        """The first block that is not whole."""
        gaps = (n for n, count in enumerate(self.done) if count < self.length(n))
        return next(gaps, None)

    def reserve_last(self) -> int | None:
        """The last block that nobody has or is about to ask for; None where none is left."""
        with self._lock:
            for block in reversed(range(len(self.done))):
                if block not in self._reserved and self._is_free(block):
                    self._reserved.add(block)
                    return block
            return None

    def claim(self, block: int, start: int) -> bool:
        """Take a block for one thread, whose next byte is to be `start`; False where it is whole,
        taken, not there or elsewhere by now.
        """
        with self._lock:
            if (
                block >= len(self.done)
                or not self._is_free(block)
                or start != self.next_byte(block)
            ):
                return False
            self._claimed.add(block)
            return True

    def give_back(self, block: int) -> None:
        """A thread ends with a block that it claimed, whole or not."""
        with self._lock:
            self._claimed.discard(block)

    def _is_free(self, block: int) -> bool:
        return block not in self._claimed and self.done[block] < self.length(block)

    def cancel(self, block: int) -> None:
        """A thread ends with a block that it reserved."""
        with self._lock:
            self._reserved.discard(block)

    def write(self, block: int, data: bytes) -> None:
        """Add bytes to a block; what they are counted by is written after them."""
        try:
            _write_all(self._bytes, data, self.next_byte(block))
            self.done[block] += len(data)
            os.pwrite(self._numbers, struct.pack("<Q", self.done[block]), 8 * block)
        except OSError as error:
            raise_if_disk(error)
            raise

    def finish(self, target: Path) -> None:
        """Bring the bytes to the disk, and give the whole file its name."""
        os.fsync(self._bytes)
        self._record.unlink(missing_ok=True)
        os.replace(self.path, target)
        self._counters.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget everything; the record goes first, so that nothing believes the rest."""
        for path in (self._record, self._counters, self.path):
            path.unlink(missing_ok=True)


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """What a file of a server is known by, where two files never share it (RFC 9110, 8.8): a strong
    ETag, or a Last-Modified that clearly lies before the answer.
    """
    etag = headers.get("ETag", "").strip()
    if etag.startswith('"'):
        return etag
    modified, date = headers.get("Last-Modified"), headers.get("Date")
    if modified and date:
        with suppress(TypeError, ValueError):
            age = parsedate_to_datetime(date) - parsedate_to_datetime(modified)
            return modified if age.total_seconds() >= CLEARLY_BEFORE_S else None
    return None


def is_still(headers: Mapping[str, str], validator: str) -> bool:
    """Whether an answer is of the file that `validator` belongs to."""
    name = "ETag" if validator.startswith('"') else "Last-Modified"
    return headers.get(name, "").strip() == validator


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _boot() -> str | None:
    return BOOT.read_text().strip() if BOOT.exists() else None
