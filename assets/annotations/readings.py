"""Readings: the rows of each annotation file, in the pipeline's own form, kept below the root.

A reading is named after the file's content and the settings that shaped it, so a file is read again
only when it changed. The annotations are put together from the readings of today's files
(`merge.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from assets.annotations.files import AnnotationFile
from assets.annotations.identity import NO_ID, key_of
from assets.annotations.rows import QuestionRow, RejectedRow, RowParser
from assets.annotations.tables import CONTENT_COLUMNS, SCHEMA, VERSION_COLUMNS, RowFile
from assets.deployment.settings import Settings
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import read_rows
from assets.fetching.table_rows import MOST_COLUMNS, in_brief
from assets.records.sentences import listed
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import set_aside
from training.formats.storage import Storage
from training.progress import Progress

# Raise it when a reading has other columns, or when other things decide an identity.
READING_VERSION = 2

READING_SCHEMA = pa.schema(
    [
        ("entry", pa.int64()),
        ("named", pa.uint64()),
        ("asked", pa.uint64()),
        ("content", pa.binary(16)),
        *(SCHEMA.field(name) for name in CONTENT_COLUMNS),
    ]
)
REJECTED_ROW_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("line", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)
LONGEST_CONTENT = 20_000  # characters of a row that was set aside; the file has the rest
NAMED = 10  # columns, and reasons, that a line names
_FACTS = b"hourllava.reading"


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows of one file, as they were read.

    Attributes:
        key: its name below the root.
        rows_read: all rows of the file.
        rejected: reason -> rows that were set aside.
        columns: names found in the file, the first ones.
        form: how the file was read: its form, what stands between columns, its encoding.
        unused: columns that are not read.
        unread: field -> rows whose value of it could not be read and was left out.
    """

    key: str
    rows_read: int
    rejected: dict[str, int]
    columns: list[str]
    form: str = ""
    unused: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)


class Readings:
    """The readings below a root, of files read under one deployment's settings.

    Args:
        shaped_by: what shapes a reading besides the file: sources, columns, the parser.
    """

    def __init__(
        self, storage: Storage, settings: Settings, shaped_by: Any, log: Callable[[str], None]
    ) -> None:
        self.storage, self.settings, self.log = storage, settings, log
        self._shaped_by = data_version([READING_VERSION, shaped_by])

    def of(self, file: AnnotationFile) -> Reading:
        """The reading of a file, made where it is not there.

        Raises:
            AnnotationError: the file cannot be parsed, has unknown columns, or holds no rows.
        """
        key = data_version([file.checksum, self._shaped_by])
        return self._known(key) or self._read(file, key)

    def _known(self, key: str) -> Reading | None:
        name = layout.reading(key)
        if not all(map(self.storage.exists, reading_files(key))):
            return None
        try:
            facts = pq.read_metadata(self.storage.local(name)).metadata[_FACTS]
        except pa.ArrowException as error:
            where = set_aside(self.storage, name)
            self.log(f"{name} is damaged ({error}): it is now {where}, and the file is read again")
            return None
        return Reading(**json.loads(facts))

    def _read(self, file: AnnotationFile, key: str) -> Reading:
        progress = Progress(self.log, None, f"rows of {file.name}")
        reasons, columns, rows_read = Counter[str](), dict[str, None](), 0
        with (
            self.storage.writing(layout.reading(key)) as rows_path,
            self.storage.writing(layout.rejected_reading(key)) as rejected_path,
            file.opened() as path,
        ):
            raw_rows = read_rows(path, file.name)
            parser = RowParser(
                self.settings.sources,
                self.settings.annotations.columns,
                same_columns=raw_rows.same_columns,
            )
            rows = RowFile(rows_path, READING_SCHEMA)
            rejected = RowFile(rejected_path, REJECTED_ROW_SCHEMA)
            for row in raw_rows:
                rows_read += 1
                if isinstance(row.value, dict) and len(columns) < MOST_COLUMNS:
                    columns.update(dict.fromkeys(row.value))
                try:
                    for values in _keyed(row.number, parser.parse_raw(row, file.name)):
                        rows.append(values)
                except RejectedRow as error:
                    reasons[str(error)] += 1
                    rejected.append((row.number, row.line, str(error), _as_text(row.value)))
                progress.advance()
            if rows_read == 0:
                raise AnnotationError(f"{file.name}: holds no rows")
            if reasons.total() == rows_read:
                refuse_file(file.name, reasons, parser)
            reading = Reading(
                key,
                rows_read,
                dict(sorted(reasons.items())),
                sorted({_whole(in_brief(name)) for name in list(columns)[:MOST_COLUMNS]}),
                raw_rows.form,
                [_whole(name) for name in parser.unused],
                dict(parser.unread),
            )
            rejected.close()
            rows.close({_FACTS: json.dumps(asdict(reading))})
        set_aside_rows = f"{reasons.total():,} set aside {dict(reasons) or ''}"
        self.log(f"{file.name} ({reading.form}): {rows_read:,} rows, {set_aside_rows}")
        if reading.unused:
            self.log(f"{file.name}: columns that are not read: {listed(reading.unused, NAMED)}")
        for name, number in reading.unread.items():
            self.log(f"{file.name}: {number:,} rows have a {name} that cannot be read")
        return reading

    def forget_others(self, keys: Iterable[str]) -> None:
        """Remove the readings of files that the annotations are no longer made from."""
        kept = {name for key in keys for name in reading_files(key)}
        for name in self.storage.list(layout.READINGS):
            if name not in kept:
                self.storage.remove(name)


def reading_files(key: str) -> list[str]:
    """The files of a reading."""
    return [layout.reading(key), layout.rejected_reading(key)]


def refuse_file(name: str, reasons: Counter[str], parser: RowParser) -> None:
    """Say what a person can do where not one row of a file can be used, and it is about the file as
    a whole.

    Args:
        name: what the file is called in messages.
        reasons: why its rows were set aside, and how many for each.
        parser: that read them.

    Raises:
        AnnotationError: it is.
    """
    if parser.columns_error and set(reasons) == {"columns_missing"}:
        raise parser.columns_error
    if "no_source" in reasons:
        sources = parser.videos.names
        raise AnnotationError(
            f"{name}: {reasons['no_source']:,} of {reasons.total():,} rows do not say which "
            "source their video is from, and the settings have several. Add a column source "
            f"(or data_source, dataset) with one of {', '.join(sources)}; or begin the videos "
            f"with it, as in {sources[0]}/name.mp4"
        )


def _keyed(number: int, questions: list[QuestionRow]) -> list[tuple[Any, ...]]:
    """The pairs of one row of a file, with what says which row it is.

    Raises:
        RejectedRow: a text that no file can hold.
    """
    first = questions[0]
    try:
        asked = key_of(first.video, *(question.question for question in questions))
        named = NO_ID if first.row_id is None else key_of(first.video, first.row_id)
        (first.question_type or "").encode()  # the one text that no hash looks at
        return [
            (
                number,
                named,
                asked,
                _content(question),
                *(getattr(question, name) for name in CONTENT_COLUMNS),
            )
            for question in questions
        ]
    except (UnicodeEncodeError, orjson.JSONEncodeError):  # half a surrogate pair
        raise RejectedRow("not_unicode") from None


def _content(question: QuestionRow) -> bytes:
    values = [getattr(question, name) for name in VERSION_COLUMNS]
    return xxhash.xxh3_128_digest(orjson.dumps(values))


def _as_text(value: Any) -> str:
    """A row for a person who looks for it: its beginning, where it is long."""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=_in_few_words)
    return _whole(value[:LONGEST_CONTENT])


def _in_few_words(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)


def _whole(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    return text.encode(errors="replace").decode()
