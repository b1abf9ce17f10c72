"""Which annotation files make up which kind of shard, and how much of each: a table that a user can
replace.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from training.formats import layout
from training.formats.kinds import KINDS
from training.formats.sample import is_relative_name

BUILT_IN = Path(__file__).with_name("mixtures.csv")
COLUMNS = ("kind", "collection", "annotation", "fraction")


@dataclass(frozen=True, slots=True)
class MixtureEntry:
    """One annotation file's share in one kind.

    Attributes:
        kind: one of the six kinds.
        collection: folder below the storage root.
        annotation: file name in that collection's `annotations` folder.
        fraction: share of its rows that is used, always the first ones.
    """

    kind: str
    collection: str
    annotation: str
    fraction: Decimal

    @property
    def name(self) -> str:
        """Where the file lies, relative to the storage root."""
        return layout.collection_annotations(self.collection, self.annotation)

    def rows(self, total: int) -> int:
        """How many of `total` rows are used."""
        return int(total * self.fraction)


def read_mixture(path: Path | None = None, skip: Sequence[str] = ()) -> list[MixtureEntry]:
    """The table of `path` (a CSV of `COLUMNS`), or the built-in one.

    Args:
        skip: annotation files to leave out.

    Raises:
        ValueError: `skip` names a file that the table has not; a column is missing; a row names an
            unknown kind or collection, a path that leaves its folder, a fraction outside (0, 1], or
            a file twice; the message names file and line.
    """
    path = path or BUILT_IN
    entries: list[MixtureEntry] = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path}: columns {', '.join(missing)} are missing; expected {', '.join(COLUMNS)}"
            )
        for number, row in enumerate(reader, start=2):
            try:
                entries.append(_entry(row))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.kind, entry.name) in seen:
            raise ValueError(
                f"{path}: {entry.annotation!r} stands twice under {entry.kind}; give one line with "
                "one share"
            )
        seen.add((entry.kind, entry.name))
    if unknown := set(skip) - {entry.annotation for entry in entries}:
        raise ValueError(
            f"collections.skip names {', '.join(sorted(unknown))}, which {path} does not"
        )
    return [entry for entry in entries if entry.annotation not in skip]


def _entry(row: dict[str, str]) -> MixtureEntry:
    kind, collection, annotation, fraction = (str(row[name] or "").strip() for name in COLUMNS)
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} (known: {', '.join(KINDS)})")
    if collection not in layout.COLLECTIONS:
        raise ValueError(
            f"unknown collection {collection!r} (known: {', '.join(layout.COLLECTIONS)})"
        )
    if not annotation or not is_relative_name(annotation):
        raise ValueError(f"annotation {annotation!r} is not a file name below the collection")
    try:
        share = Decimal(fraction)
    except InvalidOperation:
        raise ValueError(f"fraction {fraction!r} is not a number") from None
    if not 0 < share <= 1:
        raise ValueError(f"fraction {fraction} is not in (0, 1]")
    return MixtureEntry(kind, collection, annotation, share)
