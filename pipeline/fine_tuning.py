"""From one's own videos to a tuned and scored checkpoint: one button for all of it.

The job reads the rows, has everything made that a variant lacks or that is out of date, and waits
for it: what a person sees of the whole is one run. Each piece is made by a run of its own, as
after any other button.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from pydantic import Field

from assets.automation.conditions import state_of
from assets.automation.runs import fault_of
from assets.deployment.addresses import FINE_TUNE_JOB, FINE_TUNE_OP
from assets.deployment.estimate import Estimate
from assets.deployment.graph import COLLECTIONS
from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.records.lineage import is_recorded, product
from assets.records.publishing import errors_for_people, failure_for_a_person
from assets.records.rendering import code_block
from assets.records.withdrawals import active_parts
from model.configuration import parse
from pipeline.backfill import (
    VariantConfig,
    add_backfill,
    check_request,
    due_subsets,
    start_backfill,
)
from pipeline.estimate.installed import installed_gpus
from pipeline.estimate.scope import refuse_others
from training.formats.storage import Storage

WRITTEN = "captions", "questions"
LOOK_S = 2.0
SAY_S = 60.0
DESCRIPTION = """From videos to a fine-tuned and scored checkpoint of one variant.

Has captions and questions written for sources of `questions.sources` that have none yet, within
`questions.budget`. Reads the rows, says what the rest should need (hours, disk, money: `estimate`
in the step's output), then has made whatever is missing or out of date: videos, conversations,
shards, the mixture, the variant's starting point, features, stage 3, and the scores before and
after. The run waits for all of it, and fails with the first cause where something fails; started
again, it goes on from there. Ending the run also ends what it has started. On a larger deployment,
the job `02_everything_for_variant` does the same without waiting."""


class FineTuneConfig(VariantConfig):
    """What the job is asked for."""

    card: str | None = Field(
        default=None,
        description="For the estimate alone: a card by its name (RTX 4090) or memory (24GiB), in "
        "place of estimate.card or the machine's own.",
    )
    price: float | None = Field(
        default=None,
        ge=0,
        description="For the estimate alone: of a card and an hour, in place of estimate.price.",
    )

    def applied(self, settings: Settings) -> Settings:
        """The settings of this run.

        Raises:
            ValueError: no such card; names the known ones.
        """
        given = {"card": self.card, "price": self.price}
        chosen = {name: value for name, value in given.items() if value is not None}
        estimate = parse(Estimate, {**settings.estimate.model_dump(), **chosen})
        return settings.model_copy(update={"estimate": estimate})


def fine_tune_job(asset_graph: Callable[[], AssetGraph]) -> dg.JobDefinition:
    """The job `fine_tune`.

    Args:
        asset_graph: gives the graph of the code location that the job belongs to, when it runs.
    """

    # The pool: those that wait must leave slots to the runs that they wait for.
    @dg.op(
        name=FINE_TUNE_OP,
        pool=FINE_TUNE_JOB,
        description="Makes what a variant lacks, and waits for it.",
    )
    def fine_tune(
        context: dg.OpExecutionContext, config: FineTuneConfig, deployment: Deployment
    ) -> Iterator[dg.Output[None]]:
        with errors_for_people():
            settings = config.applied(deployment.settings())
        instance, graph, storage = context.instance, asset_graph(), deployment.storage()
        title = f"fine-tuning of {config.variant}"
        for begun in _unfinished(instance, title):  # by a run that died
            _wait(context, begun)
        if asked := sources_to_ask_about(storage, deployment.settings()):
            unwritten = {dg.AssetKey(name): asked for name in WRITTEN}
            _wait(context, start_backfill(instance, graph, unwritten, "captions and questions"))
        sources = ["annotations", "catalogue"]
        sources += [name for name in COLLECTIONS if not is_recorded(storage, name)]
        wanted = {dg.AssetKey(name): None for name in sources}
        _wait(context, start_backfill(instance, graph, wanted, "rows and the list of videos"))
        parts = active_parts(storage)
        check_request(parts, config.variant)
        # Before anything that takes long: a person decides by it whether to go on.
        estimate = _estimated(settings, config.variant, context.log.info)
        context.log.info(estimate)
        yield dg.Output(None, metadata={"estimate": code_block(estimate)})
        stale = _out_of_date(instance, graph, storage)
        due = due_subsets(instance, graph, config.variant, parts, stale)
        if due:
            context.log.info("to make: %s", {s.key.to_user_string(): s.size for s in due})
            subset = AssetGraphSubset.from_entity_subsets(due)
            tags = {"hourllava/variant": config.variant}
            _wait(context, add_backfill(instance, subset, title, tags))
        scored = product("evaluation", config.variant)
        context.log.info("%s is tuned; its scores are those of %s", config.variant, scored)

    @dg.job(
        name=FINE_TUNE_JOB,
        executor_def=dg.in_process_executor,
        tags={"hourllava/step": "everything"},
        description=DESCRIPTION,
    )
    def job() -> None:
        fine_tune()

    return job


def _estimated(settings: Settings, variant: str, log: Callable[[str], None]) -> str:
    """What the run should need, or why nobody can say."""
    try:
        refuse_others(settings, variant)
        from pipeline.estimate.needs import needs_here  # imports torch

        return str(needs_here(settings, variant, installed_gpus(), log))
    except ValueError as error:
        return f"not estimated: {error}"


def sources_to_ask_about(storage: Storage, settings: Settings) -> list[str]:
    """The sources whose videos were never asked about. What was asked once costs money again only
    where a person starts it.
    """
    named = sorted(set(settings.questions.sources))
    return [source for source in named if not is_recorded(storage, product(WRITTEN[-1], source))]


def _out_of_date(instance: dg.DagsterInstance, graph: AssetGraph, storage: Storage) -> set[str]:
    """The products that were made from other inputs or settings than those of today."""
    state = state_of(instance, graph, storage)
    made = [asset for asset, node in state.graph.items() if node.made]
    return {name for asset in made for name in state.products(asset) if state.stale_reasons(name)}


def _wait(context: dg.OpExecutionContext, backfill: str) -> None:
    """Wait until a backfill has ended.

    Raises:
        Failure: something of it failed; says what, and why.
    """
    instance, said, before = context.instance, time.monotonic(), ""
    try:
        while True:
            found = instance.get_backfill(backfill)
            assert found is not None
            if found.status in BULK_ACTION_TERMINAL_STATUSES:
                break
            now = _progress(instance, backfill)
            if now != before and time.monotonic() - said > SAY_S:
                context.log.info(now)
                said, before = time.monotonic(), now
            time.sleep(LOOK_S)
    except BaseException:
        _cancel(instance, backfill)
        raise
    if found.status not in (BulkActionStatus.COMPLETED_SUCCESS, BulkActionStatus.COMPLETED):
        faults = list(_faults(instance, backfill))
        reason = "; ".join(faults) or str(found.error.message if found.error else found.status)
        raise failure_for_a_person(f"{reason}. Mend it, and start the job again: it goes on")


def _unfinished(instance: dg.DagsterInstance, title: str) -> list[str]:
    """The backfills of this title that are still at work."""
    wanted = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
    found = instance.get_backfills(filters=wanted)
    return [backfill.backfill_id for backfill in found if backfill.title == title]


def _runs(
    instance: dg.DagsterInstance, backfill: str, *statuses: dg.DagsterRunStatus
) -> Iterable[dg.DagsterRun]:
    wanted = dg.RunsFilter(tags={"dagster/backfill": backfill}, statuses=list(statuses))
    return instance.get_runs(wanted)


def _progress(instance: dg.DagsterInstance, backfill: str) -> str:
    """What of a backfill runs now, and how much is done."""
    status = dg.DagsterRunStatus
    running = [
        product(name, run.tags.get("dagster/partition"))
        for run in _runs(instance, backfill, status.STARTED)
        for name in sorted(key.to_user_string() for key in run.asset_selection or ())
    ]
    done = len(list(_runs(instance, backfill, status.SUCCESS)))
    return f"{done} runs done; now: {', '.join(running) or 'the next ones are started'}"


def _faults(instance: dg.DagsterInstance, backfill: str) -> Iterable[str]:
    """Why runs of a backfill failed, a clause for each."""
    for run in _runs(instance, backfill, dg.DagsterRunStatus.FAILURE):
        names = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ()))
        name = product(names, run.tags.get("dagster/partition"))
        yield f"{name}: {fault_of(instance, run.run_id).says.rstrip('. ')}"


def _cancel(instance: dg.DagsterInstance, backfill: str) -> None:
    """Ask the daemon to end a backfill with the runs that it has started."""
    found = instance.get_backfill(backfill)
    if found is not None and found.status not in BULK_ACTION_TERMINAL_STATUSES:
        instance.update_backfill(found.with_status(BulkActionStatus.CANCELING))
