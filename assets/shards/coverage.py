"""How much of what was asked for is in shards, and in the mixture of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow.compute as pc

from assets.annotations.catalogue import read_catalogue, snapshot_name
from assets.annotations.record import AnnotationRecord
from assets.deployment.settings import Settings
from assets.records.coverage import NOT_KNOWN, USED, Cell, Coverage, joined
from assets.records.lineage import covered
from assets.records.withdrawals import Withdrawals
from assets.shards.llava_rows import EXPECTED_DROPS
from assets.shards.part import ShardReport
from assets.sources.base import NOT_ASKED
from training.formats.kinds import KINDS
from training.formats.storage import Storage


def long_video_coverage(storage: Storage, conversations: str, report: ShardReport) -> Coverage:
    """What a part of long videos has, of what its conversations have."""
    coverage = covered(storage, [conversations])
    for source, reasons in report.lost.items():
        for reason, rows in reasons.items():
            coverage.lose(source, reason, Cell(rows))
    return coverage


def collection_coverage(kind: str, report: ShardReport) -> Coverage:
    """What a part of one of the LLaVA collections has. Rows that are left out by design were never
    asked for.
    """
    coverage, source = Coverage(), KINDS[kind].collection
    lost = {
        reason: rows
        for reasons in report.lost.values()
        for reason, rows in reasons.items()
        if reason not in EXPECTED_DROPS
    }
    samples = report.counts["samples"]
    coverage.add(source, USED, Cell(samples, report.counts["videos"], 3600 * report.hours))
    for reason, rows in lost.items():
        coverage.add(source, reason, Cell(rows))
    coverage.add_kind(kind, samples + sum(lost.values()), samples)
    if report.missing:
        coverage.notes.append(
            f"{kind}: {len(report.missing):,} annotation files are missing; nobody knows how many "
            "rows they have"
        )
    return coverage


def mixture_coverage(
    storage: Storage, settings: Settings, shards: Iterable[str], given_up: Sequence[str]
) -> Coverage:
    """What the mixture has: what its shards have, of what the annotations ask for.

    Args:
        shards: the products that it is made of.
        given_up: parts of long videos that were given up.
    """
    parts = [covered(storage, shards), *(_given_up(storage, settings, part) for part in given_up)]
    return joined([*parts, _never_read(storage)])


def _never_read(storage: Storage) -> Coverage:
    """Rows that are in no part: set aside when they were read, or about withdrawn videos."""
    coverage, record = Coverage(), AnnotationRecord.read(storage)
    if record is not None:
        for reason, rows in record.rejected.items():
            coverage.add(NOT_KNOWN, reason, Cell(rows))
        coverage.add(NOT_KNOWN, "withdrawn", Cell(record.counts["withdrawn"]))
    return coverage


def _given_up(storage: Storage, settings: Settings, part: str) -> Coverage:
    """The rows of a part that was given up, by its catalogue."""
    reason = f"{part} given up: {Withdrawals.read(storage).parts[part].reason}"
    coverage = Coverage()
    for source in sorted(settings.sources):
        if storage.exists(snapshot_name(source, part)):
            table = read_catalogue(storage, source, part)
            rows = table.filter(pc.not_equal(table["status"], NOT_ASKED))
            for raw in rows.select(["questions", "expected_duration", "duration"]).to_pylist():
                seconds = raw["duration"] or raw["expected_duration"]
                cell = Cell(raw["questions"], 1, seconds or 0.0, int(seconds is None))
                coverage.add(source, reason, cell)
    return coverage
