"""One annotation file -> Parquet files: one for each part, and one of the rows set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.annotations.files import AnnotationFile
from assets.annotations.rows import QuestionRow, RejectedRow, RowParser
from assets.annotations.tables import (
    CONTENT_COLUMNS,
    REJECTED_SCHEMA,
    SCHEMA,
    KnownRows,
    RowFile,
)
from assets.deployment.settings import Settings
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import read_rows
from training.progress import Progress


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one annotation file, on disk.

    Attributes:
        parts: number of a part -> the Parquet file of its rows.
        rejected: the Parquet file of the rows that were set aside.
        reasons: reason -> rows that were set aside.
        rows_read: all rows of the file.
        columns: names found in it.
    """

    file: AnnotationFile
    parts: dict[int, Path]
    rejected: Path
    reasons: Counter[str]
    rows_read: int
    columns: set[str]


class FileReader:
    """Reads annotation files into Parquet files of `folder`.

    Args:
        known: rows that were collected before; they are set aside.
        part_of_video: `source/id` -> number of the part that the video's rows go to.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        known: KnownRows,
        part_of_video: Callable[[str], int],
        log: Callable[[str], None],
    ) -> None:
        self.settings, self.folder, self.log = settings, folder, log
        self.known, self.part_of_video = known, part_of_video

    def read(self, file: AnnotationFile, number: int) -> FileRows:
        """Read one file; `number` tells its Parquet files from those of other files.

        Raises:
            AnnotationError: the file cannot be parsed, has unknown columns, or holds no rows.
        """
        parser = RowParser(self.settings.sources, self.settings.annotations.columns)
        progress = Progress(self.log, None, f"rows of {file.name}")
        parts: dict[int, RowFile] = {}
        rejected = RowFile(self.folder / f"{number}.rejected.parquet", REJECTED_SCHEMA)
        reasons, columns, rows_read = Counter[str](), set[str](), 0
        with file.opened() as path:
            for row in read_rows(path, file.name):
                rows_read += 1
                if isinstance(row.value, dict):
                    columns.update(row.value)
                try:
                    questions = parser.parse(row.value, file.name)
                except RejectedRow as error:
                    reason = str(error)
                    reasons[reason] += 1
                    rejected.append(
                        (file.name, file.checksum, row.number, reason, _as_text(row.value))
                    )
                    continue
                for question in questions:
                    if self.known.holds(question.video, question.question, question.answer):
                        reasons["known already"] += 1
                        continue
                    part = self.part_of_video(question.video)
                    if part not in parts:
                        parts[part] = RowFile(self.folder / f"{number}.{part}.parquet", SCHEMA)
                    parts[part].append((*_content(question), part))
                progress.advance()
        for row_file in (*parts.values(), rejected):
            row_file.close()
        if rows_read == 0:
            raise AnnotationError(f"{file.name}: holds no rows")
        set_aside = f"{reasons.total():,} set aside {dict(reasons) or ''}"
        self.log(f"{file.name}: {rows_read:,} rows, {set_aside}")
        paths = {part: row_file.path for part, row_file in parts.items()}
        return FileRows(file, paths, rejected.path, reasons, rows_read, columns)


def _content(question: QuestionRow) -> tuple[Any, ...]:
    return tuple(getattr(question, name) for name in CONTENT_COLUMNS)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
