"""Giving up a part, and taking it back: in the record, in Dagster's partitions, and in what was
made from it.

The record (`assets/records/withdrawals.py`) comes first and decides; all that follows may be
repeated, so a kill in between costs a second click.
"""

from collections.abc import Callable

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from pydantic import Field

from assets.deployment.partitions import part_partitions
from assets.deployment.resources import Deployment
from assets.records.lineage import Lineage, product, record_name
from assets.records.publishing import errors_for_people
from assets.records.withdrawals import (
    POOL,
    active_parts,
    catalogued_parts,
    give_up_part,
    take_back_part,
)
from pipeline.backfill import start_backfill
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.storage import Storage

# What is made from all parts together -> the parts' product that it reads.
OVER_ALL_PARTS = {
    layout.MIXTURE: LONG_VIDEO_KIND,
    "videomarathon_json": "conversations",
    "held_out_questions": "part_rows",
}


def give_up(
    instance: dg.DagsterInstance, graph: AssetGraph, storage: Storage, part: str, reason: str
) -> list[str]:
    """Go on without a part: record it, remove its Dagster partition, and have the mixture made
    without it.

    A partition that somebody typed by hand is no part of the catalogue; it is only removed.

    Returns:
        What was done, as sentences for a person.

    Raises:
        ValueError: there is no such part, it is the only one left, or there is no reason.
    """
    partitions = str(part_partitions.name)
    if part not in catalogued_parts(storage) and instance.has_dynamic_partition(partitions, part):
        instance.delete_dynamic_partition(partitions, part)
        return [
            f"{part} is not in the catalogue: its partition was removed, there was nothing else"
        ]
    reason = give_up_part(storage, part, reason).parts[part].reason
    instance.delete_dynamic_partition(partitions, part)
    done = [f"{part} is given up ({reason}); its files stay where they are"]
    return [*done, *_renew(instance, graph, storage, part)]


def take_back(
    instance: dg.DagsterInstance, graph: AssetGraph, storage: Storage, part: str
) -> list[str]:
    """Work on a part again that was given up; what was made of it before still counts.

    Raises:
        ValueError: it was not given up.
    """
    take_back_part(storage, part)
    instance.add_dynamic_partitions(str(part_partitions.name), [part])
    return [f"{part} is back", *_renew(instance, graph, storage, part)]


def _renew(
    instance: dg.DagsterInstance, graph: AssetGraph, storage: Storage, part: str
) -> list[str]:
    """Have made again what holds the part and should not, or the other way round."""
    active, said, due = active_parts(storage), [], []
    for asset, of_part in OVER_ALL_PARTS.items():
        known = dg.AssetKey(asset) in graph.get_all_asset_keys()
        if not known or not storage.exists(record_name(asset)):
            continue
        holds = product(of_part, part) in Lineage.read(storage, asset).inputs
        if holds == (part in active):
            continue
        needed = [product(of_part, name) for name in active]
        missing = [name for name in needed if not storage.exists(record_name(name))]
        if missing:
            said.append(f"{asset} is renewed once {', '.join(missing)} is made")
        else:
            due.append(dg.AssetKey(asset))
    if due:
        names = ", ".join(key.to_user_string() for key in due)
        backfill = start_backfill(instance, graph, dict.fromkeys(due), f"{names} after {part}")
        said.append(f"made again: {names} (backfill {backfill}, under Runs > Backfills)")
    return said


class GiveUpConfig(dg.Config):
    """What is given up, and why."""

    part: str = Field(description="the part, for example part3")
    reason: str = Field(
        description="why, in a sentence: it is all that others will find when they ask where the "
        "part is"
    )


class TakeBackConfig(dg.Config):
    """What is taken back."""

    part: str = Field(description="the part, for example part3")


def part_jobs(graph: Callable[[], AssetGraph]) -> list[dg.JobDefinition]:
    """The jobs `give_up_part` and `take_back_part`.

    Args:
        graph: gives the graph of the code location that the jobs belong to, when they run.
    """

    @dg.op(
        name="give_up",
        pool=POOL,
        description="Goes on without one part of the long videos.",
    )
    def give_up_op(
        context: dg.OpExecutionContext, config: GiveUpConfig, deployment: Deployment
    ) -> None:
        with errors_for_people():
            said = give_up(
                context.instance, graph(), deployment.storage(), config.part, config.reason
            )
        _tell(context, said)

    @dg.op(
        name="take_back",
        pool=POOL,
        description="Works on a part again that was given up.",
    )
    def take_back_op(
        context: dg.OpExecutionContext, config: TakeBackConfig, deployment: Deployment
    ) -> None:
        with errors_for_people():
            said = take_back(context.instance, graph(), deployment.storage(), config.part)
        _tell(context, said)

    @dg.job(
        name="give_up_part",
        executor_def=dg.in_process_executor,
        tags={"hourllava/step": "data"},
        description="Go on without one part of the long videos, for example when its videos cannot "
        "be had: mixture and stage 3 no longer wait for it. In the launchpad, give `part` and "
        "`reason`. Its files stay; take_back_part undoes it.",
    )
    def give_up_job() -> None:
        give_up_op()

    @dg.job(
        name="take_back_part",
        executor_def=dg.in_process_executor,
        tags={"hourllava/step": "data"},
        description="Work on a part again that was given up. What was made of it before still "
        "counts, and the mixture gets it back.",
    )
    def take_back_job() -> None:
        take_back_op()

    return [give_up_job, take_back_job]


def _tell(context: dg.OpExecutionContext, said: list[str]) -> None:
    for sentence in said:
        context.log.info(sentence)
    context.add_output_metadata({"done": dg.MetadataValue.text("; ".join(said))})
