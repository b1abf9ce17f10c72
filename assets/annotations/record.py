"""What the annotations are made of: a record that lies in the metadata of their own Parquet file.

Rows and record change by the same rename, so they never disagree. Names of fields are those of the
stored JSON; docs/data_formats.md describes it as the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from assets.annotations.files import AnnotationFile
from assets.annotations.rows import PARSER_VERSION
from assets.annotations.tables import SCHEMA
from assets.fetching.errors import AnnotationError
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage

RECORD_KEY = b"hourllava.ledger"


@dataclass(slots=True)
class Origin:
    """One reading of files that ended in the annotations.

    Attributes:
        name: the repository, or the file's name.
        version: the repository's commit, or the file's checksum.
        checksums: of the files that were read.
        reading: hash of what shaped the reading (sources, columns). Another reading of a known file
            counts as new.
        parts: the parts that its rows went to; empty when all of them were known already.
    """

    name: str
    version: str
    checksums: list[str]
    reading: str
    parts: list[int]


@dataclass(slots=True)
class AnnotationRecord:
    """What the annotations are made of.

    Attributes:
        normaliser: version of the rules that turn rows into questions.
        origins: the readings, oldest first.
        part_versions: content hash of each part.
        part_names: of each part, the repository or file that it came from.
        counts: `rows_read`, `rows` and `rejected`, over all readings.
        rejected: reason -> rows that were set aside.
        columns: names found in the files.
    """

    normaliser: int = PARSER_VERSION
    origins: list[Origin] = field(default_factory=list)
    part_versions: list[str] = field(default_factory=list)
    part_names: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Content hash over all parts."""
        return data_version({"normaliser": self.normaliser, "parts": self.part_versions})

    def knows(self, file: AnnotationFile, reading: str) -> bool:
        """Whether the file was read before, in the same way."""
        return any(
            origin.reading == reading and file.checksum in origin.checksums
            for origin in self.origins
        )

    def add_parts(
        self, files: Iterable[AnnotationFile], reading: str, parts: dict[int, str]
    ) -> None:
        """Add the parts that `files` filled: number -> content hash."""
        checksums: dict[tuple[str, str], list[str]] = {}
        for file in files:
            checksums.setdefault((file.origin, file.version), []).append(file.checksum)
        for (name, version), sums in checksums.items():
            self.origins.append(Origin(name, version, sums, reading, list(parts)))
        first, *others = sorted({name for name, _ in checksums})
        name = f"{first} and {len(others)} more" if others else first
        self.part_versions += parts.values()
        self.part_names += [name] * len(parts)

    def add_counts(
        self, rows_read: int, rows: int, rejected: Counter[str], columns: set[str]
    ) -> None:
        """Add what a reading counted."""
        self.columns = sorted(columns.union(self.columns))
        self.rejected = dict(sorted((rejected + Counter(self.rejected)).items()))
        self.counts = {
            "rows_read": self.counts.get("rows_read", 0) + rows_read,
            "rows": self.counts.get("rows", 0) + rows,
            "rejected": sum(self.rejected.values()),
        }

    def schema(self) -> pa.Schema:
        """The schema of the annotation file, with this record in its metadata."""
        return SCHEMA.with_metadata({RECORD_KEY: json.dumps(asdict(self), sort_keys=True).encode()})

    @staticmethod
    def read(storage: Storage) -> AnnotationRecord | None:
        """The record of the annotations, or None before the first collection.

        Raises:
            AnnotationError: the file was not written by this pipeline.
        """
        if not storage.exists(layout.ANNOTATIONS):
            return None
        with storage.open(layout.ANNOTATIONS) as file:
            metadata = pq.read_schema(file).metadata or {}
        if RECORD_KEY not in metadata:
            raise AnnotationError(
                f"{storage.path(layout.ANNOTATIONS)}: was not written by this pipeline (no "
                "ledger); move it away, and name it in annotations.paths to have it read"
            )
        raw = json.loads(metadata[RECORD_KEY])
        return AnnotationRecord(
            **{**raw, "origins": [Origin(**origin) for origin in raw["origins"]]}
        )
