"""What became of the runs that were to make a product, as Dagster's event log tells it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.deployment.automation import Automation
from assets.records.lineage import split_product
from assets.records.publishing import FOR_A_PERSON

# On every run that an automation sensor asks for.
BY_AUTOMATION = {"hourllava/asked-by": "automation"}
FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_LOOKED_AT = 20  # newest runs of a product
_TOLERANCE_S = 1.0  # a run is on record in whole fractions of a second


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """One run that was to make a product.

    Attributes:
        run: its id.
        status: Dagster's.
        began: when it was asked for, in seconds since 1970.
        ended: when it ended, or None.
        automatic: whether an automation sensor asked for it.
    """

    run: str
    status: dg.DagsterRunStatus
    began: float
    ended: float | None
    automatic: bool

    @property
    def failed(self) -> bool:
        return self.status is dg.DagsterRunStatus.FAILURE


def runs_of(instance: dg.DagsterInstance, name: str) -> list[RunOutcome]:
    """The newest runs that were to make a product, the newest first."""
    asset, partition = split_product(name)
    wanted = dg.EventRecordsFilter(
        dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
        dg.AssetKey(asset),
        [partition] if partition else None,
    )
    with warnings.catch_warnings():
        # Runs over many partitions at a time are left out. Here every run has one.
        warnings.filterwarnings("ignore", message="Asset materialization planned events")
        planned = instance.get_event_records(wanted, limit=_LOOKED_AT)
    ids = [record.run_id for record in planned]
    if not ids:
        return []
    found = instance.get_run_records(dg.RunsFilter(run_ids=ids))
    records = {record.dagster_run.run_id: record for record in found}
    return [_outcome(records[run]) for run in dict.fromkeys(ids) if run in records]


def _outcome(record: dg.RunRecord) -> RunOutcome:
    run = record.dagster_run
    return RunOutcome(
        run=run.run_id,
        status=run.status,
        began=record.create_timestamp.timestamp(),
        ended=record.end_time,
        automatic=BY_AUTOMATION.items() <= run.tags.items(),
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a run failed.

    Attributes:
        says: the first sentence for people.
        for_a_person: trying again cannot help: somebody has to act first.
    """

    says: str
    for_a_person: bool


def fault_of(instance: dg.DagsterInstance, run: str) -> Fault:
    """Why a run failed. Where no step says so, the machine ended it."""
    steps = instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
    faults = [_fault(entry.get_dagster_event().step_failure_data) for entry in steps]
    own = [fault for fault in faults if fault is not None]
    if not own:
        return Fault("the run ended without a word from a step: killed, or never started", False)
    return next((fault for fault in own if fault.for_a_person), own[0])


def _fault(data: Any) -> Fault | None:
    """The fault of one step; None for steps that failed only because an earlier one did."""
    stated = data.user_failure_data
    if stated is not None:
        says = stated.description or stated.label
        return Fault(says, FOR_A_PERSON in (stated.metadata or {}))
    error = data.error
    if error is None:
        return None
    cause = error.cause or error
    return Fault((cause.message or "").strip() or "an error without a message", False)


@dataclass(frozen=True, slots=True)
class Tries:
    """What became of the automatic runs that were to make a product.

    Attributes:
        failed: how many failed since it was first asked for with its present inputs.
        fault: of the newest run, where that is one of these.
        next_at: when it is tried again, in seconds since 1970; None where it is not.
        run: the newest run.
    """

    failed: int = 0
    fault: Fault | None = None
    next_at: float | None = None
    run: str = ""


def tries_of(
    instance: dg.DagsterInstance, name: str, settings: Automation, since: float | None = None
) -> Tries:
    """How automation has tried to make a product.

    Args:
        since: when it was first asked for with its present inputs. Without it, all runs that
            failed in a row count.
    """
    runs = runs_of(instance, name)
    if not runs or not (runs[0].failed and runs[0].automatic):
        return Tries()
    if since is not None and runs[0].began < since - _TOLERANCE_S:
        return Tries()
    failed = 0
    for run in runs:
        if not (run.failed and run.automatic) or (since and run.began < since - _TOLERANCE_S):
            break
        failed += 1
    fault = fault_of(instance, runs[0].run)
    next_at = None
    if not fault.for_a_person and failed <= settings.retries:
        wait = settings.retry_after_s * 2 ** (failed - 1)
        next_at = (runs[0].ended or runs[0].began) + wait
    return Tries(failed, fault, next_at, runs[0].run)
