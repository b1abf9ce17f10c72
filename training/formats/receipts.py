"""Whether files are still the bytes that were recorded: the one test of that, for every product.

A product's receipt names its files with sizes and hashes (`FileEntry`). To hash terabytes each time
somebody asks would take hours, so `Stamps` remember what the file system said of a file at the
moment its hash was known to hold: as long as it says the same, the bytes are taken to be the same.
Stamps are facts of one machine and one file system. They are never part of a receipt, and losing
them costs time only.

What is damaged is never deleted: `set_aside` moves it below `damaged/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import xxhash

from training.formats.storage import Storage

DAMAGED = "damaged"  # what was set aside, below the root

_BLOCK_BYTES = 1 << 22
_THREADS = 8  # disks and stores answer several readers at once; hashing releases the GIL
# A file system counts time in ticks: a second write in the same tick would not change the stamp.
_TICK_S = 0.1
_ALGORITHMS: Mapping[str, Callable[[], hashlib._Hash | xxhash.xxh64]] = {
    "sha256": hashlib.sha256,
    "xxh64": xxhash.xxh64,
}

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, order=True)
class FileEntry:
    """One file of a product.

    Attributes:
        path: relative to the root of the storage that the entry is checked against.
        size: in bytes.
        hash: `sha256:<hex>`, or `xxh64:<hex>` where a format has that hash already.
            `xxh64+8192:<hex>` is of a file whose first 8,192 bytes were written last, and are
            hashed last, so that it was hashed while it was written.
    """

    path: str
    size: int
    hash: str


@dataclass(frozen=True, slots=True, order=True)
class Damage:
    """A file that is not what its entry says.

    Attributes:
        path: as in the entry.
        fault: for people: `is missing`, `has 10 bytes instead of 12`, `has other content`.
    """

    path: str
    fault: str

    def __str__(self) -> str:
        return f"{self.path} {self.fault}"


@dataclass(slots=True)
class Stamps:
    """What the file system said of files whose hashes were known to hold.

    Attributes:
        known: path -> (hash, stamp).
    """

    known: dict[str, tuple[str, str]] = field(default_factory=dict)

    @staticmethod
    def read(storage: Storage, name: str) -> Stamps:
        """The stamps in the file `name`; none where there is no such file or it is not whole."""
        try:
            values = storage.read_json(name)
            return Stamps({path: (found[0], found[1]) for path, found in values.items()})
        except (FileNotFoundError, ValueError, LookupError, AttributeError, TypeError):
            return Stamps()

    def write(self, storage: Storage, name: str) -> None:
        """Keep the stamps in the file `name`."""
        storage.write_json(name, {path: list(found) for path, found in self.known.items()})

    def hold(self, storage: Storage, entry: FileEntry) -> bool:
        """Whether the file system says the same of a file as when its hash was known to hold.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.known.get(entry.path) == (entry.hash, storage.stamp(entry.path))

    def record(self, storage: Storage, entries: Iterable[FileEntry]) -> None:
        """Remember files whose hashes are known to hold at this moment.

        For who has just written or hashed them. A file that is younger than a tick of the file
        system is left out: it is hashed when it is asked for next.
        """
        for entry in entries:
            self._record(storage, entry, storage.stamp(entry.path))

    def _record(self, storage: Storage, entry: FileEntry, stamp: str) -> None:
        if storage.age(entry.path) > _TICK_S:
            self.known[entry.path] = (entry.hash, stamp)
        else:
            self.known.pop(entry.path, None)


def describe_files(
    storage: Storage,
    names: Iterable[str],
    stamps: Stamps | None = None,
    advance: Advance | None = None,
) -> list[FileEntry]:
    """Entries of files as they are now, by path. Every file is read once.

    Only for files that were just made: an entry that is taken from older bytes would call their
    damage whole.

    Args:
        names: relative to the storage root.
        stamps: also remembers the files here.
        advance: called with the number of bytes of each file that was read.

    Raises:
        FileNotFoundError: one of them is not there.
    """

    def describe(name: str) -> FileEntry:
        before = storage.stamp(name)
        size, digest = _hash(storage, name, "sha256", advance)
        entry = FileEntry(name, size, f"sha256:{digest}")
        if stamps is not None:
            stamps._record(storage, entry, before)
        return entry

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(describe, sorted(names)))


def find_damage(
    storage: Storage,
    entries: Iterable[FileEntry],
    stamps: Stamps,
    full: bool = False,
    advance: Advance | None = None,
) -> list[Damage]:
    """Files that are not what their entries say, by path; none means that all are whole.

    A file is read only where its stamp is not the remembered one. A file that was read and is whole
    is remembered in `stamps`, which the caller may keep.

    Args:
        full: read every file, whatever its stamp says.
        advance: called with the number of bytes of each file that was looked at.

    Raises:
        OSError: a file is there and cannot be read: a fault of the machine, not of the file.
    """

    def inspect(entry: FileEntry) -> Damage | None:
        try:
            return _inspect(storage, entry, stamps, full, advance)
        except FileNotFoundError:
            return Damage(entry.path, "is missing")

    storage.forget_listings()
    with ThreadPoolExecutor(_THREADS) as pool:
        return [found for found in pool.map(inspect, sorted(entries)) if found]


def set_aside(storage: Storage, rel: str) -> str:
    """Move a damaged file or folder out of the way, below `damaged/`; returns its new name."""
    number = 1
    while storage.exists(target := f"{DAMAGED}/{rel}.{number}"):
        number += 1
    storage.move(rel, target)
    return target


def _inspect(
    storage: Storage, entry: FileEntry, stamps: Stamps, full: bool, advance: Advance | None
) -> Damage | None:
    stamp = storage.stamp(entry.path)
    if not full and stamps.known.get(entry.path) == (entry.hash, stamp):
        if advance:
            advance(entry.size)
        return None
    stamps.known.pop(entry.path, None)
    if (size := storage.size(entry.path)) != entry.size:
        return Damage(entry.path, f"has {size:,} bytes instead of {entry.size:,}")
    algorithm, _, expected = entry.hash.partition(":")
    _, digest = _hash(storage, entry.path, algorithm, advance)
    if digest != expected:
        return Damage(entry.path, "has other content")
    stamps._record(storage, entry, stamp)
    return None


def _hash(storage: Storage, name: str, algorithm: str, advance: Advance | None) -> tuple[int, str]:
    """(bytes, hash as hexadecimal) of a file."""
    algorithm, _, last = algorithm.partition("+")
    if algorithm not in _ALGORITHMS or not (last == "" or last.isdecimal()):
        raise ValueError(f"{name}: unknown hash {algorithm!r}; known: {', '.join(_ALGORITHMS)}")
    digest, size = _ALGORITHMS[algorithm](), 0
    with storage.open(name) as file:
        start = file.read(int(last or 0))
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            if advance:
                advance(len(block))
    digest.update(start)
    if advance and start:
        advance(len(start))
    return size + len(start), digest.hexdigest()
