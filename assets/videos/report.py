"""The report of an acquisition: what is there of one source and part, what is not, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from assets.annotations.catalogue import Catalogue, read_catalogue
from assets.deployment.settings import Settings
from assets.records.histogram import duration_histogram
from assets.sources.base import NOT_ASKED, OK
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import FileEntry
from training.formats.storage import Storage


@dataclass(slots=True)
class AcquireReport:
    """What is there of one source and part, and what is not.

    Attributes:
        version: content hash over the videos that are present.
        counts: `expected`, and videos by status; `fetched` and `adopted` in this run.
        coverage: share of the expected videos that is present.
        hours, bytes: of the videos present; fetched_bytes and bytes_per_s of this run.
        table: one row for each status and reason, with videos and question-answer pairs.
        lost_rows: question-answer pairs whose video is missing.
        duplicates: videos with the same content as another one; reported, never removed.
        notes: what a person may want to do.
        refusals: one row for each host that refused in this run: how often, how long it rested,
            and whether it was asked for nothing more.
    """

    source: str
    part: str
    version: str
    counts: dict[str, int]
    coverage: float
    hours: float
    bytes: int
    table: list[dict[str, Any]]
    lost_rows: int
    duplicates: int
    seconds: float
    fetched_bytes: int
    bytes_per_s: float
    notes: list[str] = field(default_factory=list)
    refusals: list[dict[str, Any]] = field(default_factory=list)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Rows of the table about videos that are asked for and not there."""
        return [row for row in self.table if row["status"] not in (OK, NOT_ASKED)]

    @property
    def throughput(self) -> list[dict[str, Any]]:
        """What this run moved, and how fast; nothing where it fetched nothing."""
        if not self.fetched_bytes:
            return []
        return [
            {"what": "videos fetched", "value": f"{self.counts['fetched']:,}"},
            {"what": "fetched", "value": f"{self.fetched_bytes / 1e6:,.1f} MB"},
            {"what": "in", "value": f"{self.seconds:,.1f} s"},
            {"what": "rate", "value": f"{self.bytes_per_s / 1e6:,.2f} MB/s"},
        ]


def summarize(
    catalogue: Catalogue,
    *,
    fetched: int,
    adopted: int,
    fetched_bytes: int,
    seconds: float,
    notes: list[str],
    refusals: list[dict[str, Any]],
) -> AcquireReport:
    """The report of a run over `catalogue`, in one walk over its rows."""
    groups: dict[tuple[str, str], list[int]] = {}
    hours, size, lost, unmeasured = 0.0, 0, 0, 0
    hashes: list[tuple[str, str | None]] = []
    for row in catalogue.rows():
        entry = groups.setdefault((row.status, row.reason or ""), [0, 0])
        entry[0] += 1
        entry[1] += row.questions
        if row.status == OK:
            hours += (row.duration or 0.0) / 3600
            size += row.size or 0
            unmeasured += bool(row.unmeasured)
            hashes.append((row.video, row.sha256))
        elif row.status != NOT_ASKED:
            lost += row.questions
    if unmeasured:
        notes = [
            *notes,
            f"{unmeasured:,} videos may have been cut: neither the server nor the file nor the "
            "annotations say how long they are (column unmeasured of the catalogue)",
        ]
    left = sum(videos for (status, _), (videos, _) in groups.items() if status == NOT_ASKED)
    expected = len(catalogue) - left
    counts: Counter[str] = Counter(expected=expected, fetched=fetched, adopted=adopted)
    counts[OK] = 0
    for (status, _), (videos, _) in groups.items():
        counts[status] += videos
    return AcquireReport(
        source=catalogue.source,
        part=catalogue.part,
        version=data_version(hashes),
        counts=dict(counts),
        coverage=counts[OK] / expected if expected else 1.0,
        hours=hours,
        bytes=size,
        table=[
            {
                "status": status,
                "reason": reason,
                "videos": videos,
                "question-answer pairs": questions,
            }
            for (status, reason), (videos, questions) in sorted(groups.items())
        ],
        lost_rows=lost,
        duplicates=len(hashes) - len({sha256 for _, sha256 in hashes}),
        seconds=seconds,
        fetched_bytes=fetched_bytes,
        bytes_per_s=fetched_bytes / seconds if seconds else 0.0,
        notes=notes,
        refusals=refusals,
    )


def report_name(source: str, part: str) -> str:
    """Where the report of the newest acquisition lies below the root."""
    return layout.catalogue(source, f"{part}.report.json")


def read_report(storage: Storage, source: str, part: str) -> AcquireReport:
    """The report of the newest acquisition of a source and part."""
    return AcquireReport(**storage.read_json(report_name(source, part)))


def video_entries(storage: Storage, source: str, part: str) -> list[FileEntry]:
    """The videos that are there, as a receipt lists them: each was hashed when it was published."""
    table = read_catalogue(storage, source, part)
    there = table.filter(pc.equal(table["status"], OK))
    columns = (there[name].to_pylist() for name in ("path", "size", "sha256"))
    return [
        FileEntry(path, size, f"sha256:{sha}") for path, size, sha in zip(*columns, strict=True)
    ]


def durations_picture(storage: Storage, source: str, part: str) -> bytes | None:
    """How long the videos of a source and part are that are there, as a PNG; None where there is
    none.
    """
    table = read_catalogue(storage, source, part)
    seconds = table.filter(pc.equal(table["status"], OK))["duration"].drop_null().to_pylist()
    return (
        duration_histogram(seconds, f"{len(seconds):,} videos of {source}, {part}")
        if seconds
        else None
    )


def coverage_threshold(settings: Settings, source: str) -> float:
    """The least share of a source's videos: its own if it has one, else that of all downloads."""
    own = settings.sources[source].coverage_threshold
    return settings.download.coverage_threshold if own is None else own


def is_enough(report: AcquireReport, threshold: float) -> bool:
    """Whether the share that a threshold asks for is there, or all but one video: a single one that
    is missing says nothing of a source, however few videos it has. Who asks for all gets all.
    """
    missing = report.counts["expected"] - report.counts[OK]
    return report.coverage >= threshold or (missing <= 1 and threshold < 1)


def too_few(report: AcquireReport, threshold: float) -> str:
    """Why a coverage below `threshold` is an error, and what can be done."""
    reasons = ", ".join(
        f"{row['videos']:,} {row['status']}{' (' + row['reason'] + ')' if row['reason'] else ''}"
        for row in report.missing
    )
    return (
        f"{report.source}, {report.part}: {report.counts[OK]:,} of {report.counts['expected']:,} "
        f"videos are there ({report.coverage:.0%}), coverage_threshold asks for {threshold:.0%}. "
        f"Missing: {reasons}. {report.lost_rows:,} question-answer pairs are lost with them. "
        f"{' '.join(report.notes)} Run this asset again to retry, or lower coverage_threshold (of "
        "the source, or of download) in the settings"
    )
