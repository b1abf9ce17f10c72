"""Everything for one variant: one button for what no single run can hold.

A Dagster run has one partition, and between the catalogue and stage 3 there are four sets of
partitions. A backfill may span them: it launches a run for each piece once the pieces that it is
made from are there. The job of this file starts one.

Dagster's public Python interface starts no backfills, and the UI's dialogs cannot choose one
variant of some assets and all parts of others. What is imported from below `dagster._core` here is
what the webserver itself calls; tests hold it.
"""

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView, TemporalContext
from dagster._core.asset_graph_view.entity_subset import EntitySubset
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.execution.backfill import PartitionBackfill
from pydantic import Field

from assets.deployment.partitions import key_dimensions, variant_partitions
from assets.deployment.resources import Deployment
from assets.records.lineage import product
from assets.records.withdrawals import active_parts

VARIANTS = variant_partitions.get_partition_keys()
# Sources decide which partitions there are, so they come first, by hand or by the sensors.
# Captions and questions cost money, and somebody has to want them.
# `videomarathon_json` is for people and other tools: nothing is made from it.
NOT_INCLUDED = dg.AssetSelection.groups("sources", "questions") | dg.AssetSelection.assets(
    "videomarathon_json"
)

DESCRIPTION = """Whatever is missing for one variant, from LLaVA shards and videos to stage 3 and
    its scores.

Starts a backfill (Runs > Backfills) that launches one run for each asset and partition as soon as
its inputs are there: videos, conversations and shards of every part, stages 1 and 2, features of
every part, the mixture, stage 3. What is there already is left alone, unless something that it is
made from is missing. Run `01_collect_sources` first: the catalogue decides which parts there are.
Cancel it by cancelling the backfill."""


class VariantConfig(dg.Config):
    """What the job is asked for."""

    variant: str = Field(
        default=VARIANTS[0], description=f"a variant of the settings, one of: {', '.join(VARIANTS)}"
    )


def everything_for_variant(asset_graph: Callable[[], AssetGraph]) -> dg.JobDefinition:
    """The job `02_everything_for_variant`.

    Args:
        asset_graph: gives the graph of the code location that the job belongs to. Called when the
            job runs, because the graph is there only after all jobs are.
    """

    @dg.op(
        description="Starts a backfill of what is missing for the variant, and of what is made "
        "from that."
    )
    def start_backfill(
        context: dg.OpExecutionContext, config: VariantConfig, deployment: Deployment
    ) -> None:
        parts = active_parts(deployment.storage())
        check_request(parts, config.variant)
        due = due_subsets(context.instance, asset_graph(), config.variant, parts)
        if not due:
            context.log.info("everything for %s is there", config.variant)
            return
        backfill = add_backfill(
            context.instance,
            AssetGraphSubset.from_entity_subsets(due),
            f"everything for {config.variant}",
            {"hourllava/variant": config.variant},
        )
        pieces = {subset.key.to_user_string(): subset.size for subset in due}
        context.log.info("backfill %s, under Runs > Backfills: %s", backfill, pieces)
        context.add_output_metadata({"backfill": backfill, "pieces": pieces})

    @dg.job(
        name="02_everything_for_variant",
        executor_def=dg.in_process_executor,
        tags={"hourllava/step": "everything"},
        description=DESCRIPTION,
    )
    def job() -> None:
        start_backfill()

    return job


def check_request(parts: list[str], variant: str) -> None:
    """Stop with advice where there is nothing to start: an unknown variant, or no parts yet."""
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        description = f"there is no variant {variant!r}: the settings have {known} (variants)"
        raise dg.Failure(description, allow_retries=False)
    if not parts:
        description = (
            "there are no parts yet: run the job 01_collect_sources first, its catalogue registers "
            "them"
        )
        raise dg.Failure(description, allow_retries=False)


def start_backfill(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    wanted: Mapping[dg.AssetKey, Sequence[str] | None],
    title: str,
) -> str:
    """Have assets made again, each after those that it is made from; returns the backfill's id.

    Args:
        wanted: asset -> its partitions, None for an asset without any.
    """
    pieces = {
        AssetKeyPartitionKey(key, partition)
        for key, partitions in wanted.items()
        for partition in ([None] if partitions is None else partitions)
    }
    subset = AssetGraphSubset.from_asset_partition_set(pieces, graph)
    return add_backfill(instance, subset, title)


def add_backfill(
    instance: dg.DagsterInstance,
    subset: AssetGraphSubset,
    title: str,
    tags: Mapping[str, str] | None = None,
) -> str:
    """Hand a backfill to the daemon; returns its id."""
    backfill = PartitionBackfill.from_asset_graph_subset(
        backfill_id=uuid.uuid4().hex[:8],
        backfill_timestamp=time.time(),
        tags=dict(tags or {}),
        dynamic_partitions_store=instance,
        asset_graph_subset=subset,
        title=title,
        description="started by a job of this deployment",
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def due_subsets(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    variant: str,
    parts: list[str],
    also: Collection[str] = (),
) -> list[EntitySubset[dg.AssetKey]]:
    """What of a variant was never made, or is made from something that was not.

    Parts of shards, videos and conversations belong to every variant. Only `parts` count, whatever
    somebody has added to Dagster's list.

    Args:
        also: products that count as never made, where they belong to the variant.

    Returns:
        One subset for each asset with something to make, in the order of the graph.
    """
    moment = TemporalContext(effective_dt=datetime.now(UTC), last_event_id=None)
    view = AssetGraphView(temporal_context=moment, instance=instance, asset_graph=graph)
    excluded = NOT_INCLUDED.resolve(graph)
    due: dict[dg.AssetKey, EntitySubset[dg.AssetKey]] = {}
    for key in graph.toposorted_asset_keys:
        if key in excluded or not graph.get(key).is_materializable:
            continue
        wanted = _wanted(view, key, variant, set(parts))
        subset = _never_made(view, wanted, also)
        for parent in graph.get(key).parent_keys & due.keys():
            subset = subset.compute_union(
                due[parent].compute_child_subset(key).compute_intersection(wanted)
            )
        if not subset.is_empty:
            due[key] = subset
    return list(due.values())


def _wanted(
    view: AssetGraphView, key: dg.AssetKey, variant: str, parts: set[str]
) -> EntitySubset[dg.AssetKey]:
    """All partitions of an asset that a variant needs, made or not."""
    full = view.get_full_subset(key=key)
    partitions = view.asset_graph.get(key).partitions_def
    if partitions is None:
        return full
    allowed = {"variant": {variant}, "part": parts}
    keys = {
        text
        for text in full.expensively_compute_partition_keys()
        if all(
            value in allowed.get(dimension, {value})
            for dimension, value in key_dimensions(partitions, text).items()
        )
    }
    return full.compute_intersection_with_partition_keys(keys)


def _never_made(
    view: AssetGraphView, wanted: EntitySubset[dg.AssetKey], also: Collection[str]
) -> EntitySubset[dg.AssetKey]:
    """What of `wanted` has no materialization, or is among the products `also`."""
    asset = wanted.key.to_user_string()
    if wanted.is_partitioned:
        made = view.instance.get_materialized_partitions(wanted.key)
        keys = {
            key
            for key in wanted.expensively_compute_partition_keys()
            if key not in made or product(asset, key) in also
        }
        return wanted.compute_intersection_with_partition_keys(keys)
    if asset in also or not view.instance.get_latest_materialization_event(wanted.key):
        return wanted
    return view.get_empty_subset(key=wanted.key)
