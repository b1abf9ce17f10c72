"""MDS shards as streams of rows: which shards there are, whether they are whole, and in which order
rows are read.

Order and mixing are MosaicML Streaming's own (`StreamingDataset`, per-stream batching, block-wise
shuffle). Its reading side is not used: a missing or damaged shard makes that end an epoch early or
wait for ever, and jobs on one machine collide in shared memory. Instead every shard is checked
before training, and rows are read by their number, so a row that cannot be read is one error in its
own place.
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
from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.format import Reader, reader_from_json
from streaming.base.format.mds import MDSReader
from streaming.base.world import World

from training.formats.file_cache import DamagedFileError, FileCache
from training.formats.hashing import hash_file_xxh64, seed_of
from training.formats.sample import is_relative_name
from training.formats.storage import Storage
from training.run_config import RunConfig, StreamConfig

log = logging.getLogger(__name__)

HASH = "xxh64"
# Indexes below it are views: their names count from the folder that holds all parts.
VIEW_FOLDER = "hourllava_s3"
# Simulated with the block size: feature files are read 1.07 times an epoch, see
# docs/performance.md.
SHUFFLE = "py1e"


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


class ShardStream(Stream):
    """A stream over several MDS indexes under one root; its shards are read in place or through a
    cache of ours.
    """

    def __init__(self, config: StreamConfig, number: int, storage: Storage) -> None:
        super().__init__(
            local=f"stream-{number}"
        )  # never looked at: files are found through `shards`
        self.shards, infos = read_indexes(config, number, storage)
        self.readers = [reader_from_json("", "", info) for info in infos]
        for reader in self.readers:
            reader.validate(allow_unsafe_types=False)


def read_indexes(
    config: StreamConfig, number: int, storage: Storage
) -> tuple[list[Shard], list[dict[str, Any]]]:
    """The shards of a stream, and their index entries with names below the root.

    Raises:
        FileNotFoundError: an index is missing.
        ValueError: an index is not one, has another version, or names a file outside of the root.
    """
    shards, infos = [], []
    for index in config.indexes:
        where = storage.path(index)
        try:
            content = storage.read_json(index)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{where}: no such index; materialize the shards that the run names"
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{where}: not a JSON index ({error}); write the shards again"
            ) from error
        if not isinstance(content, dict) or content.get("version") != 2:
            raise ValueError(f"{where}: not an MDS index of version 2; write the shards again")
        folder = index.rpartition("/")[0]
        base = (
            folder.rpartition(VIEW_FOLDER)[0].rstrip("/")
            if VIEW_FOLDER in folder.split("/")
            else folder
        )
        for info in content["shards"]:
            if not info["samples"]:
                continue
            raw = info["raw_data"]
            if not is_relative_name(raw["basename"]):
                raise ValueError(f"{where}: the shard name {raw['basename']!r} leaves its folder")
            if info.get("zip_data") or info.get("format") != "mds":
                raise ValueError(
                    f"{where}: {raw['basename']}: only uncompressed MDS shards are read"
                )
            rel = f"{base}/{raw['basename']}" if base else raw["basename"]
            shards.append(
                Shard(number, rel, info["samples"], raw["bytes"], raw["hashes"].get(HASH))
            )
            infos.append({**info, "raw_data": {**raw, "basename": rel}})
    if not shards:
        raise ValueError(
            f"stream {config.name!r}: no samples in {', '.join(config.indexes)} under "
            f"{storage.root}"
        )
    return shards, infos


class Streams:
    """All shards of a run, and the order in which each rank reads their rows.

    Attributes:
        shards: all of them, stream after stream.
        readers: the library's readers, one for each shard.
        first_row: number of the first row of each shard, and the number of all rows.
        storages, caches: of each stream.
        damaged: number of a shard -> what is wrong with it; see `verify`.
    """

    def __init__(self, run: RunConfig, rank: int, world_size: int) -> None:
        self.run, self.rank, self.world_size = run, rank, world_size
        self.storages = [Storage(stream.root) for stream in run.streams]
        self.caches = [FileCache(storage) for storage in self.storages]
        streams = [
            ShardStream(config, number, storage)
            for number, (config, storage) in enumerate(zip(run.streams, self.storages, strict=True))
        ]
        self.shards: list[Shard] = [shard for stream in streams for shard in stream.shards]
        self.first_row = np.concatenate(
            [[0], np.cumsum([shard.samples for shard in self.shards])]
        ).astype(np.int64)
        micro, accumulation = run.batches(world_size)
        self.share = micro * accumulation
        self._dataset = EpochOrder(streams, run, self.share)
        self.readers: list[Reader] = self._dataset.shards
        self.damaged: dict[int, str] = {}

    def __len__(self) -> int:
        return int(self.first_row[-1])

    @property
    def identity(self) -> str:
        """A hash of what is read and how it is ordered; a position is only valid within it."""
        run = self.run
        rows = [(shard.stream, shard.rel, shard.samples, shard.xxh64) for shard in self.shards]
        return f"{seed_of(rows, run.seed, run.recipe.global_batch, run.canonical_nodes, run.shuffle_block):08x}"

    def locate(self, row: int) -> tuple[int, int]:
        """(number of the shard, place in it) of a row."""
        shard = int(np.searchsorted(self.first_row, row, "right")) - 1
        return shard, row - int(self.first_row[shard])

    def stream_of(self, row: int) -> int:
        return self.shards[self.locate(row)[0]].stream

    def order(self, epoch: int) -> np.ndarray:
        """This rank's rows of an epoch: int64 [steps, share]. All rows of one step, on all ranks,
        are of one stream.

        Incomplete global batches are left out. For one global batch size, the set of rows of each
        step is the same for every number of ranks.

        Raises:
            ValueError: a stream has fewer rows than one global batch.
        """
        nodes, per_node = self._machines()
        world = World(nodes, per_node, 1, self.rank)
        whole = self.share * self.world_size
        for number, config in enumerate(self.run.streams):
            rows = sum(shard.samples for shard in self.shards if shard.stream == number)
            if rows < whole:
                raise ValueError(
                    f"stream {config.name!r} has {rows} samples, fewer than the global batch of "
                    f"{whole}; set a smaller global_batch or add data"
                )
        work = generate_work("per_stream", self._dataset, world, epoch, 0)
        ours = work[world.node, world.rank_of_node, 0]
        return np.ascontiguousarray(ours[(ours >= 0).all(axis=1)], np.int64)

    def _machines(self) -> tuple[int, int]:
        """(machines, ranks on each) as the order sees them: rows of one video go to one machine
        where that divides.
        """
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        nodes = self.world_size // per_node if self.world_size % per_node == 0 else 1
        if nodes * per_node != self.world_size or self.run.canonical_nodes % nodes:
            return 1, self.world_size
        return nodes, per_node

    def verify(
        self, gather: Callable[[dict[int, str]], list[dict[int, str]]] | None = None
    ) -> dict[int, str]:
        """Check size and hash of every shard on local disk; ranks share the work.

        Remote shards are checked when they are fetched.

        Args:
            gather: collects a value from all ranks; None when there is one rank.

        Returns:
            Number of each damaged shard -> what is wrong, the same on every rank.

        Raises:
            ValueError: more rows are lost than ``max_dropped_share`` allows; the shards are named.
        """
        mine = [
            number
            for number in range(len(self.shards))
            if gather is None or number % self.world_size == self.rank
        ]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = {
                number: fault
                for number, fault in zip(mine, pool.map(self._fault, mine), strict=True)
                if fault
            }
        for other in gather(found) if gather else [found]:
            self.damaged |= {int(number): fault for number, fault in other.items()}
        lost = sum(self.shards[number].samples for number in self.damaged)
        if self.damaged:
            listing = "; ".join(self.damaged[number] for number in sorted(self.damaged)[:5])
            message = f"{len(self.damaged)} damaged shards hold {lost:,} of {len(self):,} samples: {listing}"
            if lost > self.run.max_dropped_share * len(self):
                raise ValueError(
                    f"{message}; that is more than max_dropped_share "
                    f"({self.run.max_dropped_share:g}); materialize these parts again"
                )
            log.warning("%s; their samples are left out", message)
        return self.damaged

    def _fault(self, number: int) -> str | None:
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


@dataclass(slots=True)
class RowReader:
    """Reads rows by number, in any process.

    Attributes:
        shards, readers, first_row, caches, damaged: see `Streams`.
    """

    shards: list[Shard]
    readers: list[Reader]
    first_row: np.ndarray
    caches: list[FileCache]
    damaged: dict[int, str]

    @staticmethod
    def of(streams: Streams) -> RowReader:
        return RowReader(
            streams.shards, streams.readers, streams.first_row, streams.caches, streams.damaged
        )

    def name(self, row: int) -> str:
        """How a row is called that could not be read: its shard and its place in it."""
        number, place = self._locate(row)
        return f"{self.shards[number].rel}#{place}"

    def read(self, row: int) -> dict[str, Any]:
        """The columns of a row.

        Raises:
            DamagedFileError: the shard is damaged or gone; the message names it.
        """
        number, place = self._locate(row)
        shard, reader = self.shards[number], self.readers[number]
        if number in self.damaged:
            raise DamagedFileError(self.damaged[number])
        for attempt in (1, 2, 3):  # a cached shard can be removed between finding and opening it
            try:
                path = self.caches[shard.stream].path(shard.rel, shard.bytes, shard.xxh64)
                assert isinstance(reader, MDSReader)
                reader.dirname, reader.raw_data.basename = str(path.parent), path.name
                return reader[place]
            except FileNotFoundError as error:
                if attempt == 3 or self.caches[shard.stream].storage.is_local:
                    raise DamagedFileError(f"{shard.rel}: {error}") from error
            except (OSError, ValueError, IndexError, KeyError) as error:
                raise DamagedFileError(f"{shard.rel}, row {place}: {error}") from error
        raise AssertionError("unreachable")

    def _locate(self, row: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.first_row, row, "right")) - 1
        return number, row - int(self.first_row[number])


class EpochOrder(StreamingDataset):
    """What the library's order of an epoch is computed from (`generate_work`), as its own
    constructor derives it.

    That constructor is not called: it registers names in the machine's shared memory, which other
    jobs take when they start at the same time and a killed job leaves behind, and it makes the
    ranks of all machines wait for each other.
    """

    def __init__(self, streams: Sequence[ShardStream], run: RunConfig, share: int) -> None:
        self.streams, self.num_streams = list(streams), len(streams)
        self.batch_size, self.batching_method, self.num_canonical_nodes = (
            share,
            "per_stream",
            run.canonical_nodes,
        )
        self.partition_algo, self.initial_physical_nodes = "relaxed", None
        self.sampling_method, self.sampling_granularity = "balanced", 1
        self.shuffle, self.shuffle_algo, self.shuffle_seed = (
            True,
            SHUFFLE,
            seed_of(run.seed, "shuffle"),
        )
        self.epoch_seed_change = True
        readers = [stream.readers for stream in streams]
        self.shards = [reader for of_stream in readers for reader in of_stream]
        self.shards_per_stream = np.array([len(of_stream) for of_stream in readers], np.int64)
        self.shard_offset_per_stream = self.shards_per_stream.cumsum() - self.shards_per_stream
        self.samples_per_shard = np.array([reader.samples for reader in self.shards], np.int64)
        self.sample_offset_per_shard = self.samples_per_shard.cumsum() - self.samples_per_shard
        rows = np.array(
            [sum(reader.samples for reader in of_stream) for of_stream in readers], np.int64
        )
        Stream.apply_weights(self.streams, rows, None, self.shuffle_seed)
        self.shuffle_block_size = run.shuffle_block
        for stream in self.streams:
            # The library gives a stream only its share of the block; then long videos would mix the
            # less, and feature files be read the nearer together, the more other samples there are.
            stream.proportion = 1.0
