"""One asset of a deployment that a test wrote into a folder, materialized in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.deployment.resources import Deployment


def materialize_asset(
    assets: Iterable[Any],
    instance: dg.DagsterInstance,
    folder: Path,
    asset: str,
    partition: object = None,
    config: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """Materialize one asset with its checks; a failure is a result, and no exception.

    Args:
        assets: of the code location.
        folder: holds the deployment's settings, `deployment.yaml`.
        config: of the asset's step, as the launchpad gives it.
    """
    return dg.materialize(
        assets,
        selection=dg.AssetSelection.assets(asset),
        partition_key=partition,
        instance=instance,
        resources={"deployment": Deployment(config=str(folder / "deployment.yaml"))},
        run_config={"ops": {asset: {"config": config}}} if config else None,
        raise_on_error=False,
    )
