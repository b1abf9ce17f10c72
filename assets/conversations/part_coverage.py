"""How many of a part's rows are in its samples, and why the others are not: the beginning of the
record that travels to the checkpoints.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from assets.annotations.catalogue import read_catalogue
from assets.conversations.part_rows import PartRows
from assets.deployment.settings import Settings
from assets.records.coverage import NOT_KNOWN, USED, Cell, Coverage
from assets.sources.base import OK
from training.formats.storage import Storage

NOT_AVAILABLE = "video not available"


@dataclass(frozen=True, slots=True)
class MissingVideo:
    """Why a video is not there, in a word, and its length in seconds where the rows state it."""

    reason: str
    seconds: float | None


def missing_videos(storage: Storage, settings: Settings, part: str) -> dict[str, MissingVideo]:
    """The videos of a part that are not there, by name."""
    found = {}
    for source in sorted(settings.sources):
        table = read_catalogue(storage, source, part)
        rows = table.filter(pc.not_equal(table["status"], OK))
        names = ("video", "status", "reason", "expected_duration")
        columns = (rows[name].to_pylist() for name in names)
        for video, status, reason, seconds in zip(*columns, strict=True):
            found[video] = MissingVideo(reason or status, seconds)
    return found


class PartCoverage:
    """Counts the rows of a part that are lost, and says what is there.

    Args:
        rows: all rows of the part.
        durations: the videos that are there -> seconds.
        missing: what is known of the others.
    """

    def __init__(
        self,
        rows: PartRows,
        durations: Mapping[str, float],
        missing: Mapping[str, MissingVideo],
    ) -> None:
        self._rows, self._durations, self._missing = rows, durations, missing
        self._lost: dict[str, Counter[str]] = defaultdict(Counter)  # video -> reason -> rows
        self._lost_kinds = Counter[str]()

    def lose(self, rejected: pa.Table) -> None:
        """Count the rows of a table of `cleaning.REJECTED_SCHEMA`."""
        counts = rejected.group_by(["video", "reason"]).aggregate([([], "count_all")])
        for raw in counts.to_pylist():
            self._lost[raw["video"]][self._reason(raw["video"], raw["reason"])] += raw["count_all"]
        kinds = pc.fill_null(rejected["question_type"], "")
        for entry in kinds.value_counts().to_pylist():
            self._lost_kinds[entry["values"]] += entry["counts"]

    def _reason(self, video: str, reason: str) -> str:
        """Of a video that is not there, why it is not."""
        missing = self._missing.get(video)
        return missing.reason if missing and reason == NOT_AVAILABLE else reason

    def result(self) -> Coverage:
        """What is there of the part."""
        coverage = Coverage()
        for video, rows in sorted(self._rows.of_video.items()):
            source = video.partition("/")[0] or NOT_KNOWN
            lost = self._lost[video]
            seconds = self._seconds(video)
            # A video counts once: as used, or for what most of its rows are lost for.
            main = USED if lost.total() < rows else max(sorted(lost), key=lambda name: lost[name])
            for reason, number in sorted({USED: rows - lost.total(), **lost}.items()):
                cell = Cell(number)
                if reason == main:
                    cell = Cell(number, 1, seconds or 0.0, int(seconds is None))
                coverage.add(source, reason, cell)
        for kind, asked in sorted(self._rows.of_kind.items()):
            coverage.add_kind(kind, asked, asked - self._lost_kinds[kind])
        return coverage

    def _seconds(self, video: str) -> float | None:
        if video in self._durations:
            return self._durations[video]
        missing = self._missing.get(video)
        return missing.seconds if missing else None
