"""Annotation files row by row, in bounded memory: Parquet, CSV, JSON and JSONL.

Each form is read by a module of its own (`table_parquet`, `table_text`, `table_json`); what a file
may cost stands in `table_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from assets.fetching.errors import AnnotationError
from assets.fetching.table_json import read_json, read_json_lines, starts_a_list
from assets.fetching.table_parquet import read_parquet
from assets.fetching.table_rows import MOST_BYTES, MOST_ROWS, Found, RawRow, in_brief
from assets.fetching.table_text import encoding_name, find_encoding, read_csv

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
# What a file is by its first bytes, whatever it is called.
_TRUE_FORMS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"7z\xbc\xaf": "a 7z archive",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet",
    b"%PDF": "PDF",
}


class TableFile:
    """The rows of an annotation file in order, numbered from 0; go over them once.

    Attributes:
        form: how it is read, in a few words: `CSV, columns by ';', UTF-16`.
        same_columns: whether all rows have the same ones; those of JSON have their own.

    Args:
        path: local file.
        name: what the file is called in messages and which suffix decides; a download has another
            name on disk.

    Raises:
        AnnotationError: unknown suffix, another form than the suffix says, or larger than a file
            may be. While one goes over the rows: the file as a whole cannot be parsed.
    """

    def __init__(self, path: Path, name: str) -> None:
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise AnnotationError(f"{name}: annotation files are {', '.join(SUFFIXES)}")
        self._name = name
        with _faults_named(name, suffix[1:]):
            if (size := path.stat().st_size) > MOST_BYTES:
                raise AnnotationError(
                    f"{name}: has {size / 2**30:,.0f} GiB, more than {MOST_BYTES >> 30}"
                )
            self.form, self._rows = _open(path, name, suffix)
        self.same_columns = not self.form.startswith("JSON")

    def __iter__(self) -> Iterator[RawRow]:
        with _faults_named(self._name, self.form):
            for number, (value, line, fault) in enumerate(self._rows):
                if number >= MOST_ROWS:
                    raise AnnotationError(f"{self._name}: has more than {MOST_ROWS:,} rows")
                yield RawRow(number, value, line, fault)


def read_rows(path: Path, name: str) -> TableFile:
    """The rows of an annotation file; see `TableFile`."""
    return TableFile(path, name)


def _open(path: Path, name: str, suffix: str) -> tuple[str, Iterator[Found]]:
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(b"PAR1"):
        return "Parquet", read_parquet(path, name)
    for mark, form in _TRUE_FORMS.items():
        if head.startswith(mark):
            raise AnnotationError(
                f"{name}: is {form} by its content; unpack it, or save it as CSV or JSONL"
            )
    if suffix == ".parquet":
        raise AnnotationError(f"{name}: cannot be read as parquet: it begins {head!r}")
    encoding = find_encoding(path)
    if suffix in (".csv", ".tsv"):
        columns, rows = read_csv(path, name, encoding)
        return f"CSV, columns by {columns}, {encoding_name(encoding)}", rows
    if suffix == ".jsonl" and not starts_a_list(path, encoding):
        return f"JSONL, {encoding_name(encoding)}", read_json_lines(path, encoding)
    return f"JSON, {encoding_name(encoding)}", read_json(path, name, encoding)


@contextmanager
def _faults_named(name: str, form: str) -> Iterator[None]:
    """Faults of a file as a whole become a sentence that names it."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, not the file's: Arrow's own errors have no number
        raise AnnotationError(
            f"{name}: cannot be read as {form}: {in_brief(error, 300)}"
        ) from error
