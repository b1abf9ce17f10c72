"""Parquet files of rows, in bounded memory.

A kilobyte of Parquet can stand for gigabytes: a long text that is stored once and named by millions
of rows. So columns are read as dictionaries, and rows share the texts that they name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.fetching.errors import AnnotationError
from assets.fetching.table_rows import (
    LONGEST_ROW,
    MOST_COLUMNS,
    MOST_ROWS,
    TOO_LONG,
    Found,
    unreadable,
)

BATCH_ROWS = 8192
BINARY_ROWS = 32  # where columns hold pictures and the like, which are not read as dictionaries
BYTES_PER_CHARACTER = 16  # a picture may be so much larger than a text
BATCH_BYTES = 256 << 20  # about what the rows that are read at once may unpack to
MOST_UNPACKED = 8 << 30  # of one row group, as the file itself states it


def read_parquet(path: Path, name: str) -> Iterator[Found]:
    """The rows of a Parquet file.

    Args:
        name: of the file in messages.

    Raises:
        AnnotationError: it has more rows or columns, or unpacks to more, than a file may.
        pyarrow.ArrowException, OSError: it cannot be read.
    """
    with pq.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema
        _check(metadata, name)
        leaves = [schema.column(index) for index in range(metadata.num_columns)]
        long = [leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        texts = [leaf.path for leaf in long if leaf.logical_type.type in ("STRING", "JSON")]
        most = BATCH_ROWS if len(texts) == len(long) else BINARY_ROWS
        groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for number, group in enumerate(groups):
            of_row = max(group.total_byte_size // max(group.num_rows, 1), 1)
            size = min(most, max(BATCH_BYTES // of_row, 1))
            for batch in file.iter_batches(size, row_groups=[number]):
                yield from _batch_rows(batch)


def _check(metadata: pq.FileMetaData, name: str) -> None:
    for what, found, most in (
        ("rows", metadata.num_rows, MOST_ROWS),
        ("columns", metadata.num_columns, MOST_COLUMNS),
    ):
        if found > most:
            raise AnnotationError(f"{name}: has {found:,} {what}, more than {most:,}")
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        if size > MOST_UNPACKED:
            raise AnnotationError(
                f"{name}: unpacks to {size / 2**30:,.0f} GiB in row group {number}, more than "
                f"{MOST_UNPACKED >> 30}"
            )


def _batch_rows(batch: pa.RecordBatch) -> Iterator[Found]:
    names = batch.schema.names
    columns = [_values(column) for column in batch.columns]
    heaviest = sum(max(map(_weight, column), default=0) for column in columns)
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        if heaviest > LONGEST_ROW and _weight(row) > LONGEST_ROW:
            yield unreadable(f"columns {', '.join(names)}", None, TOO_LONG)
        else:
            yield row, None, ""


def _values(column: pa.Array) -> list[Any]:
    """The values of a column. Equal texts of a dictionary are one object, also inside of lists."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        known = _values(column.dictionary)
        return [None if i is None else known[i] for i in column.indices.to_pylist()]
    if pa.types.is_map(kind):
        pairs = list(zip(_values(column.keys), _values(column.items), strict=True))
        return [None if entries is None else dict(entries) for entries in _cut(column, pairs)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _cut(column, _values(column.values))
    if pa.types.is_struct(kind):
        fields = [_values(column.field(index)) for index in range(kind.num_fields)]
        names = [kind.field(index).name for index in range(kind.num_fields)]
        rows = zip(*fields, strict=True) if fields else [()] * len(column)
        there = column.is_valid().to_pylist()
        return [
            dict(zip(names, row, strict=True)) if valid else None
            for row, valid in zip(rows, there, strict=True)
        ]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.binary()).to_pylist()
        return [None if text is None else text.decode(errors="surrogateescape") for text in raw]
    except (ValueError, OverflowError):  # a time that Python has none for
        return column.cast(pa.string()).to_pylist()


def _cut(column: pa.Array, values: list[Any]) -> list[Any]:
    """The list of each row, out of the values of all of them."""
    offsets = column.offsets.to_pylist()
    there = column.is_valid().to_pylist()
    return [
        values[offsets[row] : offsets[row + 1]] if valid else None
        for row, valid in enumerate(there)
    ]


def _weight(value: Any) -> int:
    """About how many characters a value has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, bytes):
        return len(value) // BYTES_PER_CHARACTER
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, list):
        return sum(map(_weight, value))
    return 1
