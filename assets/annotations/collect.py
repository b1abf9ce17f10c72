"""All question-answer rows, under one schema, in one Parquet file that only ever grows.

The first collection deals its videos to the deployment's parts. Whatever comes later (another
revision, files in the landing folder, a source that is configured afterwards) adds its unseen rows
as one new part, so that new data never changes an old part. What was read, from where, and into
which part stands in the file's own metadata (`record.py`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.annotations.files import AnnotationFile, configured_files
from assets.annotations.landing import landing_files
from assets.annotations.reading import FileReader, FileRows
from assets.annotations.record import AnnotationRecord
from assets.annotations.rows import PARSER_VERSION
from assets.annotations.tables import (
    REJECTED_SCHEMA,
    ROW_GROUP,
    KnownRows,
    copy_rows,
    hash_rows,
)
from assets.deployment.parts import part_of
from assets.deployment.settings import Settings
from assets.fetching.disk import remove_scratch, scratch
from assets.fetching.errors import AnnotationError
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage


@dataclass(slots=True)
class AnnotationReport:
    """What was collected.

    Attributes:
        version: of the content, over all parts.
        origins: repository or file -> commit or checksum.
        counts: `rows_read`, `rows`, `rejected`, `parts`.
        rejected: reason -> rows.
        columns: names found in the files.
        problems: landing files that could not be read, with the reason.
    """

    version: str
    origins: dict[str, str]
    counts: dict[str, int]
    rejected: dict[str, int]
    columns: list[str]
    problems: list[str] = field(default_factory=list)


def collect_annotations(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> AnnotationReport:
    """Read what is new among the configured files and the landing folder into
    `VideoMarathon/annotations.parquet`.

    Nothing is written when nothing is new. Rows that cannot be used go to
    `annotations.rejected.parquet`.

    Raises:
        AnnotationError: a configured file has unknown columns or cannot be parsed; the annotations
            that are there were not written by this pipeline.
        OperatorError: the hub refuses.
    """
    reading = data_version(
        {
            "normaliser": PARSER_VERSION,
            "sources": sorted(settings.sources),
            "columns": settings.annotations.columns,
        }
    )
    record = AnnotationRecord.read(storage)
    adder = _FileAdder(storage, settings, reading, log)
    configured, landed = configured_files(storage, settings, log), landing_files(settings)
    if fresh := _unread(configured, record, reading):
        record = adder.add(record or AnnotationRecord(), fresh)
    problems: list[str] = []
    if fresh := _unread(landed, record, reading):
        record = adder.add(record or AnnotationRecord(), fresh, problems)
    remove_scratch(scratch(storage, "annotations"))
    assert record is not None, "the settings name at least one file"
    for problem in problems:
        log(f"landing file left out: {problem}")
    return AnnotationReport(
        version=record.version,
        origins={origin.name: origin.version for origin in record.origins},
        counts=record.counts | {"parts": len(record.part_versions)},
        rejected=record.rejected,
        columns=record.columns,
        problems=problems,
    )


def _unread(
    files: list[AnnotationFile], record: AnnotationRecord | None, reading: str
) -> list[AnnotationFile]:
    return [file for file in files if record is None or not record.knows(file, reading)]


@dataclass(frozen=True, slots=True)
class _FileAdder:
    """Adds files to the annotations: each is read into Parquet files of its own, then all of them
    join the rows that are there.
    """

    storage: Storage
    settings: Settings
    reading: str
    log: Callable[[str], None]

    def add(
        self,
        record: AnnotationRecord,
        files: list[AnnotationFile],
        problems: list[str] | None = None,
    ) -> AnnotationRecord:
        """Read `files` and publish what they add; returns the record, brought up to date.

        Args:
            problems: where files that cannot be read are listed. Without it they are an error.
        """
        folder = scratch(self.storage, "annotations", "buckets")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        reader = self._reader(record, folder)
        read: list[FileRows] = []
        for number, file in enumerate(files):
            try:
                read.append(reader.read(file, number))
            except AnnotationError as error:
                if problems is None:
                    raise
                problems.append(str(error))
        if read:
            self._publish(record, read)
        shutil.rmtree(folder)
        return record

    def _reader(self, record: AnnotationRecord, folder: Path) -> FileReader:
        """A first collection deals videos to all parts; a later one makes one new part."""
        new_part = len(record.part_versions)
        is_first = new_part == 0
        known = KnownRows(None if is_first else self.storage.local(layout.ANNOTATIONS))

        def part_of_video(video: str) -> int:
            return part_of(video, self.settings.parts) if is_first else new_part

        return FileReader(self.settings, folder, known, part_of_video, self.log)

    def _publish(self, record: AnnotationRecord, read: list[FileRows]) -> None:
        """Bring the record up to date, and write both files with the new rows at their ends."""
        is_first = not record.part_versions
        filled = sorted({part for rows in read for part in rows.parts})
        parts = range(self.settings.parts) if is_first else filled
        paths = {part: [r.parts[part] for r in read if part in r.parts] for part in parts}
        hashes = {part: hash_rows(paths[part]) for part in parts}
        record.add_parts(
            [rows.file for rows in read],
            self.reading,
            {part: version for part, (version, _) in hashes.items()},
        )
        record.add_counts(
            rows_read=sum(rows.rows_read for rows in read),
            rows=sum(count for _, count in hashes.values()),
            rejected=sum((rows.reasons for rows in read), Counter[str]()),
            columns=set[str]().union(*(rows.columns for rows in read)),
        )
        self._publish_rejected(read)
        with (
            self.storage.writing(layout.ANNOTATIONS) as temporary,
            pq.ParquetWriter(temporary, record.schema(), compression="zstd") as writer,
        ):
            earlier = [] if is_first else [self.storage.local(layout.ANNOTATIONS)]
            for path in (*earlier, *(path for part in parts for path in paths[part])):
                copy_rows(path, writer)
        total = f"{record.counts['rows']:,} rows in {len(record.part_versions)} parts"
        self.log(f"annotations: {total}")

    def _publish_rejected(self, read: list[FileRows]) -> None:
        """Rows set aside, those of earlier readings included; a reading that is repeated replaces
        its own.
        """
        repeated = pa.array(sorted({rows.file.checksum for rows in read}), pa.string())
        with (
            self.storage.writing(layout.REJECTED_ANNOTATIONS) as temporary,
            pq.ParquetWriter(temporary, REJECTED_SCHEMA, compression="zstd") as writer,
        ):
            if self.storage.exists(layout.REJECTED_ANNOTATIONS):
                with pq.ParquetFile(self.storage.local(layout.REJECTED_ANNOTATIONS)) as earlier:
                    for batch in earlier.iter_batches(ROW_GROUP):
                        again = pc.is_in(batch.column("checksum"), repeated)
                        writer.write_batch(batch.filter(pc.invert(again)))
            for rows in read:
                copy_rows(rows.rejected, writer)
