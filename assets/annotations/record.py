"""What the annotations are made of: a record that lies in the metadata of their own Parquet file.

Rows and record change by the same rename, so they never disagree. Names of fields are those of the
stored JSON; docs/data_formats.md describes it as the ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from assets.annotations.rows import PARSER_VERSION
from assets.annotations.tables import SCHEMA
from assets.fetching.errors import AnnotationError
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage

RECORD_KEY = b"hourllava.ledger"


@dataclass(slots=True)
class Origin:
    """One file whose rows are in the annotations.

    Attributes:
        file: the file, as messages name it.
        name: the repository, or the file again: what lineage names.
        version: the repository's commit, or the file's checksum.
        checksum: of the file's content.
        landed: whether it lies in the landing folder.
        reading: key of its reading (`readings.py`).
        rows_read: all rows of the file.
        rejected: reason -> rows that were set aside.
        columns: names found in it.
        form: how it was read: its form, what stands between columns, its encoding.
        unused: columns that are not read.
        unread: field -> rows whose value of it could not be read and was left out.
        rows: question-answer pairs of it that are in the annotations.
        superseded: pairs that a later row stands for.
        withdrawn: pairs about withdrawn videos.
    """

    file: str
    name: str
    version: str
    checksum: str
    landed: bool
    reading: str
    rows_read: int
    rejected: dict[str, int]
    columns: list[str]
    form: str = ""
    unused: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    superseded: int = 0
    withdrawn: int = 0

    @property
    def set_aside(self) -> int:
        """Rows of it that cannot be used."""
        return sum(self.rejected.values())


@dataclass(slots=True)
class AnnotationRecord:
    """What the annotations are made of.

    Attributes:
        normaliser: version of the rules that turn rows into questions.
        origins: the files: those that the settings name, then the landed ones as they were first
            seen. A later one supersedes an earlier one.
        withdrawn: withdrawn videos that these files have rows about.
        part_versions: of each part, a hash of what its rows say.
        part_names: of each part, the repository or file that its videos were first seen in.
    """

    normaliser: int = PARSER_VERSION
    origins: list[Origin] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    part_versions: list[str] = field(default_factory=list)
    part_names: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """Content hash over all parts."""
        return data_version({"normaliser": self.normaliser, "parts": self.part_versions})

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> rows that were set aside, over all files."""
        found = sum((Counter(origin.rejected) for origin in self.origins), Counter[str]())
        return dict(sorted(found.items()))

    @property
    def counts(self) -> dict[str, int]:
        """Sums over all files."""
        return {
            "rows_read": sum(origin.rows_read for origin in self.origins),
            "rows": sum(origin.rows for origin in self.origins),
            "rejected": sum(self.rejected.values()),
            "superseded": sum(origin.superseded for origin in self.origins),
            "withdrawn": sum(origin.withdrawn for origin in self.origins),
            "parts": len(self.part_versions),
        }

    @property
    def columns(self) -> list[str]:
        """Names found in the files."""
        return sorted({name for origin in self.origins for name in origin.columns})

    def made_from(self) -> list[object]:
        """What decides the rows, and which of them are there."""
        files = [(one.file, one.checksum, one.version, one.reading) for one in self.origins]
        return [files, self.withdrawn, self.part_names]

    def schema(self) -> pa.Schema:
        """The schema of the annotation file, with this record in its metadata."""
        return SCHEMA.with_metadata({RECORD_KEY: json.dumps(asdict(self), sort_keys=True).encode()})

    @staticmethod
    def read(storage: Storage) -> AnnotationRecord | None:
        """The record of the annotations, or None before the first collection.

        A record of an earlier version of this pipeline says only which parts there are: everything
        is read again.

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
        if "withdrawn" not in raw:
            return AnnotationRecord(
                part_versions=raw["part_versions"], part_names=raw["part_names"]
            )
        return AnnotationRecord(
            **{**raw, "origins": [Origin(**origin) for origin in raw["origins"]]}
        )
