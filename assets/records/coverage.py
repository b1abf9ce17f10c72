"""Of what was asked for, how much is in a product: rows, videos, hours and kinds of question, by
source and by the reason why the rest is not.

One small record. The step that sees a row lost counts it there, and the record travels in the
lineage of what is made: conversations, shards, mixture, checkpoint. Nobody counts twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

USED = ""  # the reason of what is in the product
NOT_KNOWN = "not known"  # the source of rows that nobody could read
MOST_KINDS = 50  # kinds of question that a record names; strangers invent them
OTHER_KINDS = "other kinds"
LONGEST_KIND = 60  # characters


@dataclass(slots=True)
class Cell:
    """What shares one source and one reason.

    Attributes:
        rows: question-answer pairs; of the LLaVA collections, rows.
        videos: of which no row is in a better cell.
        seconds: of those videos whose length is known.
        unknown: videos whose length nobody states.
    """

    rows: int = 0
    videos: int = 0
    seconds: float = 0.0
    unknown: int = 0

    def add(self, other: Cell) -> None:
        """Count `other` as well."""
        self.rows += other.rows
        self.videos += other.videos
        self.seconds += other.seconds
        self.unknown += other.unknown


@dataclass(slots=True)
class Coverage:
    """How much of what was asked for is there.

    Attributes:
        cells: (source, reason) -> what was lost for it; the reason `USED` for what is there.
        kinds: kind of question -> rows asked for, and rows that are there.
        notes: what could not be counted, as sentences.
    """

    cells: dict[tuple[str, str], Cell] = field(default_factory=lambda: defaultdict(Cell))
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, source: str, reason: str, cell: Cell) -> None:
        """Count rows, and videos, of one source."""
        if cell.rows or cell.videos:
            self.cells[source, reason].add(cell)

    def add_kind(self, kind: str | None, asked: int, used: int) -> None:
        """Count rows of one kind of question."""
        name = _kind_name(kind)
        before = self.kinds.get(name, (0, 0))
        self.kinds[name] = (before[0] + asked, before[1] + used)

    def lose_kind(self, kind: str | None, rows: int) -> None:
        """Take rows of one kind of question out of what is there."""
        name = _kind_name(kind)
        name = name if name in self.kinds else OTHER_KINDS
        if name in self.kinds:
            asked, used = self.kinds[name]
            self.kinds[name] = (asked, max(used - rows, 0))

    def lose(self, source: str, reason: str, cell: Cell) -> None:
        """Take rows, and videos, out of what is there: a later step could not use them."""
        there = self.cells[source, USED]
        lost = Cell(
            min(cell.rows, there.rows),
            min(cell.videos, there.videos),
            min(cell.seconds, there.seconds),
        )
        there.add(Cell(-lost.rows, -lost.videos, -lost.seconds))
        self.add(source, reason, lost)

    def total(self, *, used: bool = False, source: str | None = None) -> Cell:
        """The sum over all that was asked for, or over what is there."""
        found = Cell()
        for (of, reason), cell in self.cells.items():
            if (source is None or of == source) and (not used or reason == USED):
                found.add(cell)
        return found

    @property
    def sentence(self) -> str:
        """`61 % of rows (610 of 1,000), 58 % of hours, 70 of 100 videos`; empty without rows."""
        asked, there = self.total(), self.total(used=True)
        if not asked.rows:
            return ""
        parts = [f"{percent(there.rows, asked.rows)} of rows ({there.rows:,} of {asked.rows:,})"]
        if asked.seconds:
            parts.append(f"{percent(there.seconds, asked.seconds)} of hours")
        if asked.videos:
            parts.append(f"{there.videos:,} of {asked.videos:,} videos")
        return ", ".join(parts)

    def by_source(self) -> list[dict[str, Any]]:
        """A row for each source."""
        return [
            {
                "source": source,
                **_shares(self.total(source=source), self.total(used=True, source=source)),
            }
            for source in sorted({source for source, _ in self.cells})
        ]

    def by_reason(self) -> list[dict[str, Any]]:
        """A row for each source and reason of what is not there, most rows first."""
        lost = [(key, cell) for key, cell in self.cells.items() if key[1] != USED]
        return [
            {
                "source": source,
                "reason": reason,
                "rows": cell.rows,
                "videos": cell.videos,
                "hours": round(cell.seconds / 3600, 3),
                "videos of unknown length": cell.unknown,
            }
            for (source, reason), cell in sorted(lost, key=lambda e: (-e[1].rows, e[0]))
        ]

    def by_kind(self) -> list[dict[str, Any]]:
        """A row for each kind of question, most rows first."""
        ordered = sorted(self.kinds.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return [
            {"kind": kind, "rows": used, "asked for": asked, "share": percent(used, asked)}
            for kind, (asked, used) in ordered
        ]

    def record(self) -> dict[str, Any]:
        """The record that a lineage holds; the same for the same counts."""
        cells = [
            {
                "source": source,
                "reason": reason,
                "rows": cell.rows,
                "videos": cell.videos,
                "seconds": round(cell.seconds, 3),
                "unknown": cell.unknown,
            }
            for (source, reason), cell in sorted(self.cells.items())
            if cell != Cell()
        ]
        ordered = sorted(self.kinds.items(), key=lambda entry: (-entry[1][0], entry[0]))
        kinds = {kind: list(counts) for kind, counts in ordered[:MOST_KINDS]}
        if more := ordered[MOST_KINDS:]:
            sums = [sum(counts[n] for _, counts in more) for n in (0, 1)]
            before = kinds.get(OTHER_KINDS, [0, 0])
            kinds[OTHER_KINDS] = [before[0] + sums[0], before[1] + sums[1]]
        return {"cells": cells, "kinds": kinds, "notes": self.notes}

    @staticmethod
    def read(record: Mapping[str, Any]) -> Coverage:
        """What a lineage holds; nothing where it was made before there were such records."""
        coverage = Coverage(notes=list(record.get("notes", [])))
        for raw in record.get("cells", []):
            counts = {name: raw[name] for name in ("rows", "videos", "seconds", "unknown")}
            coverage.cells[raw["source"], raw["reason"]].add(Cell(**counts))
        for kind, (asked, used) in record.get("kinds", {}).items():
            coverage.kinds[kind] = (asked, used)
        return coverage


def joined(coverages: Iterable[Coverage]) -> Coverage:
    """The sum of coverages of different rows."""
    total = Coverage()
    for one in coverages:
        for key, cell in one.cells.items():
            total.cells[key].add(cell)
        for kind, (asked, used) in one.kinds.items():
            total.add_kind(kind, asked, used)
        total.notes += [note for note in one.notes if note not in total.notes]
    return total


def _kind_name(kind: str | None) -> str:
    return " ".join((kind or "not stated").split())[:LONGEST_KIND]


def percent(part: float, whole: float) -> str:
    """`61 %`, rounded down: 100 % is all of it, and 0 % is nothing."""
    if not whole:
        return ""
    share = int(100 * part / whole + 1e-9)
    return f"{max(share, 1) if part > 0 else 0} %"


def _shares(asked: Cell, there: Cell) -> dict[str, Any]:
    return {
        "rows": there.rows,
        "asked for": asked.rows,
        "share": percent(there.rows, asked.rows),
        "videos": f"{there.videos:,} of {asked.videos:,}" if asked.videos else "",
        "hours": f"{there.seconds / 3600:,.2f} of {asked.seconds / 3600:,.2f}"
        if asked.seconds
        else "",
    }
