"""Annotation files row by row, in bounded memory: Parquet, CSV, JSON and JSONL."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from assets.fetching.errors import AnnotationError

SUFFIXES = (".parquet", ".csv", ".json", ".jsonl")
BATCH_ROWS = 8192
READ_CHARS = 1 << 20
LONGEST_ELEMENT = 64 << 20
WRAPPED_LIST = re.compile(r'\s*\{\s*"(?:data|annotations|samples)"\s*:\s*\[')


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in a file. `value` is a mapping, or the text of a line that is no JSON
    object.
    """

    number: int
    value: dict[str, Any] | str


def read_rows(path: Path, name: str) -> Iterator[RawRow]:
    """The rows of an annotation file in order, numbered from 0.

    Args:
        path: local file.
        name: what the file is called in messages and which suffix decides; a download has another
            name on disk.

    Raises:
        AnnotationError: unknown suffix, or the file as a whole cannot be parsed.
    """
    suffix = Path(name).suffix.lower()
    readers = {".parquet": _parquet, ".csv": _csv, ".json": _json, ".jsonl": _jsonl}
    if suffix not in readers:
        raise AnnotationError(f"{name}: annotation files are {', '.join(SUFFIXES)}")
    try:
        for number, value in enumerate(readers[suffix](path)):
            yield RawRow(number, value)
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AnnotationError(f"{name}: cannot be read as {suffix[1:]}: {error}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            names = batch.schema.names
            columns = [column.to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(names, values, strict=True))


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_ELEMENT)
    with open(path, newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file, restkey="(more columns than the header)"):
            yield dict(row)


def _jsonl(path: Path) -> Iterator[dict[str, Any] | str]:
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield _object(line)


def _object(line: bytes) -> dict[str, Any] | str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else line.decode(errors="replace").rstrip("\n")


def _json(path: Path) -> Iterator[dict[str, Any] | str]:
    """A list, a list under `data`, `annotations` or `samples`, or objects one after another."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8-sig") as file:
        buffer = file.read(READ_CHARS)
        wrapped = WRAPPED_LIST.match(buffer)
        position = wrapped.end() if wrapped else len(buffer) - len(buffer.lstrip())
        in_list = bool(wrapped)
        if not wrapped and buffer[position : position + 1] == "[":
            position, in_list = position + 1, True
        ended = False
        while True:
            position = _skip(buffer, position)
            if position < len(buffer) and buffer[position] == "]" and in_list:
                return
            try:
                if position >= len(buffer):
                    raise json.JSONDecodeError("more", buffer, position)
                value, after = decoder.raw_decode(buffer, position)
                if after == len(buffer) and not ended:
                    raise json.JSONDecodeError("may go on", buffer, position)
            except json.JSONDecodeError:
                if ended:
                    if position >= len(buffer) and not in_list:
                        return
                    raise
                if len(buffer) - position > LONGEST_ELEMENT:
                    raise
                more = file.read(max(READ_CHARS, len(buffer) - position))
                buffer, position, ended = buffer[position:] + more, 0, not more
                continue
            position = after
            yield value if isinstance(value, dict) else json.dumps(value)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position
