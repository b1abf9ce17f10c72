"""Builds the catalogue: each video that the annotations ask for gets a row in the table of its
source and part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from assets.annotations.catalogue import Catalogue, read_catalogue, snapshot_name
from assets.annotations.record import AnnotationRecord
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.fetching.errors import OperatorError
from assets.sources.base import VideoRow
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage


@dataclass(slots=True)
class CatalogueReport:
    """The parts there are, and how many videos each source has in each.

    Attributes:
        version: of what is expected; what becomes of the videos does not change it.
        parts: their names, in order.
        rows: part -> version of its rows.
        counts: `videos`, `questions`, `new` (videos) and `parts`.
        table: one row for each part and source, with the first three counts.
    """

    version: str
    parts: list[str]
    rows: dict[str, str]
    counts: dict[str, int]
    table: list[dict[str, Any]] = field(default_factory=list)


def build_catalogue(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> CatalogueReport:
    """Enter every video of the annotations into the table of its source and part. Rows that are
    there keep their state.

    Raises:
        OperatorError: there are no annotations yet, or a table is being written by another process.
    """
    record = AnnotationRecord.read(storage)
    if record is None:
        raise OperatorError(
            f"{storage.path(layout.ANNOTATIONS)}: not there; materialize the annotations first"
        )
    expected = _expected_videos(storage)
    parts = [part_name(index) for index in range(len(record.part_versions))]
    table: list[dict[str, Any]] = []
    for index, part in enumerate(parts):
        for source in sorted(settings.sources):
            rows = expected.get((index, source), [])
            asked = {"videos": len(rows), "questions": sum(row.questions for row in rows)}
            new = _enter(storage, source, part, rows)
            table.append({"part": part, "source": source, **asked, "new": new})
    entries = [
        {
            "name": part,
            "origin": origin,
            "version": version,
            "videos": sum(row["videos"] for row in table if row["part"] == part),
        }
        for part, origin, version in zip(
            parts, record.part_names, record.part_versions, strict=True
        )
    ]
    storage.write_json(layout.PARTS, {"parts": entries})
    counts = {name: sum(row[name] for row in table) for name in ("videos", "questions", "new")}
    found = f"{counts['videos']:,} videos in {len(parts)} parts, {counts['new']:,} of them new"
    log(f"catalogue: {found}")
    return CatalogueReport(
        version=data_version(entries),
        parts=parts,
        rows=dict(zip(parts, record.part_versions, strict=True)),
        counts={**counts, "parts": len(parts)},
        table=table,
    )


def _enter(storage: Storage, source: str, part: str, rows: list[VideoRow]) -> int:
    """Add rows that are new; returns how many were.

    A table that has all of them is not opened for writing, so a running download goes on.
    """
    if storage.exists(snapshot_name(source, part)):
        known = set(read_catalogue(storage, source, part)["id"].to_pylist())
        if all(row.id in known for row in rows):
            return 0
    with Catalogue(storage, source, part) as catalogue:
        return catalogue.add(rows)


def _expected_videos(storage: Storage) -> dict[tuple[int, str], list[VideoRow]]:
    """(part index, source) -> its videos, from the annotations, read a row group at a time."""
    found: dict[tuple[int, str], dict[str, VideoRow]] = defaultdict(dict)
    keys = ["part", "source", "id", "video"]
    with pq.ParquetFile(storage.local(layout.ANNOTATIONS)) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[*keys, "url", "duration"])
            summary = table.group_by(keys).aggregate(
                [("url", "min"), ("duration", "max"), ("video", "count")]
            )
            for raw in summary.to_pylist():
                rows = found[raw["part"], raw["source"]]
                row = rows.get(raw["id"])
                if row is None:
                    row = rows[raw["id"]] = VideoRow(raw["video"], raw["source"], raw["id"])
                row.questions += raw["video_count"]
                row.url = min(filter(None, (row.url, raw["url_min"])), default=None)
                row.expected_duration = max(
                    filter(None, (row.expected_duration, raw["duration_max"])), default=None
                )
    return {key: [rows[name] for name in sorted(rows)] for key, rows in found.items()}
