"""What runs by itself at any time: the sensor that watches outside data, and the two automation
sensors.

The nightly schedule is in `pipeline/schedules.py`.
"""

import json
import time
import warnings

import dagster as dg

from assets.annotations.watched import WATCHED, watched_version
from assets.automation.rules import DATA, TRAINING
from assets.automation.runs import BY_AUTOMATION
from assets.automation.state import NOT_REACHABLE
from assets.deployment.partitions import part_partitions
from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings
from assets.records.withdrawals import active_parts
from training.formats import layout
from training.formats.storage import Storage

# The only way to conditions of one's own; Dagster still calls it beta.
warnings.filterwarnings("ignore", category=dg.BetaWarning, message=".*use_user_code_server")

WATCH_INTERVAL_S = 300
# Looks that are recorded, though nothing changed, before the UI calls it overdue.
LOOKS_RECORDED = 4
PARTS = str(part_partitions.name)
_AUTOMATION = load_settings().automation


def _status(running: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED


@dg.sensor(
    name="watch_outside_data",
    minimum_interval_seconds=WATCH_INTERVAL_S,
    default_status=_status(_AUTOMATION.data),
    description="Looks at the landing folder and at the hub revisions that the settings follow, "
    "and records a new version where one changed. Keeps Dagster's list of parts as the catalogue "
    "has it. No run is spent on watching.",
)
def watch_outside_data(
    context: dg.SensorEvaluationContext, deployment: Deployment
) -> dg.SensorResult:
    settings, now = deployment.settings(), time.time()
    before, after = _last_look(context.cursor), {}
    events: list[dg.AssetMaterialization] = []
    again_after = settings.automation.look_within_h * 3600 / LOOKS_RECORDED
    for name in WATCHED:
        version, recorded = before.get(name, (NOT_REACHABLE, 0.0))
        try:
            version = watched_version(name, settings)
        except OSError as error:
            # What was seen last stays; that nobody could look shows as overdue in time.
            context.log.warning(f"{name}: {error}")
            due = name not in before
        else:
            seen = before.get(name)
            due = seen is None or seen[0] != version or now - recorded > again_after
        if due:
            tags, recorded = {"dagster/data_version": version}, now
            events.append(dg.AssetMaterialization(name, tags=tags, metadata={"version": version}))
        after[name] = (version, recorded)
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=_part_requests(context, deployment.storage()),
        cursor=json.dumps(after, sort_keys=True),
    )


def _last_look(cursor: str | None) -> dict[str, tuple[str, float]]:
    """Name -> the version that was seen last, and when it was recorded."""
    try:
        return {name: (seen[0], seen[1]) for name, seen in json.loads(cursor or "{}").items()}
    except ValueError:  # of an earlier version of this sensor: it looks as for the first time
        return {}


def _part_requests(
    context: dg.SensorEvaluationContext, storage: Storage
) -> list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest]:
    """What makes Dagster's list of parts that of the catalogue.

    Anybody can type a part into the dialog Materialize, and from then on everything below would
    wait for it. Without a catalogue nothing is said: the root may only be away for a while.
    """
    if not storage.exists(layout.PARTS):
        return []
    wanted, listed = active_parts(storage), context.instance.get_dynamic_partitions(PARTS)
    unknown = [part for part in listed if part not in wanted]
    unlisted = [part for part in wanted if part not in listed]
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if unknown:
        context.log.warning(
            "removed from the list of parts, because the catalogue does not know them or they were "
            f"given up: {', '.join(map(repr, unknown))}"
        )
        requests.append(part_partitions.build_delete_request(unknown))
    if unlisted:
        context.log.info(f"added to the list of parts: {', '.join(unlisted)}")
        requests.append(part_partitions.build_add_request(unlisted))
    return requests


def _by_tag(tags: dict[str, str]) -> dg.AssetSelection:
    ((key, value),) = tags.items()
    return dg.AssetSelection.tag(key, value)


data_automation = dg.AutomationConditionSensorDefinition(
    "data_automation",
    target=_by_tag(DATA),
    run_tags=BY_AUTOMATION,
    emit_backfills=False,  # a run for each partition: what fails is tried again alone
    use_user_code_server=True,  # the conditions are our own
    default_status=_status(_AUTOMATION.data),
    minimum_interval_seconds=60,
    description="New data makes its own way to the mixture: only the new part is fetched, grouped, "
    "encoded, sharded.",
)
training_automation = dg.AutomationConditionSensorDefinition(
    "training_automation",
    target=_by_tag(TRAINING),
    run_tags=BY_AUTOMATION,
    emit_backfills=False,
    use_user_code_server=True,
    default_status=_status(_AUTOMATION.training),
    minimum_interval_seconds=300,
    description="Stage 3 and its scores, nightly and only if contents changed. Off until a person "
    "switches it on.",
)

SENSORS = [watch_outside_data, data_automation, training_automation]
