"""Rows of large annotation files by their place in the file: a JSON array in any layout, or one
object a line.

A file of a gigabyte is scanned once with numpy, in blocks, for where its rows begin and end; rows
are then parsed one by one from their bytes, so memory does not grow with the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

BLOCK = 1 << 24
LOOKED_AT = 64  # lines of which one has to be an object, if a file holds one a line
_QUOTE, _BACKSLASH, _LEFT, _RIGHT = b'"'[0], b"\\"[0], b"[{", b"]}"
_NEWLINE, _BYTE_ORDER_MARK = b"\n"[0], b"\xef\xbb\xbf"
_BETWEEN_ROWS = b" \t\r\n,[]"


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file, mapped; an empty file gives empty bytes."""
    with open(path, "rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def row_spans(path: Path, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Where each row (a JSON object) begins and ends, as two int64 arrays of byte positions.

    Raises:
        ValueError: the file is neither a JSON array of objects nor one object a line, or is cut
            short.
    """
    with mapped(path) as data:
        first = bytes(data[:64]).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if not first:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if first not in (b"[", b"{"):
            raise ValueError(
                f"{path}: neither a JSON array of rows nor one JSON object a line; it begins "
                f"{first!r}"
            )
        depth_of_rows = 1 if first == b"[" else 0
        if first == b"{" and (lines := _row_lines(path, data, block)) is not None:
            return lines
        begins, ends = _scan(path, data, depth_of_rows, block)
        _check_between(path, data, begins, ends)
        return begins, ends


def _row_lines(
    path: Path, data: mmap.mmap | bytes, block: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Where the lines begin and end of a file that holds one object a line, or None where it is not
    such a file.

    A line is a row whatever stands in it, so a broken one is one broken row, and costs no other.
    """
    breaks = [
        place + np.flatnonzero(np.frombuffer(data[place : place + block], np.uint8) == _NEWLINE)
        for place in range(0, len(data), block)
    ]
    ends = np.concatenate([*breaks, [len(data)]]).astype(np.int64)
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    if data[:3] == _BYTE_ORDER_MARK:
        begins[0] = 3
    some = zip(begins[:LOOKED_AT].tolist(), ends[:LOOKED_AT].tolist(), strict=True)
    if not any(data[b : b + 1] == b"{" and parse_row(data, b, e) is not None for b, e in some):
        return None  # objects over several lines
    if data[-1] != _NEWLINE and parse_row(data, int(begins[-1]), len(data)) is None:
        raise ValueError(
            f"{path}: ends inside row {len(begins)}; the file is cut short, fetch it again"
        )
    spans = zip(begins.tolist(), ends.tolist(), strict=True)
    filled = np.array([bool(data[begin:end].strip()) for begin, end in spans], bool)
    return begins[filled], ends[filled]


def _scan(
    path: Path, data: mmap.mmap | bytes, depth_of_rows: int, block: int
) -> tuple[np.ndarray, np.ndarray]:
    begins, ends = [], []
    depth, in_string, position = 0, 0, 0
    while position < len(data):
        stop = min(position + block, len(data))
        # A backslash and what it escapes stay in one block.
        while stop < len(data) and data[stop - 1] == _BACKSLASH:
            stop += 1
        text = np.frombuffer(data[position:stop], np.uint8)
        quotes = _unescaped_quotes(text)
        opening = (text == _LEFT[0]) | (text == _LEFT[1])
        places = np.flatnonzero(opening | (text == _RIGHT[0]) | (text == _RIGHT[1]))
        places = places[(np.searchsorted(quotes, places) + in_string) % 2 == 0]
        steps = np.where(opening[places], 1, -1)
        after = depth + np.cumsum(steps)
        begins.append(position + places[(steps == 1) & (after == depth_of_rows + 1)])
        ends.append(position + places[(steps == -1) & (after == depth_of_rows)] + 1)
        depth = int(after[-1]) if len(after) else depth
        in_string = (in_string + len(quotes)) % 2
        position = stop
    if depth or in_string:
        raise ValueError(
            f"{path}: ends inside row {sum(map(len, ends)) + 1}; the file is cut short, fetch it "
            "again"
        )
    return np.concatenate(begins), np.concatenate(ends)


def _unescaped_quotes(text: np.ndarray) -> np.ndarray:
    """Positions of quotes that open or close a string: an even number of backslashes stands before
    them.
    """
    quotes = np.flatnonzero(text == _QUOTE)
    escaped = np.zeros(len(quotes), bool)
    # Runs of backslashes are short: each round looks one byte further back, at those quotes that
    # are still undecided.
    undecided, distance = np.arange(len(quotes)), 1
    while len(undecided):
        places = quotes[undecided] - distance
        undecided = undecided[(places >= 0) & (text[places] == _BACKSLASH)]
        escaped[undecided] = ~escaped[undecided]
        distance += 1
    return quotes[~escaped]


def _check_between(
    path: Path, data: mmap.mmap | bytes, begins: np.ndarray, ends: np.ndarray
) -> None:
    """Raise ValueError when anything but separators stands between rows: it would be lost without
    a word.
    """
    edges = zip([0, *ends.tolist()], [*begins.tolist(), len(data)], strict=True)
    for number, (end, begin) in enumerate(edges):
        if begin - end != 1 and (other := bytes(data[end:begin]).translate(None, _BETWEEN_ROWS)):
            if number == 0 and other == b"\xef\xbb\xbf":
                continue
            raise ValueError(f"{path}: row {number + 1} is not a JSON object: {other[:40]!r}")


def parse_row(data: mmap.mmap | bytes, begin: int, end: int) -> dict[str, Any] | None:
    """The row between two positions, or None when it is not valid JSON."""
    try:
        row = orjson.loads(data[begin:end])
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
