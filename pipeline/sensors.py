"""What runs by itself at any time: the sensor that watches outside data, and the two automation
sensors.

The nightly schedule is in `pipeline/schedules.py`.
"""

import dagster as dg

from assets.annotations.watched import WATCHED, watched_version
from assets.deployment.automation import DATA, TRAINING
from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings

WATCH_INTERVAL_S = 300
_AUTOMATION = load_settings().automation


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED


@dg.sensor(
    name="watch_outside_data",
    minimum_interval_seconds=WATCH_INTERVAL_S,
    default_status=_status(_AUTOMATION.data),
    description="Looks at the landing folder and at the hub revisions that the settings follow, "
    "and records a new version where one changed. No run is spent on watching.",
)
def watch_outside_data(
    context: dg.SensorEvaluationContext, deployment: Deployment
) -> dg.SensorResult:
    settings = deployment.settings()
    # The cursor holds the versions of the last look, one `name=version` a line.
    before = dict(line.split("=", 1) for line in (context.cursor or "").splitlines())
    events: list[dg.AssetMaterialization] = []
    now: dict[str, str] = {}
    for name in WATCHED:
        try:
            version = watched_version(name, settings)
        except OSError as error:
            # The hub cannot be reached: keep what was seen last, look again next time.
            context.log.warning(f"{name}: {error}")
            version = before.get(name)
        if version is None:
            continue
        now[name] = version
        if before.get(name) != version:
            tags = {"dagster/data_version": version}
            events.append(dg.AssetMaterialization(name, tags=tags, metadata={"version": version}))
    cursor = "\n".join(f"{name}={now[name]}" for name in sorted(now))
    return dg.SensorResult(asset_events=events, cursor=cursor)


def _by_tag(tags: dict[str, str]) -> dg.AssetSelection:
    ((key, value),) = tags.items()
    return dg.AssetSelection.tag(key, value)


data_automation = dg.AutomationConditionSensorDefinition(
    "data_automation",
    target=_by_tag(DATA),
    default_status=_status(_AUTOMATION.data),
    minimum_interval_seconds=60,
    description="New data makes its own way to the mixture: only the new part is fetched, grouped, "
    "encoded, sharded.",
)
training_automation = dg.AutomationConditionSensorDefinition(
    "training_automation",
    target=_by_tag(TRAINING),
    default_status=_status(_AUTOMATION.training),
    minimum_interval_seconds=300,
    description="Stage 3 and its scores, nightly and only if contents changed. Off until a person "
    "switches it on.",
)

SENSORS = [watch_outside_data, data_automation, training_automation]
