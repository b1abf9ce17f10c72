"""Sources of which a part asks for no video: they count as fetched, and no run is spent on them."""

from __future__ import annotations

import dagster as dg

from assets.annotations.catalogue import read_catalogue, snapshot_name
from assets.annotations.rows_versions import rows_version
from assets.deployment.settings import Settings
from assets.records.code_version import code_version
from assets.records.lineage import Lineage, product, record_name
from assets.records.withdrawals import active_parts
from training.formats.hashing import data_version
from training.formats.storage import Storage

VIDEOS = "videos"
# The version of a source and part without videos: a hash over none, as `assets/videos/report.py`
# makes it.
NO_VIDEOS = data_version([])


def record_nothing_to_fetch(
    storage: Storage, settings: Settings, instance: dg.DagsterInstance
) -> list[str]:
    """Record each source and part whose table has no rows as made; returns those that Dagster was
    told of.

    The parts must be registered as partitions, and their rows' versions recorded.
    """
    known = instance.get_materialized_partitions(dg.AssetKey(VIDEOS))
    told = []
    for part in active_parts(storage):
        for source in sorted(settings.sources):
            if not _is_empty(storage, source, part):
                continue
            key = dg.MultiPartitionKey({"part": part, "source": source})
            if key not in known:
                # The event comes first: after a kill between the two it is sent again.
                instance.report_runless_asset_event(_materialization(key))
                told.append(str(key))
            _record(storage, product(VIDEOS, str(key)), rows_version(storage, part))
    return told


def _is_empty(storage: Storage, source: str, part: str) -> bool:
    name = snapshot_name(source, part)
    return storage.exists(name) and not read_catalogue(storage, source, part).num_rows


def _materialization(key: dg.MultiPartitionKey) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        VIDEOS,
        partition=key,
        description="the annotations ask for no video of this source and part",
        tags={"dagster/data_version": NO_VIDEOS},
    )


def _record(storage: Storage, name: str, inputs: dict[str, str]) -> None:
    """Bring the record up to date; the same record is not written again."""
    if storage.exists(record_name(name)):
        before = Lineage.read(storage, name)
        if (before.version, before.inputs) == (NO_VIDEOS, inputs):
            return
    counts, code = {"expected": 0}, code_version()
    record = Lineage(name, NO_VIDEOS, inputs=inputs, counts=counts, code_version=code)
    record.with_files(storage, []).write(storage)
