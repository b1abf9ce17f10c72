"""Where things came from: content hashes, data versions, and a lineage record for every product.

A *product* is what one materialization makes: `stage3[tiny]`, `videomarathon_video[part3]`,
`annotations`. Its record lies under `lineage/` in the storage root, where `hourllava lineage`
walks it, and a copy lies beside the product itself where that is a folder (shards, checkpoints), so
that a copied folder still knows its origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from training.formats import layout
from training.formats.storage import Storage

LINEAGE_NAME = "lineage.json"


def product(asset: str, partition: str | None = None) -> str:
    """`asset` or `asset[partition]`."""
    return f"{asset}[{partition}]" if partition else asset


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

    def write(self, storage: Storage) -> None:
        """Record the product, beside itself first: a record in the register means that the product
        is complete.
        """
        if self.folder:
            storage.write_json(f"{self.folder}/{LINEAGE_NAME}", asdict(self))
        storage.write_json(record_name(self.product), asdict(self))

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


def record_name(name: str) -> str:
    """File of a product's record, relative to the storage root."""
    asset, _, partition = name.partition("[")
    return f"{layout.LINEAGE}/{asset}/{partition.rstrip(']').replace('|', '+') or 'all'}.json"


def all_records(storage: Storage) -> list[Lineage]:
    """Every record of the register, by product name."""
    return [Lineage(**storage.read_json(name)) for name in storage.list(layout.LINEAGE, ".json")]


def input_versions(storage: Storage, names: Iterable[str]) -> dict[str, str]:
    """`{product: version}` of inputs that must be there.

    Raises:
        FileNotFoundError: one or more of them were not made; all are named.
        ValueError: one of them did not pass its checks.
    """
    names = list(names)
    missing = [name for name in names if not storage.exists(record_name(name))]
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
    return {record.product: record.version for record in records}
