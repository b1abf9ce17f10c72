"""Rows of shards by their number, in any process: a row that cannot be read is one error in its own
place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streaming.base.format.mds import MDSReader

from training.data.shard_index import ShardIndex
from training.formats.file_cache import DamagedFileError
from training.formats.machine_faults import gone, machine_fault

TRIES = 3  # a cached shard can be removed between finding and opening it


@dataclass(slots=True)
class RowReader:
    """Reads the rows of an index."""

    index: ShardIndex

    def name(self, row: int) -> str:
        """What a row is called that could not be read: its shard and its place in it."""
        number, place = self.index.locate(row)
        return f"{self.index.shards[number].rel}#{place}"

    def place(self, row: int) -> tuple[str, int]:
        """The name of a row's shard, and its place there."""
        number, place = self.index.locate(row)
        return self.index.shards[number].rel, place

    def is_damaged(self, row: int) -> bool:
        """Whether the row's shard was found damaged before training."""
        return self.index.locate(row)[0] in self.index.damaged

    def read(self, row: int) -> dict[str, Any]:
        """The columns of a row.

        Raises:
            DamagedFileError: the shard is damaged or gone; the message names it.
            Exception: the machine is at fault (see `machine_faults`).
        """
        number, place = self.index.locate(row)
        shard, reader = self.index.shards[number], self.index.readers[number]
        cache = self.index.caches[shard.stream]
        if number in self.index.damaged:
            raise DamagedFileError(self.index.damaged[number])
        for attempt in range(1, TRIES + 1):
            try:
                path = cache.path(shard.rel, shard.bytes, shard.xxh64)
                assert isinstance(reader, MDSReader)
                reader.dirname, reader.raw_data.basename = str(path.parent), path.name
                return reader[place]
            except DamagedFileError:
                raise
            except FileNotFoundError as error:
                if machine_fault(error):
                    raise
                local = cache.storage.is_local
                if local and (fault := gone(Path(cache.storage.root))):
                    raise fault from error
                if attempt == TRIES or local:
                    raise DamagedFileError(f"{shard.rel}: {error}") from error
            except (OSError, ValueError, IndexError, KeyError) as error:
                if machine_fault(error):
                    raise
                raise DamagedFileError(f"{shard.rel}, row {place}: {error}") from error
        raise AssertionError("unreachable")
