"""What two checkpoints of a stage were made from differently, so that a gain can be explained."""

from __future__ import annotations

from typing import Any

from assets.checkpoints.bill import read_bill
from assets.records.lineage import LINEAGE_NAME, Lineage
from training.formats import layout
from training.formats.storage import Storage


def what_was_different(storage: Storage, before: str, now: str) -> list[dict[str, Any]]:
    """A row for each thing that is not the same: inputs, settings, rows and videos by source.

    Args:
        before, now: versions of the checkpoints' weights.

    Returns:
        Nothing where the record of one of them is gone.
    """
    records = _records(storage)
    if before not in records or now not in records:
        return []
    old, new = records[before], records[now]
    rows = [
        {"what": name, "before": _short(old.inputs.get(name)), "now": _short(new.inputs.get(name))}
        for name in sorted(old.inputs.keys() | new.inputs.keys())
    ]
    rows += [
        {"what": name, "before": str(old.config.get(name)), "now": str(new.config.get(name))}
        for name in sorted(old.config.keys() | new.config.keys())
    ]
    amounts = [_amounts(storage, record) for record in (old, new)]
    rows += [
        {"what": name, "before": str(amounts[0].get(name, 0)), "now": str(amounts[1].get(name, 0))}
        for name in sorted(amounts[0].keys() | amounts[1].keys())
    ]
    rows.append({"what": "code", "before": old.code_version, "now": new.code_version})
    return [row for row in rows if row["before"] != row["now"]]


def _records(storage: Storage) -> dict[str, Lineage]:
    """Version of the weights -> record, of every checkpoint that is there."""
    names = storage.list(layout.CHECKPOINTS, f"/{LINEAGE_NAME}")
    records = [Lineage(**storage.read_json(name)) for name in names]
    return {record.version: record for record in records}


def _amounts(storage: Storage, record: Lineage) -> dict[str, float]:
    """Rows and videos by kind and source, from the bill of materials."""
    bill = read_bill(storage, record) or {"sources": []}
    return {
        f"{unit} of {source['kind']} from {source['source']}": source[unit]
        for source in bill["sources"]
        for unit in ("rows", "videos")
    }


def _short(version: str | None) -> str:
    return version[:12] if version else "none"
