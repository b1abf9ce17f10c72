"""The version of each part's rows: what the assets of one part follow, so that a correction reaches
the parts that it touches and no others.

The asset `part_rows` stands for it in Dagster. The step that builds the catalogue records it; no
run is spent on it.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from assets.records.lineage import Lineage, product, record_name
from training.formats.storage import Storage

PART_ROWS = "part_rows"


def record_rows(
    storage: Storage,
    instance: dg.DagsterInstance,
    versions: Mapping[str, str],
    inputs: Mapping[str, str],
    run_id: str = "",
) -> list[str]:
    """Record the rows' version of each part; returns the parts that Dagster was told of.

    Dagster is told where the version is another one than before, and where it knows none. The parts
    must be registered as partitions.

    Args:
        versions: part -> version of its rows.
        inputs: what the rows were taken from: product -> version.
    """
    known = instance.get_materialized_partitions(dg.AssetKey(PART_ROWS))
    told = []
    for part, version in versions.items():
        name = product(PART_ROWS, part)
        before = Lineage.read(storage, name) if storage.exists(record_name(name)) else None
        if before is None or before.version != version or part not in known:
            # The event comes first: after a kill between the two it is sent again.
            instance.report_runless_asset_event(
                dg.AssetMaterialization(
                    PART_ROWS,
                    partition=part,
                    tags={"dagster/data_version": version},
                    metadata={"version": version, "made by run": run_id},
                )
            )
            told.append(part)
        if before is None or (before.version, before.inputs) != (version, dict(inputs)):
            Lineage(name, version, inputs=dict(inputs), run_id=run_id).write(storage)
    return told


def rows_version(storage: Storage, part: str) -> dict[str, str]:
    """`{part_rows[part]: version}`, as an input of what is made from a part's rows.

    Raises:
        FileNotFoundError: the part is not catalogued.
    """
    name = product(PART_ROWS, part)
    if not storage.exists(record_name(name)):
        raise FileNotFoundError(
            f"{part} is not catalogued under {storage.root}; materialize the catalogue first"
        )
    return {name: Lineage.read(storage, name).version}
