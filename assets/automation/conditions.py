"""Automation conditions about what is on record, for Dagster's declarative automation.

They are evaluated in the code location's own process (`use_user_code_server`), because Dagster's
daemon knows only its own conditions. All of one evaluation look at one `State`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg
from dagster import AutomationContext, AutomationResult

from assets.automation.register import read_register
from assets.automation.runs import tries_of
from assets.automation.settings import deciding_settings
from assets.automation.state import NOT_REACHABLE, PART, Node, State
from assets.deployment.partitions import STATIC_KEYS, dimension_names
from assets.deployment.settings import load_settings
from assets.records.lineage import product, split_product
from assets.records.withdrawals import active_parts
from training.formats.hashing import data_version
from training.formats.storage import Storage

# Of each evaluation: Dagster's view of it -> what is on record.
_states: WeakKeyDictionary[Any, State] = WeakKeyDictionary()


def state_of(instance: dg.DagsterInstance, graph: Any, storage: Storage) -> State:
    """What is on record at this moment.

    Args:
        graph: Dagster's asset graph of the code location.
    """
    nodes = {}
    for key in graph.get_all_asset_keys():
        asset = graph.get(key)
        nodes[key.to_user_string()] = Node(
            parents=tuple(sorted(parent.to_user_string() for parent in asset.parent_keys)),
            dimensions=dimension_names(asset.partitions_def),
            made=asset.is_materializable,
            fills=_fills(asset.automation_condition),
            keys=_own_keys(asset.partitions_def),
            reads=_reads(asset),
        )
    watched = [name for name, node in nodes.items() if not node.made and not node.dimensions]
    outside = {name: version for name in watched if (version := _last_seen(instance, name))}
    keys = {**STATIC_KEYS, PART: active_parts(storage)}
    return State(nodes, read_register(storage), keys, outside, deciding_settings(load_settings()))


def _own_keys(partitions: dg.PartitionsDefinition | None) -> dict[str, tuple[str, ...]]:
    """What `Node.keys` says: the dimensions whose keys do not follow the data."""
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        sets = {one.name: one.partitions_def for one in partitions.partitions_defs}
    else:
        sets = {name: partitions for name in dimension_names(partitions) if partitions}
    return {
        name: tuple(known.get_partition_keys())
        for name, known in sets.items()
        if isinstance(known, dg.StaticPartitionsDefinition)
    }


def _reads(asset: Any) -> dict[str, dict[str, tuple[str, ...]]]:
    """What `Node.reads` says, of the mappings of an asset that are written out."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for parent, mapping in asset.partition_mappings.items():
        if isinstance(mapping, dg.StaticPartitionMapping):
            read: dict[str, tuple[str, ...]] = {}
            for above, below in mapping.downstream_partition_keys_by_upstream_partition_key.items():
                for key in [below] if isinstance(below, str) else below:
                    read[key] = (*read.get(key, ()), above)
            found[parent.to_user_string()] = read
    return found


def _fills(condition: dg.AutomationCondition | None) -> bool:
    if condition is None:
        return False
    if isinstance(condition, Due):
        return condition.fills
    return any(_fills(child) for child in condition.children)


def _last_seen(instance: dg.DagsterInstance, asset: str) -> str | None:
    """The version that was recorded last of something that is watched, where it was reached."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    found = event.asset_materialization if event else None
    version = (found.tags or {}).get("dagster/data_version") if found else None
    return None if version == NOT_REACHABLE else version


def _state(context: AutomationContext) -> State:
    view = context.asset_graph_view
    if view not in _states:
        storage = Storage(load_settings().root)
        _states[view] = state_of(view.instance, view.asset_graph, storage)
    return _states[view]


def _candidates(context: AutomationContext) -> list[str]:
    """The products that are still in question, of those that there are to be."""
    asset, subset = context.key.to_user_string(), context.candidate_subset
    if subset.is_empty:
        return []
    if not subset.is_partitioned:
        return [product(asset)]
    there = set(_state(context).products(asset))
    keys = subset.expensively_compute_partition_keys()
    return sorted(name for key in keys if (name := product(asset, key)) in there)


def _result(
    context: AutomationContext,
    names: Collection[str],
    cursor: str | None = None,
    child_results: Sequence[AutomationResult] = (),
) -> AutomationResult:
    """True for some of the candidates."""
    subset = context.candidate_subset
    if subset.is_partitioned:
        keys = {str(split_product(name)[1]) for name in names}
        subset = subset.compute_intersection_with_partition_keys(keys)
    elif not names:
        subset = context.get_empty_subset()
    return AutomationResult(context, subset, cursor=cursor, child_results=child_results)


def _is_time_to_try_again(context: AutomationContext, name: str, since: float) -> bool:
    settings = load_settings().automation
    tries = tries_of(context.asset_graph_view.instance, name, settings, since)
    return tries.next_at is not None and tries.next_at <= context.evaluation_time.timestamp()


@dataclass(frozen=True)
class Due(dg.AutomationCondition[dg.AssetKey]):
    """Out of date by the register; where `fills`, also what was never made."""

    fills: bool

    @property
    def name(self) -> str:
        return "due, also where it was never made" if self.fills else "due"

    @property
    def description(self) -> str:
        never = ", or it was never made" if self.fills else ""
        return f"its inputs are not those that it was made from{never}"

    def evaluate(self, context: AutomationContext) -> AutomationResult:
        state = _state(context)
        return _result(context, [name for name in _candidates(context) if state.is_due(name)])

    __hash__ = dg.AutomationCondition.__hash__


@dataclass(frozen=True)
class InputsReady(dg.AutomationCondition[dg.AssetKey]):
    """Every input is on record, and passed its checks."""

    @property
    def name(self) -> str:
        return "inputs ready"

    @property
    def description(self) -> str:
        return "every input is there and passed its checks"

    def evaluate(self, context: AutomationContext) -> AutomationResult:
        state = _state(context)
        return _result(context, [name for name in _candidates(context) if not state.holds(name)])

    __hash__ = dg.AutomationCondition.__hash__


@dataclass(frozen=True)
class NotTriedInVain(dg.AutomationCondition[dg.AssetKey]):
    """Not asked for with these inputs before; or its run failed, and it is time to try again.

    Has to be the last of the conditions that are joined by `&`: what it lets pass counts as asked
    for.

    Attributes:
        first: when a first request may be made; at any time by default. A failed run is tried again
            without it.
    """

    first: dg.AutomationCondition | None = None

    @property
    def name(self) -> str:
        return "not tried in vain"

    @property
    def description(self) -> str:
        return "it was not asked for with these inputs, or its run failed and is tried again now"

    @property
    def children(self) -> list[dg.AutomationCondition]:
        return [] if self.first is None else [self.first]

    async def evaluate(self, context: AutomationContext) -> AutomationResult:  # type: ignore[override]
        state, now = _state(context), context.evaluation_time.timestamp()
        # Product -> the digest of the inputs that it was last asked for with, and when.
        asked: dict[str, tuple[str, float]] = json.loads(context.cursor or "{}")
        may_ask, results = True, []
        if self.first is not None:
            results.append(
                await context.for_child_condition(
                    self.first, child_indices=[0], candidate_subset=context.candidate_subset
                ).evaluate_async()
            )
            may_ask = not results[0].true_subset.is_empty
        chosen = []
        settings = data_version(load_settings().model_dump(mode="json"))
        for name in _candidates(context):
            # Other inputs, or other settings: what failed for a person may be mended by them.
            digest = f"{state.inputs_digest(name)} {settings}"
            before, since = asked.get(name, ("", 0.0))
            if before != digest:
                if may_ask:
                    asked[name] = (digest, now)
                    chosen.append(name)
            elif _is_time_to_try_again(context, name, since):
                chosen.append(name)
        there = state.products(context.key.to_user_string())
        kept = {name: asked[name] for name in there if name in asked and state.is_due(name)}
        return _result(context, chosen, json.dumps(kept, sort_keys=True), results)

    __hash__ = dg.AutomationCondition.__hash__
