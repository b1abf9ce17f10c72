"""The Parquet files of annotation rows: their columns, and how they are written.

Nothing here holds more than some ten thousand rows in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
# What is made from a part's rows depends on these.
VERSION_COLUMNS = [
    name for name in CONTENT_COLUMNS if name not in ("source", "id", "question_type")
]
REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("checksum", pa.string()),
        ("row", pa.int64()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)


def digests(column: pa.Array) -> np.ndarray:
    """uint64 [n, 2]: the values of a column of 16 bytes each, without a Python object for each."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = np.frombuffer(column.buffers()[1] or b"", "<u8").reshape(-1, 2)
    return values[column.offset : column.offset + len(column)]


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

    def close(self, facts: Mapping[bytes, str] | None = None) -> None:
        """Write what is still in memory. A file without rows has the schema and nothing else.

        Args:
            facts: are written into the file's metadata.
        """
        self._flush()
        assert self._writer is not None
        self._writer.add_key_value_metadata(facts or {})
        self._writer.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.path, self.schema, compression="zstd", write_page_checksum=True
            )
        columns = zip(*self._rows, strict=True) if self._rows else [[] for _ in self.schema]
        arrays = [pa.array(c, field.type) for c, field in zip(columns, self.schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self._rows.clear()
