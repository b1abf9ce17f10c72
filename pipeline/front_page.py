"""The sensor that keeps the front page: one entry whenever the deployment has changed."""

from dataclasses import asdict

import dagster as dg

from assets.automation.conditions import state_of
from assets.deployment.resources import Deployment
from assets.records.rendering import table
from assets.records.withdrawals import Withdrawals
from assets.tracing.assets import FRONT_PAGE
from assets.tracing.overview import Overview, overview
from training.formats.hashing import data_version

INTERVAL_S = 60


@dg.sensor(
    name="tell_front_page",
    minimum_interval_seconds=INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes what is made, missing, broken and out of date into the asset "
    f"{FRONT_PAGE}, when that has changed. It reads the lineage register; no run is spent on it.",
)
def tell_front_page(
    context: dg.SensorEvaluationContext, deployment: Deployment
) -> dg.SensorResult | dg.SkipReason:
    assert context.repository_def is not None
    storage = deployment.storage()
    state = state_of(context.instance, context.repository_def.asset_graph, storage)
    found = overview(state, deployment.settings(), Withdrawals.read(storage))
    version = data_version(asdict(found))
    if version == context.cursor:
        return dg.SkipReason("nothing has changed")
    tags = {"dagster/data_version": version}
    event = dg.AssetMaterialization(FRONT_PAGE, metadata=describe(found), tags=tags)
    return dg.SensorResult(asset_events=[event], cursor=version)


def describe(found: Overview) -> dict[str, dg.MetadataValue]:
    """The entries of the page; what is empty is left out."""
    entries: dict[str, dg.MetadataValue] = {
        "next": dg.MetadataValue.text(found.headline),
        "steps, in the order of use": table(found.steps),
    }
    for name, rows in (
        ("broken", found.broken),
        ("out of date", found.stale),
        ("given up", found.given_up),
    ):
        if rows:
            entries[name] = table(rows)
    if found.withdrawn:
        entries["withdrawn videos"] = dg.MetadataValue.int(found.withdrawn)
    return entries
