"""Builds the catalogue: each video that the annotations ask for gets a row in the table of its
source and part.

A corrected URL or duration arrives in the row of its video. A video that no row asks for any more
keeps its row and its file, and the row says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from assets.annotations.catalogue import (
    Catalogue,
    DamagedTableError,
    read_catalogue,
    read_snapshot,
    snapshot_name,
)
from assets.annotations.record import AnnotationRecord
from assets.deployment.parts import part_index, part_name
from assets.deployment.settings import Settings
from assets.fetching.errors import OperatorError
from assets.fetching.probe import duration_differs
from assets.records.lineage import Lineage, is_recorded, product
from assets.records.withdrawals import Withdrawal, Withdrawals
from assets.sources.base import NOT_ASKED, OK, PENDING, VideoRow
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import set_aside
from training.formats.storage import Storage

NEW, CORRECTED, LEFT = "new", "corrected", "no longer asked for"
COUNTED = ("videos", "questions", NEW, CORRECTED, LEFT)


@dataclass(slots=True)
class CatalogueReport:
    """The parts there are, and how many videos each source has in each.

    Attributes:
        version: of what is expected; what becomes of the videos does not change it.
        parts: their names, in order.
        rows: part -> version of its rows.
        counts: `videos`, `questions`, `new`, `corrected` and `no longer asked for` (videos), and
            `parts`.
        table: one row for each part and source, with all but the last of these counts.
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
    there keep their state, as long as what is asked for is the same.

    Raises:
        OperatorError: there are no annotations yet, or a table that has to change is being written
            by another process; all others are up to date then.
    """
    record = AnnotationRecord.read(storage)
    if record is None:
        raise OperatorError(
            f"{storage.path(layout.ANNOTATIONS)}: not there; materialize the annotations first"
        )
    withdrawn = Withdrawals.read(storage).videos
    expected = _expected_videos(storage, withdrawn)
    parts = [part_name(index) for index in range(len(record.part_versions))]
    table: list[dict[str, Any]] = []
    in_use: list[str] = []
    for index, part in enumerate(parts):
        for source in sorted(settings.sources):
            rows = expected.get((index, source), [])
            asked = {"videos": len(rows), "questions": sum(row.questions for row in rows)}
            try:
                changed = _enter(storage, settings, source, part, rows, withdrawn, log)
            except OperatorError as error:
                in_use.append(str(error))
                continue
            table.append({"part": part, "source": source, **asked, **changed})
    if in_use:
        raise OperatorError(
            f"{'; '.join(in_use)}. All other tables are up to date; materialize the catalogue "
            "again afterwards"
        )
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
    counts = {name: sum(row[name] for row in table) for name in COUNTED}
    log(
        f"catalogue: {counts['videos']:,} videos in {len(parts)} parts, {counts[NEW]:,} of them "
        f"new, {counts[CORRECTED]:,} with another URL or duration; {counts[LEFT]:,} are no longer "
        "asked for"
    )
    return CatalogueReport(
        version=data_version(entries),
        parts=parts,
        rows=dict(zip(parts, record.part_versions, strict=True)),
        counts={**counts, "parts": len(parts)},
        table=table,
    )


def _enter(
    storage: Storage,
    settings: Settings,
    source: str,
    part: str,
    rows: list[VideoRow],
    withdrawn: Mapping[str, Withdrawal],
    log: Callable[[str], None],
) -> dict[str, int]:
    """Bring a table up to what is asked for; returns how many rows that concerned.

    A table in which nothing changes is not opened for writing, so a running download goes on.
    """
    asked = {row.id: row for row in rows}
    set_aside_damaged_table(storage, source, part, log)
    known: dict[str, dict[str, Any]] = {}
    if storage.exists(snapshot_name(source, part)):
        columns = ["id", "video", "url", "expected_duration", "questions", "status", "duration"]
        table = read_catalogue(storage, source, part).select([*columns, "path"])
        known = {raw["id"]: raw for raw in table.to_pylist()}
    new = [row for row in rows if row.id not in known]
    changes: dict[str, dict[str, Any]] = {}
    counts = {NEW: len(new), CORRECTED: 0, LEFT: 0}
    for identifier, raw in known.items():
        row = asked.get(identifier)
        if row is not None:
            change = _asked_again(row, raw, settings)
            counts[CORRECTED] += not change.keys().isdisjoint({"url", "expected_duration"})
        else:
            change = _not_asked(raw, withdrawn)
            counts[LEFT] += bool(change)
        if change:
            changes[identifier] = change
    if new or changes or not storage.exists(snapshot_name(source, part)):
        with Catalogue(storage, source, part, log) as catalogue:
            catalogue.add(new)
            catalogue.amend(changes)
    return counts


def mend_table(
    storage: Storage, settings: Settings, source: str, part: str, log: Callable[[str], None]
) -> None:
    """Make the table of a source and part anew where it is damaged. Its videos are then matched
    with the files that are there.
    """
    if set_aside_damaged_table(storage, source, part, log):
        withdrawn = Withdrawals.read(storage).videos
        rows = _expected_videos(storage, withdrawn).get((part_index(part), source), [])
        _enter(storage, settings, source, part, rows, withdrawn, log)


def set_aside_damaged_table(
    storage: Storage, source: str, part: str, log: Callable[[str], None]
) -> bool:
    """Move a damaged table out of the way; whether it was one.

    Until its videos are materialized, nothing is made from them: the new table knows no file yet.
    """
    table, videos = snapshot_name(source, part), product("videos", f"{part}|{source}")
    if not storage.exists(table):
        return False
    try:
        read_snapshot(storage, table)
    except DamagedTableError:
        if is_recorded(storage, videos):
            record = Lineage.read(storage, videos)
            said = f"their table was damaged; materialize {videos} again, nothing is fetched for it"
            replace(record, failed={**record.failed, "table": said}).write(storage)
        where = set_aside(storage, table)
        log(f"{videos}: {table} has other content; set aside as {where}, made again")
        return True
    return False


def _asked_again(row: VideoRow, raw: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What changes in the row of a video that is known.

    A failure is tried again by itself when its URL or duration is another one: both are part of
    what decided it. A file that is there stays, whatever URL the rows name now, unless it is not as
    long as they say.
    """
    wanted = {
        "url": row.url,
        "expected_duration": row.expected_duration,
        "questions": row.questions,
    }
    change: dict[str, Any] = {name: value for name, value in wanted.items() if raw[name] != value}
    status = raw["status"]
    if status == NOT_ASKED:
        status = OK if raw["path"] else PENDING
        change |= {"status": status, "reason": None, "message": None}
    there, stated = raw["duration"], row.expected_duration
    if (
        status == OK
        and "expected_duration" in change
        and there is not None
        and stated is not None
        and duration_differs(there, stated, settings.download)
    ):
        said = f"it has {there:.1f} s, and the rows now say {stated:.1f} s"
        change |= {"status": PENDING, "reason": "duration_corrected", "message": said}
    return change


def _not_asked(raw: dict[str, Any], withdrawn: Mapping[str, Withdrawal]) -> dict[str, Any]:
    """What changes in the row of a video that no question asks for any more."""
    if raw["status"] == NOT_ASKED:
        return {}
    reason, message = "no_rows", "no question asks for it any more; its file, if any, is kept"
    if (entry := withdrawn.get(raw["video"])) is not None:
        reason, message = "withdrawn", f"{entry.reason} ({entry.at})"
    return {"questions": 0, "status": NOT_ASKED, "reason": reason, "message": message}


def _expected_videos(
    storage: Storage, withdrawn: Container[str]
) -> dict[tuple[int, str], list[VideoRow]]:
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
                if raw["video"] in withdrawn:
                    continue
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
