"""One asset of a deployment that a test wrote into a folder, materialized in this process.

As a script, with `HOURLLAVA_CONFIG` set to its settings, it materializes products that are named:
the graph reads its partitions from the settings while it is imported.

    python -m tests.materializing catalogue "features=part0|tiny" stage3=tiny
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from assets.deployment.resources import Deployment
from assets.deployment.settings import CONFIG_VARIABLE
from pipeline.demo.instance import REPOSITORY


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


def materialize_products(config: Path, *products: str) -> str:
    """Materialize products in a process of their own; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.materializing", *products],
        cwd=REPOSITORY,
        env={**os.environ, CONFIG_VARIABLE: str(config)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def main(products: list[str]) -> int:
    """Materialize products `asset` or `asset=partition`; returns how many failed."""
    from pipeline.definitions import definitions

    folder = Path(os.environ[CONFIG_VARIABLE]).parent
    failed = 0
    with dg.instance_for_test() as instance:
        for name in products:
            asset, _, partition = name.partition("=")
            result = materialize_asset(
                definitions().assets, instance, folder, asset, partition or None
            )
            failed += not result.success
            for event in result.all_events:
                if event.is_step_failure:
                    print(event.event_specific_data.error_display_string, file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
