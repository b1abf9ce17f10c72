"""Walking the lineage register: up to where a product came from, down to what was made from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from assets.records.coverage import Coverage
from assets.records.lineage import LINEAGE_NAME, Lineage, all_records, require_root
from assets.records.sentences import listed
from training.formats.storage import Storage

NAMED = 12  # products that a message names; the rest is counted


class NotFoundError(ValueError):
    """Nothing of that name is known."""


class Register:
    """All lineage records below a storage root, and who was made from whom."""

    def __init__(self, storage: Storage) -> None:
        require_root(storage)
        self.storage = storage
        self.records = {record.product: record for record in all_records(storage)}
        self.children: dict[str, list[str]] = {name: [] for name in self.records}
        for name, record in self.records.items():
            for parent in record.inputs:
                self.children.setdefault(parent, []).append(name)

    def find(self, text: str) -> str:
        """The product that `text` means: its name, the beginning of one name alone, or a path of
        its folder or of anything inside of it.

        Raises:
            NotFoundError: there is none; some that there are are named.
            ValueError: several names begin so.
        """
        if text in self.records:
            return text
        for path in (Path(text), Path(self.storage.root) / text):
            for folder in (path, *path.parents):
                if (folder / LINEAGE_NAME).is_file():
                    record = Lineage(**Storage(str(folder)).read_json(LINEAGE_NAME))
                    if record.product in self.records:
                        return record.product
        begun = sorted(name for name in self.records if text and name.startswith(text))
        if len(begun) == 1:
            return begun[0]
        if begun:
            raise ValueError(f"{text!r} may be {listed(begun, NAMED)}: give the whole name")
        known = listed(sorted(self.records), NAMED) or "none; nothing was materialized yet"
        raise NotFoundError(
            f"{text!r} is neither a product, nor a path inside of one, nor a catalogued video "
            f"under {self.storage.root} (products: {known})"
        )

    def up(self, name: str) -> Iterator[str]:
        """Lines that tell what a product was made from, back to its origins, nearest first."""
        yield from self._tree(name, upward=True)

    def down(self, name: str) -> Iterator[str]:
        """Lines that tell what was made from a product, nearest first."""
        yield from self._tree(name, upward=False)

    def ancestors(self, name: str) -> set[str]:
        """Every product and origin that `name` was made from."""
        found: set[str] = set()
        queue = [name]
        while queue:
            for parent in self._next(queue.pop(), upward=True):
                if parent not in found:
                    found.add(parent)
                    queue.append(parent)
        return found

    def _tree(
        self, name: str, upward: bool, depth: int = 0, seen: set[str] | None = None
    ) -> Iterator[str]:
        seen = set() if seen is None else seen
        again = name in seen
        yield (
            "  " * depth
            + self.line(name)
            + (" (see above)" if again and self._next(name, upward) else "")
        )
        if again:
            return
        seen.add(name)
        record = self.records.get(name)
        for other in self._next(name, upward):
            yield from self._tree(other, upward, depth + 1, seen)
            if (
                upward
                and record
                and (now := self.records.get(other))
                and now.version != record.inputs[other]
            ):
                yield (
                    "  " * (depth + 1)
                    + f"! {other} has changed since: {name} read {record.inputs[other]}"
                )

    def _next(self, name: str, upward: bool) -> list[str]:
        if not upward:
            return sorted(self.children.get(name, []))
        return sorted(self.records[name].inputs) if name in self.records else []

    def line(self, name: str) -> str:
        """One product: its version and its first counts."""
        record = self.records.get(name)
        if record is None:  # an origin outside: a hub revision, a file
            users = [self.records[child].inputs[name] for child in self.children.get(name, [])]
            return f"{name} @ {', '.join(sorted(set(users)))}"
        counts = ", ".join(f"{count:,} {what}" for what, count in list(record.counts.items())[:4])
        if share := Coverage.read(record.coverage).sentence:
            counts += f"; {share}"
        failed = f"  ! did not pass: {', '.join(record.failed)}" if record.failed else ""
        return f"{name}  {record.version[:12]}  {counts}{failed}"
