"""Tell a Dagster instance that knows nothing what lies below the storage root: `hourllava recover`.

The register of lineage records is the truth about what was made; Dagster's database is its view of
it. When that was lost, or is a new one (Postgres in place of SQLite), assets and partitions that
are there would all be missing.
"""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from assets.deployment.partitions import part_partitions
from assets.records.lineage import Lineage, all_records, split_product
from assets.records.rendering import table
from assets.records.withdrawals import active_parts
from pipeline.definitions import definitions
from training.formats.storage import Storage


def recover(instance: dg.DagsterInstance, storage: Storage, log: Callable[[str], None]) -> int:
    """Register the parts, and record each product that Dagster does not know.

    Inputs are recorded before what is made from them, so that nothing looks out of date. What
    Dagster knows is left alone, and so is a product that did not pass its checks. Runs, logs and
    pictures are not in the register and stay lost.

    Args:
        log: takes one line for each product that is recorded.

    Returns:
        How many products were recorded.
    """
    instance.add_dynamic_partitions(str(part_partitions.name), active_parts(storage))
    graph = definitions().resolve_asset_graph()
    position = {
        key.to_user_string(): number for number, key in enumerate(graph.toposorted_asset_keys)
    }
    records = {split_product(record.product): record for record in all_records(storage)}
    places = [place for place in records if place[0] in position]
    recovered = 0
    for asset, partition in sorted(places, key=lambda place: position[place[0]]):
        record, key = records[asset, partition], dg.AssetKey(asset)
        if record.failed or _known(instance, key, partition):
            continue
        instance.report_runless_asset_event(_materialization(record, key, partition))
        recovered += 1
        log(f"{record.product}  {record.version[:12]}")
    return recovered


def _known(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> bool:
    if partition is None:
        return instance.get_latest_materialization_event(key) is not None
    return partition in instance.get_materialized_partitions(key)


def _materialization(
    record: Lineage, key: dg.AssetKey, partition: str | None
) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        key,
        partition=partition,
        description="recovered from the lineage register",
        tags={"dagster/data_version": record.version},
        metadata={
            "counts": table(
                [{"what": what, "count": count} for what, count in record.counts.items()]
            ),
            "lineage": dg.MetadataValue.json({"inputs": record.inputs, "config": record.config}),
            "made by run": record.run_id,
        },
    )
