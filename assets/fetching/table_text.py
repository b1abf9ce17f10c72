"""Text files of rows: which encoding they have, and CSV with whatever stands between its columns.

A quote that is opened and not closed would take all that follows into one cell. It costs the line
that it stands in and no other: reading begins again on the next line.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from assets.fetching.errors import AnnotationError
from assets.fetching.table_rows import (
    LONGEST_ROW,
    MORE_CELLS,
    MOST_COLUMNS,
    TOO_LONG,
    UNCLOSED_QUOTE,
    Found,
    unreadable,
)

DELIMITERS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
ENCODINGS = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a mark", "cp1252": "Windows-1252"}
SAMPLE = 1 << 16  # characters that are looked at for what stands between columns
SAMPLE_ROWS = 50
# The longest marks come first: that of UTF-32 begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_STRAY_BYTE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is none
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\r?\n?", re.IGNORECASE)  # the first line, by Excel


def find_encoding(path: Path) -> str:
    """The encoding of a text file: by its mark, by its zero bytes, else UTF-8 where the bytes are
    that for the most part, else Windows-1252.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        if head.count(0) * 4 > len(head):  # every second byte of most texts
            return "utf-16-le" if head[1::2].count(0) >= head[::2].count(0) else "utf-16-be"
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        stray = sound = 0
        while data := file.read(1 << 20):
            text = decoder.decode(data)
            if not text.isascii():
                found = len(_STRAY_BYTE.findall(text))
                stray, sound = stray + found, sound + len(_NOT_ASCII.findall(text)) - found
        stray += len(_STRAY_BYTE.findall(decoder.decode(b"", final=True)))
    return "cp1252" if stray > sound else "utf-8"


def encoding_name(encoding: str) -> str:
    """An encoding as people call it."""
    return ENCODINGS.get(encoding, encoding.upper())


def open_text(path: Path, encoding: str, newline: str) -> IO[str]:
    """A text file. Bytes that are no text in its encoding become halves of surrogate pairs, so that
    they cost the rows that they stand in.
    """
    wide = encoding.startswith(("utf-16", "utf-32"))
    errors = "surrogatepass" if wide else "surrogateescape"
    return open(path, encoding=encoding, errors=errors, newline=newline)


def read_csv(path: Path, name: str, encoding: str) -> tuple[str, Iterator[Found]]:
    """(what stands between the columns, the rows).

    Args:
        name: of the file in messages.

    Raises:
        AnnotationError: the first line cannot be read as names of columns.
    """
    with open_text(path, encoding, newline="") as file:
        sample = file.read(SAMPLE)
    stated = _SEPARATOR_LINE.match(sample)
    delimiter = stated[1] if stated else _find_delimiter(sample)
    rows = _rows(path, name, encoding, delimiter, skip=1 if stated else 0)
    return DELIMITERS[delimiter], rows


def _find_delimiter(sample: str) -> str:
    """What makes the most columns of which most rows have as many as the first one."""
    lines = list(io.StringIO(sample, newline=""))
    if len(sample) >= SAMPLE and len(lines) > 1:
        lines.pop()  # cut short by the end of the sample
    best, most = ",", 0.0
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if row][:SAMPLE_ROWS]
        except csv.Error:  # a cell as long as the sample
            rows = []
        if not rows or len(rows[0]) < 2:
            continue
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if len(rows[0]) * alike > most:
            best, most = delimiter, len(rows[0]) * alike
    return best


def _rows(path: Path, name: str, encoding: str, delimiter: str, skip: int) -> Iterator[Found]:
    csv.field_size_limit(LONGEST_ROW)
    with open_text(path, encoding, newline="") as file:
        lines = _Lines(file, skip)
        records = _records(lines, delimiter)
        header, line, fault = next(records, ([], 1, ""))
        if fault:
            raise AnnotationError(f"{name}, line {line}: the names of the columns: {fault}")
        if len(header) > MOST_COLUMNS:
            raise AnnotationError(
                f"{name}: has {len(header):,} columns, more than {MOST_COLUMNS:,}"
            )
        columns = _column_names(header)
        for cells, line, fault in records:
            if fault:
                yield unreadable(cells[0], line, fault)
            elif len(cells) > len(columns) and any(cells[len(columns) :]):
                yield unreadable(delimiter.join(cells), line, MORE_CELLS)
            elif lines.swallowed_rows(delimiter, len(columns)):
                yield unreadable(lines.taken[0], line, UNCLOSED_QUOTE)
                lines.put_back()
            else:
                values = [*cells, *[None] * (len(columns) - len(cells))]
                yield dict(zip(columns, values, strict=False)), line, ""


def _column_names(header: list[str]) -> list[str]:
    """The names without spaces around them; a name that stands there twice gets a number."""
    names: list[str] = []
    for cell in header:
        name, number = cell.strip(), 1
        while name and name in names:
            number += 1
            name = f"{cell.strip()} ({number})"
        names.append(name)
    return names


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[list[str], int, str]]:
    """(cells, line where they begin, fault) of each record; of a broken one its first line."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_record()
        fault = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = TOO_LONG if "field limit" in str(error) else UNCLOSED_QUOTE
        except _TooLongError:
            fault = TOO_LONG
        if fault:
            # A quote that was never closed also ends in a row that is too long.
            fault = UNCLOSED_QUOTE if len(lines.taken) > 1 else fault
            cells = [lines.taken[0]]
            first = lines.first
            lines.put_back()
            yield cells, first, fault
        elif cells:
            yield cells, lines.first, ""
        if lines.gave_back:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            lines.gave_back = False


class _TooLongError(Exception):
    """A record that has more characters than a row may have."""


class _Lines:
    """The lines of a text file, for a reader that may give back all of a record but its first line.

    Attributes:
        taken: lines of the record.
        first: number of its first line.
        gave_back: whether lines were given back since the reader began.
    """

    def __init__(self, file: IO[str], skip: int) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self.gave_back = False
        self.taken: list[str] = []
        self._next = 1
        for _ in range(skip):
            file.readline()
            self._next += 1
        self.begin_record()

    def begin_record(self) -> None:
        """What is taken from now on is another record."""
        self.taken, self._size, self.first = [], 0, self._next

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._file.readline(LONGEST_ROW + 1)
        if not line:
            raise StopIteration
        self.taken.append(line)
        self._next += 1
        self._size += len(line)
        if self._size > LONGEST_ROW:
            if len(line) > LONGEST_ROW:
                self._skip_rest(line)
            raise _TooLongError
        return line

    def _skip_rest(self, line: str) -> None:
        while line and not line.endswith(("\n", "\r")):
            line = self._file.readline(LONGEST_ROW)

    def put_back(self) -> None:
        """Give back all lines of the record but the first one."""
        rest = self.taken[1:]
        self._again.extendleft(reversed(rest))
        self._next = self.first + 1
        self.gave_back = True

    def swallowed_rows(self, delimiter: str, width: int) -> bool:
        """Whether the record has taken whole rows into one cell: several lines inside of it, and
        each of them a row of its own.
        """
        inside = self.taken[1:-1]
        if len(inside) < 3 or width < 3:
            return False
        try:
            return all(len(cells) == width for cells in csv.reader(inside, delimiter=delimiter))
        except csv.Error:
            return False
