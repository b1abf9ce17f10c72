"""The files of a product: their list in the register, and whether they still are what it says.

With the lineage record (`lineage.py`) the list is a product's receipt. It lies beside the record,
one file a line, and the record holds its hash. A product of millions of files lists lists instead:
a file of the product whose name ends with `.files.json` is a list of further files of it.

Stamps (`training/formats/receipts.py`) lie apart from the register: they are facts of a file
system, and a root that was copied has others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import orjson

from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import (
    Advance,
    Damage,
    FileEntry,
    Stamps,
    describe_files,
    find_damage,
    set_aside,
)
from training.formats.storage import Storage

LIST_SUFFIX = ".files.json"


def split_product(name: str) -> tuple[str, str | None]:
    """Asset and partition of a product; None where there is no partition."""
    asset, _, partition = name.partition("[")
    return asset, partition.removesuffix("]") or None


def register_name(folder: str, name: str, suffix: str) -> str:
    """Where something about product `name` lies in `folder`, relative to the storage root."""
    asset, partition = split_product(name)
    return f"{folder}/{asset}/{(partition or 'all').replace('|', '+')}{suffix}"


def list_name(name: str) -> str:
    """File of the list of a product's files, relative to the storage root."""
    return register_name(layout.LINEAGE, name, LIST_SUFFIX)


def list_hash(files: Iterable[FileEntry]) -> str:
    """What a lineage record holds of the list: equal files give an equal hash."""
    return data_version([[entry.path, entry.size, entry.hash] for entry in sorted(files)])


def write_list(storage: Storage, rel: str, files: Iterable[FileEntry]) -> None:
    """Write a list of files, by path, one a line: the same files give the same bytes."""
    lines = [orjson.dumps([entry.path, entry.size, entry.hash]) for entry in sorted(files)]
    storage.write_bytes(rel, b"[\n" + b",\n".join(lines) + b"\n]\n")


def read_list(storage: Storage, rel: str) -> list[FileEntry]:
    """The files of a list.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: it is not what `write_list` wrote.
    """
    try:
        entries = [FileEntry(*line) for line in orjson.loads(storage.read_bytes(rel))]
    except (TypeError, orjson.JSONDecodeError) as error:
        raise ValueError(f"{storage.path(rel)}: not a list of files ({error})") from error
    return entries


def record_files(storage: Storage, name: str, files: Sequence[FileEntry]) -> None:
    """Write the list of a product's files, and remember that they are whole.

    For files that were written or hashed by this run. What was remembered before and looks
    otherwise now is forgotten: it is hashed when it is asked for next.
    """
    write_list(storage, list_name(name), files)
    earlier, stamps = _read_stamps(storage, name), Stamps()

    def remember(entry: FileEntry) -> None:
        before = earlier.known.get(entry.path)
        if before is None or before[0] != entry.hash:
            stamps.record(storage, [entry])
        elif earlier.hold(storage, entry):
            stamps.known[entry.path] = before
        if entry.path.endswith(LIST_SUFFIX):
            _stamp_listed(storage, entry, earlier, stamps)

    with ThreadPoolExecutor(16) as pool:  # remote roots answer slowly, but many at once
        list(pool.map(remember, files))
    _write_stamps(storage, name, stamps)


def _stamp_listed(storage: Storage, entry: FileEntry, earlier: Stamps, stamps: Stamps) -> None:
    """Remember that the files of a listed list are whole, as `record_files` does."""
    stamp = _stamp_of(storage, read_list(storage, entry.path))
    before = earlier.known.get(_together(entry))
    if stamp is None:
        return
    if before is None or before[0] != entry.hash or before[1] == stamp:
        stamps.known[_together(entry)] = (entry.hash, stamp)


def _together(entry: FileEntry) -> str:
    """Under which name the one stamp of all files of a list stands."""
    return f"{entry.path}#files"


class KnownFiles:
    """Entries of a product's files that are known to be whole, for who makes the product again and
    keeps some of them.

    Attributes:
        storage: where the files are.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self._name = storage, name
        self._stamps = _read_stamps(storage, name)
        try:
            self._listed = {entry.path: entry for entry in read_list(storage, list_name(name))}
        except (FileNotFoundError, ValueError):
            self._listed = {}
        self._new: list[FileEntry] = []

    def entry(self, path: str) -> FileEntry | None:
        """The entry of a file that is there and whole; None where that is not known.

        Known is what stands in the receipt, and what a run that was ended early has hashed.
        """
        digest, _ = self._stamps.known.get(path, ("", ""))
        if digest:
            entry = FileEntry(path, self.storage.size(path), digest)
            if self._stamps.hold(self.storage, entry):
                return entry
        listed = self._listed.get(path)
        if listed is None or find_damage(self.storage, [listed], self._stamps):
            return None
        return listed

    def add(self, entry: FileEntry) -> None:
        """Remember a file that was just made, also where this run is ended before it is recorded.
        `save` keeps it.
        """
        self._new.append(entry)

    def save(self) -> None:
        """Keep what was added."""
        if self._new:
            self._stamps.record(self.storage, self._new)
            # A file that is too young for a stamp waits for the next time.
            self._new = [entry for entry in self._new if entry.path not in self._stamps.known]
            _write_stamps(self.storage, self._name, self._stamps)

    def describe(self, names: Iterable[str]) -> list[FileEntry]:
        """Entries of a product's files as they are now. What is not known was made by this run, and
        is hashed.
        """
        known = {name: self.entry(name) for name in names}
        made = [name for name, entry in known.items() if entry is None]
        return sorted([*filter(None, known.values()), *describe_files(self.storage, made)])


def find_product_damage(
    storage: Storage,
    name: str,
    recorded: str,
    *,
    full: bool = False,
    lists: bool = True,
    advance: Advance | None = None,
) -> list[Damage]:
    """Files of a product that are not what its receipt says; none when all are whole.

    Args:
        name: of the product.
        recorded: hash of the list, of the lineage record.
        full: read every byte, whatever the stamps say.
        lists: also look at the files of listed lists, which may be millions.
        advance: called with the number of bytes of each file that was looked at.
    """
    try:
        files = read_list(storage, list_name(name))
    except FileNotFoundError:
        return [Damage(list_name(name), "is missing")]
    except ValueError:
        files = []
    if list_hash(files) != recorded:
        return [Damage(list_name(name), "has other content")]
    with _kept_stamps(storage, name) as stamps:
        found = find_damage(storage, files, stamps, full, advance)
        if lists:
            damaged = {damage.path for damage in found}
            for entry in files:
                if entry.path.endswith(LIST_SUFFIX) and entry.path not in damaged:
                    found += find_listed_damage(storage, entry, stamps, full=full, advance=advance)
    return found


def find_file_damage(storage: Storage, name: str, files: Iterable[FileEntry]) -> list[Damage]:
    """Files of a product that are not what their entries say, whether they are in its receipt yet
    or not. What is found to be whole is remembered.
    """
    with _kept_stamps(storage, name) as stamps:
        return find_damage(storage, files, stamps)


def find_listed_damage(
    storage: Storage,
    entry: FileEntry,
    stamps: Stamps,
    *,
    full: bool = False,
    advance: Advance | None = None,
) -> list[Damage]:
    """Files of a listed list that are not what it says.

    The list is whole. Its files have one stamp together: a stamp for each of millions would outgrow
    the list itself.
    """
    files = read_list(storage, entry.path)
    together = _together(entry)
    if not full and stamps.known.get(together) == (entry.hash, _stamp_of(storage, files)):
        if advance:
            advance(sum(file.size for file in files))
        return []
    stamps.known.pop(together, None)
    stamp = _stamp_of(storage, files)
    found = find_damage(storage, files, Stamps(), full=True, advance=advance)
    if not found and stamp is not None:
        stamps.known[together] = (entry.hash, stamp)
    return found


def _stamp_of(storage: Storage, files: Iterable[FileEntry]) -> str | None:
    """One stamp of many files; None where one of them is missing."""
    try:
        return data_version([storage.stamp(entry.path) for entry in files])
    except FileNotFoundError:
        return None


def set_aside_damage(
    storage: Storage, name: str, recorded: str, log: Callable[[str], None]
) -> list[Damage]:
    """Move what is damaged of a product out of the way, so that it is made again; returns it.

    Args:
        name: of the product.
        recorded: hash of the list, of the lineage record.
        log: takes a line for each damaged file, which says where it is now.
    """
    found = find_product_damage(storage, name, recorded)
    set_files_aside(storage, name, found, log)
    return found


def set_files_aside(
    storage: Storage, name: str, damaged: Iterable[Damage], log: Callable[[str], None]
) -> None:
    """Move damaged files of a product out of the way, with a line for each of them."""
    for damage in damaged:
        if storage.exists(damage.path):
            log(f"{name}: {damage}; set aside as {set_aside(storage, damage.path)}, made again")
        else:
            log(f"{name}: {damage}; made again")


def describe_folder(storage: Storage, folder: str) -> list[FileEntry]:
    """Entries of all files below the folder of a product that was just made."""
    return describe_files(storage, storage.list(folder))


@contextmanager
def _kept_stamps(storage: Storage, name: str) -> Iterator[Stamps]:
    """The stamps of a product; what the block learns of its files is kept."""
    stamps = _read_stamps(storage, name)
    before = dict(stamps.known)
    yield stamps
    if stamps.known != before:
        _write_stamps(storage, name, stamps)


def _stamps_name(name: str) -> str:
    return register_name(layout.STAMPS, name, ".json")


def _read_stamps(storage: Storage, name: str) -> Stamps:
    return Stamps.read(storage, _stamps_name(name))


def _write_stamps(storage: Storage, name: str, stamps: Stamps) -> None:
    stamps.write(storage, _stamps_name(name))
