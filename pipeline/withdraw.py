"""Withdrawing a video, as a job and for the command line: remove it (`assets/tracing/withdraw.py`),
and have the products made again that hold rows about it.
"""

from collections.abc import Callable

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from pydantic import Field

from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.records.lineage import split_product
from assets.records.provenance import NotFoundError
from assets.records.publishing import errors_for_people
from assets.records.withdrawals import POOL, Withdrawal
from assets.tracing.names import find_video, plain_name
from assets.tracing.withdraw import finish_removal, plan_removal, remove_video
from pipeline.backfill import start_backfill
from training.formats.storage import Storage


def plan_lines(storage: Storage, settings: Settings, text: str, reason: str) -> list[str]:
    """What withdrawing a video would do, as lines for a person. Nothing is changed.

    Args:
        text: what a person calls the video; see `find_video`.
    """
    plan = plan_removal(storage, settings, _video(storage, settings, text), reason)
    return ["nothing is changed yet:", *list(plan.lines())[1:]]


def withdraw(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    storage: Storage,
    settings: Settings,
    text: str,
    reason: str,
) -> list[str]:
    """Withdraw one video; called again after a kill, it goes on.

    Args:
        text: what a person calls the video; see `find_video`.

    Returns:
        What was removed, what is made again, and what is left to a person.

    Raises:
        ValueError: there is no such video, or no reason.
        OperatorError: a download of its part is going on.
    """
    video = _video(storage, settings, text)
    Withdrawal.now(reason)  # a withdrawal that goes on has its first reason; it still needs one
    plan = plan_removal(storage, settings, video, reason)
    remove_video(storage, settings, plan)
    lines = list(plan.lines())
    if plan.rebuilt:
        backfill = start_backfill(
            instance, graph, _pieces(plan.rebuilt), f"without the withdrawn video {video}"
        )
        lines.append(f"  backfill {backfill}, under Runs > Backfills, makes them again")
    finish_removal(storage, plan)
    return lines


def _video(storage: Storage, settings: Settings, text: str) -> str:
    """The video that is meant; one that nothing asks for yet needs its source and its id.

    Raises:
        NotFoundError: it is not catalogued, and not given with a source of the settings.
    """
    try:
        return find_video(storage, settings, text)
    except NotFoundError:
        name = plain_name(storage, text)
        source, _, identifier = name.partition("/")
        if source in settings.sources and identifier:
            return name
        raise


def _pieces(products: list[str]) -> dict[dg.AssetKey, list[str] | None]:
    """Asset -> partitions of some products."""
    pieces: dict[dg.AssetKey, list[str] | None] = {}
    for name in products:
        asset, partition = split_product(name)
        key = dg.AssetKey(asset)
        if partition:
            pieces[key] = [*(pieces.get(key) or []), partition]
        else:
            pieces[key] = None
    return pieces


class WithdrawConfig(dg.Config):
    """What is withdrawn, and why."""

    video: str = Field(description="the video: source/id, its id alone, or the path of its file")
    reason: str = Field(description="why, in a sentence: it stays in the record of the withdrawal")
    dry_run: bool = Field(
        default=True,
        description="Only show what would be removed and made again. Set it to false to do it: "
        "files are really deleted.",
    )


def withdraw_job(graph: Callable[[], AssetGraph]) -> dg.JobDefinition:
    """The job `withdraw_video`.

    Args:
        graph: gives the graph of the code location that the job belongs to, when it runs.
    """

    @dg.op(
        name="withdraw",
        pool=POOL,
        description="Removes one long video from every product.",
    )
    def withdraw_op(
        context: dg.OpExecutionContext, config: WithdrawConfig, deployment: Deployment
    ) -> None:
        settings, storage = deployment.settings(), deployment.storage()
        with errors_for_people():
            if config.dry_run:
                lines = plan_lines(storage, settings, config.video, config.reason)
            else:
                lines = withdraw(
                    context.instance, graph(), storage, settings, config.video, config.reason
                )
        for line in lines:
            context.log.info(line)
        context.add_output_metadata({"withdrawal": dg.MetadataValue.text("\n".join(lines))})

    @dg.job(
        name="withdraw_video",
        executor_def=dg.in_process_executor,
        tags={"hourllava/step": "data"},
        description="Remove one long video from everything that holds it, as a takedown request "
        "asks: its files are deleted, what holds rows about it is made again, and it is never "
        "fetched again. Checkpoints that were trained on it are named. In the launchpad, give "
        "`video` and `reason`; first it only shows what it would do (`dry_run`).",
    )
    def job() -> None:
        withdraw_op()

    return job
