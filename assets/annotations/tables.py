"""The Parquet files of annotation rows: their columns, and how they are written, copied and hashed.

Nothing here holds more than some ten thousand rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

ROW_GROUP = 65_536  # rows in one Parquet row group
BUFFER_ROWS = 8192  # rows that are held in memory before they are written

SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("source", pa.string()),
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("question_type", pa.string()),
        ("url", pa.string()),
        ("sample_id", pa.string()),
        ("turn", pa.int32()),
        ("duration", pa.float64()),
        ("part", pa.int32()),
    ]
)
# What a row says, whatever part it is dealt to.
CONTENT_COLUMNS = SCHEMA.names[:-1]
REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("checksum", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)


class RowFile:
    """A Parquet file that is written row by row, with a few thousand rows in memory at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._rows: list[tuple[Any, ...]] = []
        self._writer: pq.ParquetWriter | None = None

    def append(self, row: tuple[Any, ...]) -> None:
        """Add a row, its values in the order of the schema."""
        self._rows.append(row)
        if len(self._rows) >= BUFFER_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is still in memory. A file without rows has the schema and nothing else."""
        self._flush()
        if self._writer:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, self.schema, compression="lz4")
        columns = zip(*self._rows, strict=True) if self._rows else [[] for _ in self.schema]
        arrays = [pa.array(c, field.type) for c, field in zip(columns, self.schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self._rows.clear()


def copy_rows(path: Path, writer: pq.ParquetWriter) -> None:
    """Append the rows of the file at `path` to `writer`."""
    with pq.ParquetFile(path) as file:
        for table in _row_groups(file):
            table = table.replace_schema_metadata(writer.schema.metadata)
            writer.write_table(table, row_group_size=ROW_GROUP)


def _row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Tables of about `ROW_GROUP` rows that never hold rows of two parts."""
    pending: list[pa.RecordBatch] = []
    for index in range(file.num_row_groups):
        pending += file.read_row_group(index).to_batches()
        last = index + 1 == file.num_row_groups
        full = sum(batch.num_rows for batch in pending) >= ROW_GROUP
        if pending and (last or full or _part_ends(file, index)):
            yield pa.Table.from_batches(pending)
            pending = []


def _part_ends(file: pq.ParquetFile, index: int) -> bool:
    """Whether the row group after `index` belongs to another part, by its statistics."""
    if "part" not in file.schema_arrow.names:
        return False
    column = SCHEMA.get_field_index("part")
    this, following = (
        file.metadata.row_group(number).column(column).statistics for number in (index, index + 1)
    )
    return bool(this.max != following.min)


def hash_rows(paths: list[Path]) -> tuple[str, int]:
    """Content hash of one part's rows, and their number."""
    digest, rows = xxhash.xxh3_128(), 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BUFFER_ROWS):
                rows += batch.num_rows
                for name in CONTENT_COLUMNS:
                    digest.update(orjson.dumps(batch.column(name).to_pylist()))
    return digest.hexdigest(), rows


class KnownRows:
    """The rows that an annotation file holds already, as sorted hashes: 8 bytes a row."""

    def __init__(self, path: Path | None) -> None:
        """Read the hashes of the file at `path`; None stands for no file yet."""
        hashes = [np.empty(0, np.uint64)]
        if path is not None:
            names = ["video", "question", "answer"]
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BUFFER_ROWS, columns=names):
                    columns = [batch.column(name).to_pylist() for name in names]
                    hashes.append(np.fromiter(map(_row_hash, *columns), np.uint64, batch.num_rows))
        self._hashes = np.sort(np.concatenate(hashes))

    def holds(self, video: str, question: str, answer: str) -> bool:
        """Whether a row with these three texts is there."""
        if not self._hashes.size:
            return False
        digest = np.uint64(_row_hash(video, question, answer))
        place = int(np.searchsorted(self._hashes, digest))
        return place < self._hashes.size and bool(self._hashes[place] == digest)


def _row_hash(video: str, question: str, answer: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{video}\0{question}\0{answer}".encode())
