"""The lineage register for processes that read it again and again: only records that changed since
the last look are read from the store.
"""

from __future__ import annotations

from assets.records.lineage import Lineage
from assets.records.product_files import LIST_SUFFIX
from training.formats import layout
from training.formats.storage import Storage

# Root -> file -> (what the file system said of it, the record in it).
_seen: dict[str, dict[str, tuple[str, Lineage]]] = {}


def read_register(storage: Storage) -> dict[str, Lineage]:
    """Product -> its record as it is now."""
    storage.forget_listings()
    before, now = _seen.get(storage.root, {}), {}
    for name in storage.list(layout.LINEAGE, ".json"):
        if name.endswith(LIST_SUFFIX):
            continue
        try:
            stamp, known = storage.stamp(name), before.get(name)
            if known is None or known[0] != stamp:
                known = (stamp, Lineage(**storage.read_json(name)))
        except FileNotFoundError:  # it was removed after it was listed
            continue
        now[name] = known
    _seen[storage.root] = now
    return {record.product: record for _, record in now.values()}
