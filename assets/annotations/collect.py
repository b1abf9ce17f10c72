"""All question-answer rows, under one schema, in one Parquet file that only ever grows.

The first collection deals its videos to the deployment's parts. Whatever comes later (another
revision, files in the landing folder, a source that is configured afterwards) adds its unseen rows
as one new part, so that new data never changes an old part. What was read, from where, and into
which part stands in the file's own metadata: file and record change by the same rename.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from assets.annotations.landing import AnnotationFile, configured_files, landing_files
from assets.annotations.rows import NORMALISER, Normaliser, Question, Reject
from assets.deployment.parts import part_of
from assets.deployment.settings import Settings
from assets.fetching.disk import clear, scratch
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import read_rows
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage
from training.progress import Progress

ROW_GROUP = 65_536
BUFFER_ROWS = 8192
LEDGER_KEY = b"hourllava.ledger"

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
REJECTED_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("checksum", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("content", pa.string()),
    ]
)


@dataclass(slots=True)
class Origin:
    """One reading of files that ended in the annotations.

    Attributes:
        name, version: repository and commit, or file name and checksum.
        checksums: of the files that were read.
        reading: hash of what shaped the reading (sources, columns); another reading of a known file
            counts as new.
        parts: the parts that its rows went to; empty when all of them were known already.
    """

    name: str
    version: str
    checksums: list[str]
    reading: str
    parts: list[int]


@dataclass(slots=True)
class Ledger:
    """What the annotations are made of."""

    normaliser: int = NORMALISER
    origins: list[Origin] = field(default_factory=list)
    part_versions: list[str] = field(default_factory=list)
    part_names: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        return data_version({"normaliser": self.normaliser, "parts": self.part_versions})

    def knows(self, file: AnnotationFile, reading: str) -> bool:
        return any(
            origin.reading == reading and file.checksum in origin.checksums
            for origin in self.origins
        )

    @staticmethod
    def read(storage: Storage) -> Ledger | None:
        """The record of the annotations, or None before the first collection."""
        if not storage.exists(layout.ANNOTATIONS):
            return None
        with storage.open(layout.ANNOTATIONS) as file:
            metadata = pq.read_schema(file).metadata or {}
        if LEDGER_KEY not in metadata:
            raise AnnotationError(
                f"{storage.path(layout.ANNOTATIONS)}: was not written by this pipeline (no ledger); move "
                "it away, and name it in annotations.paths to have it read"
            )
        raw = json.loads(metadata[LEDGER_KEY])
        return Ledger(**{**raw, "origins": [Origin(**origin) for origin in raw["origins"]]})


@dataclass(slots=True)
class AnnotationReport:
    """What was collected.

    Attributes:
        version: of the content, over all parts.
        origins: repository or file -> commit or checksum.
        counts: ``rows_read``, ``rows``, ``rejected``, ``parts``.
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
    ``VideoMarathon/annotations.parquet``.

    Nothing is written when nothing is new. Rows that cannot be used go to
    ``annotations.rejected.parquet``.

    Raises:
        AnnotationError: a configured file has unknown columns or cannot be parsed; there would be
            too many parts.
        OperatorError: the hub refuses.
    """
    reading = data_version(
        {
            "normaliser": NORMALISER,
            "sources": sorted(settings.sources),
            "columns": settings.annotations.columns,
        }
    )
    ledger = Ledger.read(storage)
    problems: list[str] = []
    for files, lenient in (
        (configured_files(storage, settings, log), False),
        (landing_files(settings), True),
    ):
        fresh = [file for file in files if ledger is None or not ledger.knows(file, reading)]
        if fresh:
            ledger = _Collection(storage, settings, ledger or Ledger(), reading, log).add(
                fresh, lenient, problems
            )
    clear(scratch(storage, "annotations"))
    assert ledger is not None, "the settings name at least one file"
    for problem in problems:
        log(f"landing file left out: {problem}")
    return AnnotationReport(
        version=ledger.version,
        origins={origin.name: origin.version for origin in ledger.origins},
        counts=ledger.counts | {"parts": len(ledger.part_versions)},
        rejected=ledger.rejected,
        columns=ledger.columns,
        problems=problems,
    )


class _Collection:
    """One growth step: files are read into one bucket a part, then the buckets join the rows that
    were there.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        ledger: Ledger,
        reading: str,
        log: Callable[[str], None],
    ) -> None:
        self.storage, self.settings, self.ledger, self.reading, self.log = (
            storage,
            settings,
            ledger,
            reading,
            log,
        )
        self.base = not ledger.part_versions
        self.known = np.empty(0, np.uint64) if self.base else _known_rows(storage)
        self.folder = scratch(storage, "annotations", "buckets")
        self.read, self.rejects, self.columns = 0, Counter[str](), set(ledger.columns)

    def add(self, files: list[AnnotationFile], lenient: bool, problems: list[str]) -> Ledger:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        taken, tables, rejected = [], [], []
        for number, file in enumerate(files):
            try:
                buckets, rejects_path = self._read(file, number)
            except AnnotationError as error:
                if not lenient:
                    raise
                problems.append(str(error))
                continue
            taken.append(file)
            tables.append(buckets)
            rejected.append(rejects_path)
        if taken:
            self._publish(taken, tables, rejected)
        shutil.rmtree(self.folder)
        return self.ledger

    def _read(self, file: AnnotationFile, number: int) -> tuple[dict[int, Path], Path]:
        """Normalise a file into one bucket a part. Counts only once the whole file was understood."""
        normaliser = Normaliser(self.settings.sources, self.settings.annotations.columns)
        first = len(self.ledger.part_versions)
        progress = Progress(self.log, None, f"rows of {file.name}")
        buckets: dict[int, _Bucket] = {}
        rejects = _Bucket(self.folder / f"{number}.rejected.parquet", REJECTED_SCHEMA)
        counts, read = Counter[str](), 0
        columns: set[str] = set()
        with file.opened() as path:
            for row in read_rows(path, file.name):
                read += 1
                if isinstance(row.value, dict):
                    columns.update(row.value)
                try:
                    questions = normaliser.questions(row.value, file.name)
                except Reject as error:
                    counts[str(error)] += 1
                    rejects.append(
                        (file.name, file.checksum, row.number, str(error), _as_text(row.value))
                    )
                    continue
                for question in questions:
                    part = part_of(question.video, self.settings.parts) if self.base else first
                    if self.known.size and self._is_known(question):
                        counts["known already"] += 1
                        continue
                    if part not in buckets:
                        buckets[part] = _Bucket(self.folder / f"{number}.{part}.parquet", SCHEMA)
                    buckets[part].append((*_values(question), part))
                progress.advance()
        for bucket in (*buckets.values(), rejects):
            bucket.close()
        if read == 0:
            raise AnnotationError(f"{file.name}: holds no rows")
        self.read += read
        self.rejects += counts
        self.columns |= columns
        self.log(
            f"{file.name}: {read:,} rows, {sum(counts.values()):,} set aside {dict(counts) or ''}"
        )
        return {part: bucket.path for part, bucket in buckets.items()}, rejects.path

    def _publish(
        self, files: list[AnnotationFile], tables: list[dict[int, Path]], rejected: list[Path]
    ) -> None:
        used = sorted({part for buckets in tables for part in buckets})
        parts = list(range(self.settings.parts)) if self.base else used
        buckets = {part: [table[part] for table in tables if part in table] for part in parts}
        hashes = {part: _hash_rows(paths) for part, paths in buckets.items()}
        rows = sum(count for _, count in hashes.values())
        ledger = self.ledger
        versions: dict[tuple[str, str], list[str]] = {}
        for file in files:
            versions.setdefault((file.origin, file.version), []).append(file.checksum)
        for (name, version), sums in versions.items():
            ledger.origins.append(Origin(name, version, sums, self.reading, parts))
        ledger.part_versions += [hashes[part][0] for part in parts]
        names = sorted({file.origin for file in files})
        ledger.part_names += [
            names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
        ] * len(parts)
        ledger.columns = sorted(self.columns)
        self.rejects += Counter(ledger.rejected)
        ledger.rejected = dict(sorted(self.rejects.items()))
        ledger.counts = {
            "rows_read": ledger.counts.get("rows_read", 0) + self.read,
            "rows": ledger.counts.get("rows", 0) + rows,
            "rejected": sum(ledger.rejected.values()),
        }
        self._publish_rejected({file.checksum for file in files}, rejected)
        schema = SCHEMA.with_metadata(
            {LEDGER_KEY: json.dumps(asdict(ledger), sort_keys=True).encode()}
        )
        with (
            self.storage.writing(layout.ANNOTATIONS) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            if not self.base:
                _copy(self.storage.local(layout.ANNOTATIONS), writer)
            for paths in buckets.values():
                for path in paths:
                    _copy(path, writer)
        self.log(
            f"annotations: {ledger.counts['rows']:,} rows in {len(ledger.part_versions)} parts"
        )

    def _publish_rejected(self, checksums: set[str], rejected: list[Path]) -> None:
        """Rows set aside, those of earlier readings included; a reading that is repeated replaces
        its own.
        """
        with (
            self.storage.writing(layout.REJECTED_ANNOTATIONS) as temporary,
            pq.ParquetWriter(temporary, REJECTED_SCHEMA, compression="zstd") as writer,
        ):
            if self.storage.exists(layout.REJECTED_ANNOTATIONS):
                with pq.ParquetFile(self.storage.local(layout.REJECTED_ANNOTATIONS)) as earlier:
                    for batch in earlier.iter_batches(ROW_GROUP):
                        known = pa.array(
                            [c not in checksums for c in batch.column("checksum").to_pylist()]
                        )
                        writer.write_batch(batch.filter(known))
            for path in rejected:
                _copy(path, writer)

    def _is_known(self, question: Question) -> bool:
        digest = np.uint64(_row_hash(question.video, question.question, question.answer))
        place = int(np.searchsorted(self.known, digest))
        return place < self.known.size and self.known[place] == digest


class _Bucket:
    """Rows on their way into one Parquet file, a few thousand in memory at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self._rows: list[tuple[Any, ...]] = []
        self._writer: pq.ParquetWriter | None = None

    def append(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) >= BUFFER_ROWS:
            self._flush()

    def close(self) -> None:
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


def _copy(path: Path, writer: pq.ParquetWriter) -> None:
    with pq.ParquetFile(path) as file:
        for table in _row_groups(file):
            writer.write_table(
                table.replace_schema_metadata(writer.schema.metadata), row_group_size=ROW_GROUP
            )


def _row_groups(file: pq.ParquetFile) -> Iterator[pa.Table]:
    """Tables of about ``ROW_GROUP`` rows that never hold rows of two parts."""
    pending: list[pa.RecordBatch] = []
    for index in range(file.num_row_groups):
        pending += file.read_row_group(index).to_batches()
        part_ends = (
            index + 1 == file.num_row_groups or sum(b.num_rows for b in pending) >= ROW_GROUP
        )
        if not part_ends and "part" in file.schema_arrow.names:
            statistics = [
                file.metadata.row_group(i).column(SCHEMA.get_field_index("part")).statistics
                for i in (index, index + 1)
            ]
            part_ends = statistics[0].max != statistics[1].min
        if part_ends and pending:
            yield pa.Table.from_batches(pending)
            pending = []


def _hash_rows(paths: list[Path]) -> tuple[str, int]:
    """Content hash of a part, and its number of rows."""
    digest, rows = xxhash.xxh3_128(), 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BUFFER_ROWS):
                rows += batch.num_rows
                for name in SCHEMA.names[:-1]:
                    digest.update(orjson.dumps(batch.column(name).to_pylist()))
    return digest.hexdigest(), rows


def _known_rows(storage: Storage) -> np.ndarray:
    """Sorted hashes of all rows that were collected before: 8 bytes a row."""
    hashes = []
    with pq.ParquetFile(storage.local(layout.ANNOTATIONS)) as file:
        for batch in file.iter_batches(BUFFER_ROWS, columns=["video", "question", "answer"]):
            columns = [batch.column(name).to_pylist() for name in ("video", "question", "answer")]
            hashes.append(np.fromiter(map(_row_hash, *columns), np.uint64, batch.num_rows))
    return np.sort(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)


def _row_hash(video: str, question: str, answer: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{video}\0{question}\0{answer}".encode())


def _values(question: Question) -> tuple[Any, ...]:
    return tuple(getattr(question, name) for name in SCHEMA.names[:-1])


def _as_text(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    )
