"""Whether the files of a product are still what its lineage record says."""

from __future__ import annotations

from assets.checkpoints.results import verify_weights
from assets.records.lineage import Lineage
from assets.shards.checks import verify_part
from training.formats.storage import Storage


def verify(storage: Storage, record: Lineage) -> str:
    """Hash a product's files again; a sentence that says whether they are what was recorded.

    Each room knows its own files: a part of shards has an index with hashes, a checkpoint has
    weights. A product of another kind has nothing to hash.
    """
    if record.folder:
        folder = storage.local_folder(record.folder)
        if found := verify_part(folder) or verify_weights(folder, record.version):
            return f"{record.product}: {found}"
    return f"{record.product}: holds neither shards nor weights, nothing to hash"
