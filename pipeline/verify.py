"""Whether the files of products are still what their receipts say, every byte read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from assets.annotations.catalogue import DamagedTableError, read_snapshot, snapshot_name
from assets.annotations.rows_versions import PART_ROWS
from assets.records.lineage import Lineage
from training.formats.receipts import Advance, Damage
from training.formats.storage import Storage
from training.progress import Progress

WHOLE, CHANGED, NOT_THERE = "whole", "CHANGED", "NOT THERE"
UNRECORDED = "nothing recorded"
# Its rows are in the files of `annotations`.
WITHOUT_FILES = (PART_ROWS,)
NAMED = 10  # damaged files of a product that are named; the rest is counted


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one product.

    Attributes:
        product: its name.
        verdict: WHOLE; CHANGED; NOT_THERE where files are missing and none has changed; UNRECORDED
            where no receipt says what it should be.
        damage: its files that are not what the receipt says.
        files, bytes: of the receipt: what was read.
    """

    product: str
    verdict: str
    damage: tuple[Damage, ...] = ()
    files: int = 0
    bytes: int = 0

    @staticmethod
    def verdict_of(damage: Sequence[Damage]) -> str:
        """The verdict about a product with a receipt."""
        if not damage:
            return WHOLE
        return NOT_THERE if all(found.fault == "is missing" for found in damage) else CHANGED

    @property
    def wrong(self) -> bool:
        """Whether something of it is damaged."""
        return bool(self.damage)

    def __str__(self) -> str:
        text = f"{self.product}: {self.verdict}"
        if self.damage:
            more = f"; and {len(self.damage) - NAMED:,} more" if len(self.damage) > NAMED else ""
            return f"{text}: {'; '.join(map(str, self.damage[:NAMED]))}{more}"
        return text if self.verdict == UNRECORDED else f"{text}, {_amount(self.files, self.bytes)}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found of several products.

    Attributes:
        findings: one for each product.
    """

    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        """The products that are damaged."""
        return [finding for finding in self.findings if finding.wrong]

    @property
    def verdict(self) -> str:
        """One line about all of them."""
        read = _amount(sum(f.files for f in self.findings), sum(f.bytes for f in self.findings))
        unknown = [f.product for f in self.findings if f.verdict == UNRECORDED]
        tail = f"; nothing is recorded of {', '.join(unknown)}" if unknown else ""
        if not self.wrong:
            whole = _counted(len(self.findings) - len(unknown), "product")
            return f"whole: {whole}, {read}{tail}"
        names = ", ".join(finding.product for finding in self.wrong)
        return (
            f"{len(self.wrong):,} of {len(self.findings):,} products are damaged ({read}): "
            f"{names}. Materialize them again, in this order: what is damaged is set aside{tail}"
        )

    def lines(self, everything: bool = False) -> Iterator[str]:
        """What is wrong, or every product, and the verdict last."""
        yield from (str(finding) for finding in self.findings if everything or finding.wrong)
        yield self.verdict


def verify(
    storage: Storage, records: Iterable[Lineage], log: Callable[[str], None] | None = None
) -> Verification:
    """Read every byte of some products, and compare it with what their receipts say.

    Findings come origins first: in that order damaged products are made again.

    Args:
        records: of the products.
        log: takes lines about the progress.

    Raises:
        OSError: a file is there and cannot be read.
    """
    chosen = [r for r in _origins_first(records) if r.asset not in WITHOUT_FILES]
    total = sum(record.bytes for record in chosen)
    progress = Progress(log, total, "bytes read") if log and total else None
    return Verification(
        tuple(
            verify_product(storage, record, progress.advance if progress else None)
            for record in chosen
        )
    )


def verify_product(storage: Storage, record: Lineage, advance: Advance | None = None) -> Finding:
    """Read every byte of one product."""
    damage = [*record.damage(storage, full=True, advance=advance), *_table_damage(storage, record)]
    verdict = Finding.verdict_of(damage) if damage or record.receipt else UNRECORDED
    return Finding(record.product, verdict, tuple(damage), record.files, record.bytes)


def _origins_first(records: Iterable[Lineage]) -> list[Lineage]:
    """Records in an order in which every product stands behind what it was made from."""
    named = {record.product: record for record in records}
    order = TopologicalSorter(
        {name: sorted(named.keys() & record.inputs) for name, record in sorted(named.items())}
    )
    return [named[name] for name in order.static_order()]


def _table_damage(storage: Storage, record: Lineage) -> list[Damage]:
    """The table of a source's videos of one part holds the hash of its own rows."""
    if record.asset != "videos":
        return []
    part, _, source = (record.partition or "").partition("|")
    name = snapshot_name(source, part)
    if not storage.exists(name):
        return [Damage(name, "is missing")]
    try:
        read_snapshot(storage, name)
    except DamagedTableError:
        return [Damage(name, "has other content")]
    return []


def _amount(files: int, size: int) -> str:
    named = _counted(files, "file")
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{named} of {size / scale:,.1f} {unit}"
    return f"{named} of {size:,} bytes"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
