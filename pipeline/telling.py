"""What Dagster's own pages do not say: what is out of date and why, what waits and for what, and
what failed. Told as a check on each asset's page, in the sensors' logs, and as notices.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

import dagster as dg

from assets.automation.conditions import state_of
from assets.automation.runs import fault_of, tries_of
from assets.automation.state import State
from assets.automation.telling import Waiting, describe_tries, failed_checks, waiting, waiting_for
from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.records.lineage import product, split_product
from assets.records.publishing import UP_TO_DATE
from assets.records.rendering import description, table
from pipeline.notices import notify
from training.formats.hashing import data_version

TELL_INTERVAL_S = 120
LOGGED = 20  # sentences of one tick in the sensor's log
ROWS = 50  # of the table on an asset's page
STAGES = ("stage1", "stage2", "stage3")


@dg.sensor(
    name="tell_what_waits",
    minimum_interval_seconds=TELL_INTERVAL_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Compares what was made with what it would be made from today, and says on each "
    "asset's page, as the check up_to_date, what is out of date, why, and what it waits for. "
    "No run is spent.",
)
def tell_what_waits(context: dg.SensorEvaluationContext, deployment: Deployment) -> dg.SensorResult:
    settings, storage = deployment.settings(), deployment.storage()
    assert context.repository_def is not None
    graph = context.repository_def.asset_graph
    state = state_of(context.instance, graph, storage)
    found = {
        item.product: item
        for item in waiting(
            state, lambda name: tries_of(context.instance, name, settings.automation)
        )
    }
    before = _Said(**json.loads(context.cursor)) if context.cursor else _Said()
    said = _Said(
        {name: data_version(str(item)) for name, item in found.items()},
        {name: data_version(says) for name, says in failed_checks(state).items()},
        _page_digests(state, list(found.values())),
        {name: before.since.get(name, time.time()) for name in found},
    )
    news = _new(before.products, said.products)
    for name in news[:LOGGED]:
        context.log.info(f"{name}: {found[name]}")
    if len(news) > LOGGED:
        context.log.info(f"and {len(news) - LOGGED:,} more; each is on its asset's page")
    for name in sorted(before.products.keys() - said.products.keys()):
        context.log.info(f"{name}: up to date, or gone")
    warn = context.log.warning
    _tell_holds(settings, state, _new(before.checks, said.checks), warn)
    _tell_used_up(settings, [found[name] for name in news], warn)
    events = [
        *(_page(state, a, found.values(), said.since) for a in _new(before.pages, said.pages)),
        *(_page(state, a, (), {}) for a in sorted(before.pages.keys() - said.pages.keys())),
    ]
    return dg.SensorResult(asset_events=events, cursor=json.dumps(asdict(said), sort_keys=True))


@dataclass(frozen=True, slots=True)
class _Said:
    """What was said at the last look, as digests of it; only of what is not as it should be.

    Attributes:
        products: by product.
        checks: by product, what its failed checks found.
        pages: by asset, what its check `up_to_date` says.
        since: by product, when that was seen first, in seconds since 1970.
    """

    products: dict[str, str] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)


def _new(before: Mapping[str, str], said: Mapping[str, str]) -> list[str]:
    return [name for name, digest in said.items() if before.get(name) != digest]


def _page_digests(state: State, items: Sequence[Waiting]) -> dict[str, str]:
    """Asset -> digest of what its page is to say. It changes, too, when something of the asset was
    made: the step then said that this is up to date, and the rest has to be said again.
    """
    digests = {}
    for asset in {split_product(item.product)[0] for item in items}:
        own = [str(item) for item in items if split_product(item.product)[0] == asset]
        made = [
            (record.version, record.run_id)
            for name in state.products(asset)
            if (record := state.records.get(name))
        ]
        digests[asset] = data_version([own, made])
    return digests


def _page(
    state: State, asset: str, items: Iterable[Waiting], since: Mapping[str, float]
) -> dg.AssetCheckEvaluation:
    """What the check `up_to_date` of an asset says of all its partitions."""
    own = [item for item in items if split_product(item.product)[0] == asset]
    there = list(state.products(asset))
    says = "everything is made from today's inputs"
    if own:
        of = "" if there == [asset] else f"{len(own):,} of {len(there):,}: {own[0].product} is "
        says = f"{of}{own[0]}"
    rows = [
        {
            "product": item.product,
            "since": f"{datetime.fromtimestamp(since[item.product], UTC):%Y-%m-%d %H:%M} UTC",
            "out of date": "; ".join(item.reasons) or "not made yet",
            "waits for": "; ".join(item.holds),
            "failed runs": describe_tries(item.tries) if item.tries.fault else "",
        }
        for item in own[:ROWS]
    ]
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(asset),
        check_name=UP_TO_DATE,
        passed=not own,
        severity=dg.AssetCheckSeverity.WARN,
        description=description(says),
        metadata={"products": table(rows)} if rows else {},
        blocking=False,
    )


def _tell_holds(
    settings: Settings, state: State, names: list[str], warn: Callable[[str], None]
) -> None:
    if names:
        found = failed_checks(state)
        lines = [
            f"{name}: {found[name]}\n  waiting for it: {', '.join(waiting_for(state, name))}"
            for name in names
        ]
        title = f"Hour-LLaVA: {_some(names)} did not pass"
        notify(settings.notices, "held", title, "\n".join(lines), warn)


def _tell_used_up(settings: Settings, items: list[Waiting], warn: Callable[[str], None]) -> None:
    spent = [
        item
        for item in items
        if item.tries.fault and item.tries.next_at is None and not item.tries.fault.for_a_person
    ]
    if spent:
        title = f"Hour-LLaVA: {_some([item.product for item in spent])} will not be tried again"
        body = "\n".join(f"{item.product}: {describe_tries(item.tries)}" for item in spent)
        notify(settings.notices, "retries_used_up", title, body, warn)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


@dg.run_failure_sensor(
    name="tell_failures",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Tells whoever the settings name (notices) of each run that failed, and why.",
)
def tell_failures(context: dg.RunFailureSensorContext, deployment: Deployment) -> None:
    run, instance = context.dagster_run, context.instance
    fault = fault_of(instance, run.run_id)
    names = _products(instance, run.run_id)
    lines = [f"{', '.join(names) or run.job_name}, run {run.run_id[:8]}:", fault.says]
    settings = deployment.settings()
    if names:
        tries = tries_of(instance, names[0], settings.automation)
        if tries.run == run.run_id:
            lines.append(describe_tries(tries))
    title = f"Hour-LLaVA: {_some(names or [run.job_name])} failed"
    notify(settings.notices, "run_failed", title, "\n".join(lines), context.log.warning)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    name="tell_finished_stages",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Tells whoever the settings name (notices) that a stage is trained.",
)
def tell_finished_stages(context: dg.RunStatusSensorContext, deployment: Deployment) -> None:
    run = context.dagster_run
    if "dagster/partition" not in run.tags:
        return
    entries = context.instance.all_logs(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
    )
    for entry in entries:
        event = entry.get_dagster_event()
        made = event.step_materialization_data.materialization
        if made.asset_key.to_user_string() not in STAGES:
            continue
        name = product(made.asset_key.to_user_string(), made.partition)
        shown = {key: made.metadata[key].value for key in _SHOWN if key in made.metadata}
        body = "\n".join([f"run {run.run_id[:8]}", *(f"{k}: {v}" for k, v in shown.items())])
        settings = deployment.settings().notices
        title = f"Hour-LLaVA: {name} is trained"
        notify(settings, "stage_finished", title, body, context.log.warning)


_SHOWN = ("first loss", "last loss", "hours", "dagster/uri")


def _products(instance: dg.DagsterInstance, run: str) -> list[str]:
    """What a run was to make."""
    entries = instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    planned = [entry.get_dagster_event().asset_materialization_planned_data for entry in entries]
    return [product(data.asset_key.to_user_string(), data.partition) for data in planned]


TELLING = [tell_what_waits, tell_failures, tell_finished_stages]
