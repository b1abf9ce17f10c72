"""Which MDS shards a run reads, and whether they are whole.

A missing or damaged shard makes MosaicML Streaming end an epoch early or wait for ever. So the
index is read here, and every shard is checked before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import Reader, reader_from_json
from streaming.base.format.mds import MDSReader

from training.formats import layout
from training.formats.file_cache import DEFAULT_BYTES, FileCache
from training.formats.kinds import KINDS
from training.formats.machine_faults import wait_out
from training.formats.mds_columns import ShardColumns
from training.formats.receipts import FileEntry, Stamps, find_damage
from training.formats.sample import is_relative_name
from training.formats.storage import Storage
from training.run_config import StreamConfig

HASH = "xxh64"
VIDEO_GROUPS = ("short videos", "long videos")

Faults = dict[int, str]  # number of a damaged shard -> what is wrong with it
Known = dict[str, dict[str, tuple[str, str]]]  # of stamps, by root
# What each rank finds out for itself, of all ranks; they wait for each other as long as it takes.
Gather = Callable[[Callable[[], Any]], list[Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard file of one stream.

    Attributes:
        stream: number of its stream.
        rel: its name below the stream's root.
        samples: rows that are read, the first ones; all of them unless the run limits a kind.
        bytes, xxh64: what its index says.
    """

    stream: int
    rel: str
    samples: int
    bytes: int
    xxh64: str

    @property
    def entry(self) -> FileEntry:
        """What its file has to be."""
        return FileEntry(self.rel, self.bytes, f"{HASH}:{self.xxh64}")

    @property
    def kind(self) -> str:
        """The kind that its folder is named after."""
        return self.rel.rpartition("/")[0].rpartition("/")[2].rpartition("_part")[0]

    @property
    def may_hold_videos(self) -> bool:
        """Whether its samples may name videos."""
        kind = KINDS.get(self.kind)
        return kind is None or kind.group in VIDEO_GROUPS


class ShardIndex:
    """All shards of a run, stream after stream. Rows are numbered through all of them.

    Args:
        streams: as configured.
        cache, cache_bytes: where copies of remote shards are kept, and how much of them.
        rows: how many rows of some kinds are read, see `first_rows`.

    Attributes:
        streams: as configured.
        storages, caches: where the files of each stream are, and their local copies.
        shards: all of them.
        readers: the library's reader of each shard; it does not open the file yet.
        first_row: int64 [shards + 1], number of the first row of each shard, and of all rows.
        damaged: what `verify` found.

    Raises:
        FileNotFoundError, ValueError: see `read_indexes`.
    """

    def __init__(
        self,
        streams: Sequence[StreamConfig],
        cache: Path | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        rows: Mapping[str, int] | None = None,
    ) -> None:
        self.streams = tuple(streams)
        self.storages = [Storage(stream.root) for stream in self.streams]
        self.caches = [FileCache(storage, cache, cache_bytes) for storage in self.storages]
        self.shards: list[Shard] = []
        self.readers: list[Reader] = []
        for number, (config, storage) in enumerate(zip(self.streams, self.storages, strict=True)):
            shards, entries = read_indexes(config, number, storage)
            self.shards += shards
            self.readers += [reader_from_json("", "", entry) for entry in entries]
        if rows is not None:
            counts = first_rows(self.shards, rows)
            used = [number for number, count in enumerate(counts) if count]
            self.readers = [self.readers[number] for number in used]
            self.shards = [replace(self.shards[n], samples=counts[n]) for n in used]
        for reader in self.readers:
            reader.validate(allow_unsafe_types=False)
        ends = np.cumsum([shard.samples for shard in self.shards])
        self.first_row = np.concatenate([[0], ends]).astype(np.int64)
        self.damaged: Faults = {}

    def __len__(self) -> int:
        """Rows of all shards."""
        return int(self.first_row[-1])

    def locate(self, row: int) -> tuple[int, int]:
        """(number of the shard, place in it) of a row."""
        shard = int(np.searchsorted(self.first_row, row, "right")) - 1
        return shard, row - int(self.first_row[shard])

    def stream_of(self, row: int) -> int:
        """Number of the stream that a row belongs to."""
        return self.shards[self.locate(row)[0]].stream

    def columns(self, number: int) -> ShardColumns:
        """Columns of a shard; a remote one is fetched. It may have more rows than are read.

        Raises:
            FileNotFoundError, DamagedFileError: it is not there, or not what its index says.
        """
        shard, reader = self.shards[number], self.readers[number]
        assert isinstance(reader, MDSReader)
        path = self.caches[shard.stream].path(shard.rel, shard.bytes, shard.xxh64)
        data = np.memmap(path, np.uint8, "r")
        return ShardColumns(data, reader.column_names, reader.column_sizes, str(path))

    def rows_of_stream(self, stream: int) -> int:
        """How many rows a stream has."""
        return sum(shard.samples for shard in self.shards if shard.stream == stream)

    def verify(
        self,
        stamps: Mapping[str, Stamps],
        machine_wait_s: float,
        rank: int,
        world_size: int,
        gather: Gather | None,
    ) -> Faults:
        """Check size and hash of every shard on local disk; ranks share the work.

        A shard is hashed where the file system does not say what it said when its hash last held.
        Remote shards are checked when they are fetched.

        Args:
            stamps: by root; what was known, and what is known afterwards.
            gather: collects from all ranks; None where this rank checks everything.

        Returns:
            The faults, the same on every rank; they are also in `damaged`.

        Raises:
            MachineFault: a disk did not answer for `machine_wait_s`.
        """
        everything = range(len(self.shards))
        mine = everything[rank::world_size] if gather else everything
        look = partial(wait_out, partial(self._look, stamps, mine), machine_wait_s)
        for faults, seen in gather(look) if gather else [look()]:
            self.damaged |= faults
            for root, of_root in seen.items():
                stamps[root].known.update(of_root)
        return self.damaged

    def _look(self, stamps: Mapping[str, Stamps], numbers: Sequence[int]) -> tuple[Faults, Known]:
        """The faults of some shards, and what is known of their files."""
        found: Faults = {}
        for stream, storage in enumerate(self.storages):
            if not storage.is_local:
                continue
            own = [number for number in numbers if self.shards[number].stream == stream]
            entries = {self.shards[number].entry for number in own}
            broken = {
                damage.path: damage.fault
                for damage in find_damage(storage, entries, stamps[storage.root])
            }
            for number in own:
                if (rel := self.shards[number].rel) in broken:
                    found[number] = f"{storage.path(rel)} {broken[rel]}"
        return found, {root: of_root.known for root, of_root in stamps.items()}


def first_rows(shards: Sequence[Shard], rows: Mapping[str, int]) -> list[int]:
    """How many rows of each shard are read: of the kinds in `rows` so many in all, the same share
    of every shard up to rounding; of others all.

    It depends on nothing else, so runs that read other numbers of a kind read the same rows first.

    Raises:
        ValueError: there are not as many.
    """
    counts = [shard.samples for shard in shards]
    for kind, wanted in rows.items():
        numbers = [number for number, shard in enumerate(shards) if shard.kind == kind]
        total = sum(shards[number].samples for number in numbers)
        if wanted > total:
            raise ValueError(
                f"rows: {wanted:,} of {kind} are asked for, and its shards hold {total:,}"
            )
        seen = 0
        for number in numbers:
            before = seen * wanted // total
            seen += shards[number].samples
            counts[number] = seen * wanted // total - before
    return counts


def read_indexes(
    config: StreamConfig, number: int, storage: Storage
) -> tuple[list[Shard], list[dict[str, Any]]]:
    """The shards of a stream, and their index entries with names below the root.

    Raises:
        FileNotFoundError: an index is missing.
        ValueError: an index is not one, has another version, names a file outside of the root, or
            the stream holds no samples.
    """
    shards, entries = [], []
    for index in config.indexes:
        folder = _folder_of_names(index)
        for entry in _read_index(index, storage):
            raw = entry["raw_data"]
            name = f"{folder}/{raw['basename']}" if folder else raw["basename"]
            hash_ = raw["hashes"].get(HASH)
            if hash_ is None:
                raise ValueError(
                    f"{storage.path(index)}: {name} has no {HASH}; write the shards again with "
                    f"hashes=['{HASH}']"
                )
            shards.append(Shard(number, name, entry["samples"], raw["bytes"], hash_))
            entries.append({**entry, "raw_data": {**raw, "basename": name}})
    if not shards:
        raise ValueError(
            f"stream {config.name!r}: no samples in {', '.join(config.indexes)} under "
            f"{storage.root}"
        )
    return shards, entries


def _folder_of_names(index: str) -> str:
    """The folder, relative to the root, that the shard names of an index count from."""
    folder = index.rpartition("/")[0]
    # An index of the mixture is a view: its names count from the folder that holds all parts.
    if layout.MIXTURE in folder.split("/"):
        return folder.rpartition(layout.MIXTURE)[0].rstrip("/")
    return folder


def _read_index(index: str, storage: Storage) -> list[dict[str, Any]]:
    """The entries of one `index.json` that hold samples."""
    where = storage.path(index)
    try:
        content = storage.read_json(index)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{where}: no such index; materialize the shards that the run names"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: not a JSON index ({error}); write the shards again") from error
    if not isinstance(content, dict) or content.get("version") != 2:
        raise ValueError(f"{where}: not an MDS index of version 2; write the shards again")
    entries = [entry for entry in content["shards"] if entry["samples"]]
    for entry in entries:
        name = entry["raw_data"]["basename"]
        if not is_relative_name(name):
            raise ValueError(f"{where}: the shard name {name!r} leaves its folder")
        if entry.get("zip_data") or entry.get("format") != "mds":
            raise ValueError(f"{where}: {name}: only uncompressed MDS shards are read")
    return entries
