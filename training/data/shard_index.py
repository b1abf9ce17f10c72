"""Which MDS shards a run reads, and whether they are whole.

A missing or damaged shard makes MosaicML Streaming end an epoch early or wait for ever. So the
index is read here, and every shard is checked before training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from streaming.base.format import Reader, reader_from_json

from training.formats import layout
from training.formats.file_cache import FileCache
from training.formats.hashing import hash_file_xxh64
from training.formats.sample import is_relative_name
from training.formats.storage import Storage
from training.run_config import StreamConfig

log = logging.getLogger(__name__)

HASH = "xxh64"

Faults = dict[int, str]  # number of a damaged shard -> what is wrong with it


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard file of one stream.

    Attributes:
        stream: number of its stream.
        rel: its name below the stream's root.
        samples, bytes, xxh64: what its index says.
    """

    stream: int
    rel: str
    samples: int
    bytes: int
    xxh64: str | None


class ShardIndex:
    """All shards of a run, stream after stream. Rows are numbered through all of them.

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

    def __init__(self, streams: Sequence[StreamConfig]) -> None:
        self.streams = tuple(streams)
        self.storages = [Storage(stream.root) for stream in self.streams]
        self.caches = [FileCache(storage) for storage in self.storages]
        self.shards: list[Shard] = []
        self.readers: list[Reader] = []
        for number, (config, storage) in enumerate(zip(self.streams, self.storages, strict=True)):
            shards, entries = read_indexes(config, number, storage)
            self.shards += shards
            self.readers += [reader_from_json("", "", entry) for entry in entries]
        for reader in self.readers:
            reader.validate(allow_unsafe_types=False)
        rows = np.cumsum([shard.samples for shard in self.shards])
        self.first_row = np.concatenate([[0], rows]).astype(np.int64)
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

    def rows_of_stream(self, stream: int) -> int:
        """How many rows a stream has."""
        return sum(shard.samples for shard in self.shards if shard.stream == stream)

    def verify(
        self,
        max_lost_share: float,
        rank: int = 0,
        world_size: int = 1,
        gather: Callable[[Faults], list[Faults]] | None = None,
    ) -> Faults:
        """Check size and hash of every shard on local disk; ranks share the work.

        Remote shards are checked when they are fetched.

        Args:
            max_lost_share: share of all rows that damaged shards may hold.
            gather: collects a value from all ranks; None where this rank checks everything.

        Returns:
            The faults, the same on every rank; they are also in `damaged`.

        Raises:
            ValueError: more rows are lost than allowed; the shards are named.
        """
        everything = range(len(self.shards))
        mine = everything[rank::world_size] if gather else everything
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            faults = zip(mine, pool.map(self._fault, mine), strict=True)
            found = {number: fault for number, fault in faults if fault}
        for part in gather(found) if gather else [found]:
            self.damaged |= {int(number): fault for number, fault in part.items()}
        if self.damaged:
            self._report_damage(max_lost_share)
        return self.damaged

    def _report_damage(self, max_lost_share: float) -> None:
        lost = sum(self.shards[number].samples for number in self.damaged)
        listing = "; ".join(self.damaged[number] for number in sorted(self.damaged)[:5])
        message = (
            f"{len(self.damaged)} damaged shards hold {lost:,} of {len(self):,} samples: {listing}"
        )
        if lost > max_lost_share * len(self):
            raise ValueError(
                f"{message}; that is more than max_dropped_share ({max_lost_share:g}); "
                "materialize these parts again"
            )
        log.warning("%s; their samples are left out", message)

    def _fault(self, number: int) -> str | None:
        """What is wrong with a local shard file, if anything."""
        shard, storage = self.shards[number], self.storages[self.shards[number].stream]
        if not storage.is_local:
            return None
        path = Path(storage.path(shard.rel))
        try:
            size = path.stat().st_size
            if size != shard.bytes:
                return f"{path}: {size:,} bytes, its index says {shard.bytes:,}"
            if shard.xxh64 is not None and hash_file_xxh64(path) != shard.xxh64:
                return f"{path}: its content does not hash to what its index says"
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        return None


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
