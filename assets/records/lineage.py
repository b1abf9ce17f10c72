"""Where things came from: content hashes, data versions, and a lineage record for every product.

A *product* is what one materialization makes: `stage3[tiny]`, `videomarathon_video[part3]`,
`annotations`. Its record lies under `lineage/` in the storage root, where `hourllava lineage`
walks it, and a copy lies beside the product itself where that is a folder (shards, checkpoints), so
that a copied folder still knows its origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from assets.records.coverage import Coverage, joined
from assets.records.product_files import (
    LIST_SUFFIX,
    find_product_damage,
    list_hash,
    record_files,
    register_name,
    set_aside_damage,
    split_product,
)
from assets.records.sentences import listed
from training.formats import layout
from training.formats.receipts import Advance, Damage, FileEntry
from training.formats.storage import Storage

LINEAGE_NAME = "lineage.json"
NAMED = 5  # damaged files that a sentence names; the rest is counted


def product(asset: str, partition: str | None = None) -> str:
    """`asset` or `asset[partition]`."""
    return f"{asset}[{partition}]" if partition else asset


def origin_name(storage: Storage, path: Path) -> str:
    """What a record calls an origin that is a local file or folder: its path below the root, so
    that a moved root still says the truth, or its own where it lies outside.
    """
    if storage.is_local and path.is_relative_to(storage.root):
        return path.relative_to(storage.root).as_posix()
    return str(path)


@dataclass(slots=True)
class Lineage:
    """What one product was made from.

    Attributes:
        product: the asset, and the partition where there is one.
        version: content hash of the product.
        folder: where it lies below the storage root; empty when it is not one folder.
        inputs: each input product -> the version of it that was read.
        config: the settings that shaped the product.
        counts: rows in, rows out, drops by reason.
        code_version: version of the code that made it.
        run_id: the Dagster run; empty outside of one.
        failed: checks that it did not pass -> what they found; nothing may be made from such a
            product.
        files: how many files it has; with their `bytes`, and the hash of their list (`receipt`,
            empty where no list was recorded).
        coverage: how much of what was asked for is in it (`coverage.py`); empty where nobody asks.
    """

    product: str
    version: str
    folder: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    code_version: str = ""
    run_id: str = ""
    failed: dict[str, str] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    receipt: str = ""
    coverage: dict[str, Any] = field(default_factory=dict)

    def write(self, storage: Storage) -> None:
        """Record the product, beside itself first: a record in the register means that the product
        is complete.
        """
        if self.folder:
            storage.write_json(f"{self.folder}/{LINEAGE_NAME}", asdict(self))
        storage.write_json(record_name(self.product), asdict(self))

    @property
    def asset(self) -> str:
        """`features` of the product `features[part0|tiny]`."""
        return split_product(self.product)[0]

    @property
    def partition(self) -> str | None:
        """`part0|tiny` of it; None where there is no partition."""
        return split_product(self.product)[1]

    @property
    def faults(self) -> str:
        """What its failed checks found, in a clause; empty where it passed."""
        return "; ".join(f"{check}: {says}" for check, says in self.failed.items())

    def with_files(self, storage: Storage, files: Sequence[FileEntry]) -> Lineage:
        """The record with the list of the product's files, which is written here; the record
        itself is not.
        """
        record_files(storage, self.product, files)
        size = sum(entry.size for entry in files)
        return replace(self, files=len(files), bytes=size, receipt=list_hash(files))

    def damage(
        self,
        storage: Storage,
        *,
        full: bool = False,
        lists: bool = True,
        advance: Advance | None = None,
    ) -> list[Damage]:
        """Files that are not what the receipt says, as `find_product_damage`; none where it lists
        none.
        """
        if not self.receipt:
            return []
        return find_product_damage(
            storage, self.product, self.receipt, full=full, lists=lists, advance=advance
        )

    @staticmethod
    def read(storage: Storage, name: str) -> Lineage:
        """The record of product `name`.

        Raises:
            FileNotFoundError: the product was never made, or not finished.
        """
        if not storage.exists(record_name(name)):
            raise FileNotFoundError(
                f"{name} has not been made under {storage.root}; materialize it first"
            )
        return Lineage(**storage.read_json(record_name(name)))


def covered(storage: Storage, names: Iterable[str]) -> Coverage:
    """What the products `names` have together of what was asked for."""
    records = [Lineage.read(storage, name) for name in names]
    total = joined(Coverage.read(record.coverage) for record in records)
    if silent := [record.product for record in records if not record.coverage]:
        total.notes.append(
            f"{listed(silent, NAMED)}: made before coverage was recorded, so not counted; "
            "materialize them again"
        )
    return total


def record_name(name: str) -> str:
    """File of a product's record, relative to the storage root."""
    return register_name(layout.LINEAGE, name, ".json")


def all_records(storage: Storage) -> list[Lineage]:
    """Every record of the register, by product name."""
    names = [n for n in storage.list(layout.LINEAGE, ".json") if not n.endswith(LIST_SUFFIX)]
    with ThreadPoolExecutor(8) as pool:  # remote roots answer slowly, but many at once
        return [Lineage(**raw) for raw in pool.map(storage.read_json, names)]


def require_root(storage: Storage) -> None:
    """That the root is there, for who needs something in it.

    Raises:
        FileNotFoundError: it is not; one sentence, and not a list of all that is missing in it.
    """
    if storage.is_local and not Path(storage.root).is_dir():
        raise FileNotFoundError(
            f"the root {storage.root} is not there; mount or move it back, or correct `root` in "
            "the settings"
        )


def is_recorded(storage: Storage, name: str) -> bool:
    """Whether a product has a record."""
    return storage.exists(record_name(name))


def mend(storage: Storage, name: str, log: Callable[[str], None]) -> list[Damage]:
    """Move what is damaged of a product out of the way before it is made again; returns it.

    What was never recorded is left alone.
    """
    if not is_recorded(storage, name):
        return []
    record = Lineage.read(storage, name)
    return set_aside_damage(storage, name, record.receipt, log) if record.receipt else []


def input_versions(storage: Storage, names: Iterable[str]) -> dict[str, str]:
    """`{product: version}` of inputs that must be there and whole.

    Whole is what the file system says of their files, and their hashes where that is not what it
    said before (`Stamps`). Files of listed lists are not looked at here.

    Raises:
        FileNotFoundError: one or more of them were not made; all are named.
        ValueError: one of them did not pass its checks, or a file of it is damaged.
    """
    names = list(names)
    require_root(storage)
    missing = [name for name in names if not is_recorded(storage, name)]
    if missing:
        raise FileNotFoundError(
            f"not made yet under {storage.root}: {', '.join(missing)}; materialize what is missing "
            "first"
        )
    records = [Lineage.read(storage, name) for name in names]
    if broken := [
        f"{r.product} ({check}: {says})" for r in records for check, says in r.failed.items()
    ]:
        raise ValueError(
            f"did not pass their checks: {'; '.join(broken)}. Materialize them again first"
        )
    _check_whole(storage, records)
    return {record.product: record.version for record in records}


def check_whole(storage: Storage, *names: str) -> None:
    """That the files of products are whole which are read without being an input by their version.

    Raises:
        ValueError: a file is damaged.
    """
    _check_whole(
        storage, [Lineage.read(storage, name) for name in names if is_recorded(storage, name)]
    )


def _check_whole(storage: Storage, records: Sequence[Lineage]) -> None:
    with ThreadPoolExecutor(4) as pool:  # remote roots answer slowly, but many at once
        damage = list(pool.map(lambda record: record.damage(storage, lists=False), records))
    if damaged := [
        describe_damage(record.product, found)
        for record, found in zip(records, damage, strict=True)
        if found
    ]:
        raise ValueError(
            f"{'; '.join(damaged)}. Materialize what is damaged again first: it is set aside, and "
            "made anew"
        )


def describe_damage(name: str, damage: Sequence[Damage]) -> str:
    """What is damaged of a product, in a clause."""
    return f"{name}: {listed(damage, NAMED)}"
