"""The partition sets of the graph.

- **part**: long videos, split by a stable hash. Dynamic: every landing of new data adds one. Fewer
  than 100, because above that Dagster no longer records a combined data version for an
  unpartitioned asset downstream.
- **LLaVA part**: the other two collections, always ten, because the stages' mixtures name them;
  features of short videos have those of them that stage 3 reads.
- **variant**: a model that the deployment's settings name. Each stage has those that train it.
- **source**: where a long video comes from, as the deployment's settings list them.
- **asked source**: the drop sources whose videos are described and asked about
  (`questions.sources`); none where the settings name none.
- **arm**: an arm of the ablations and one of its seeds; none where there is no `ablation`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import dagster as dg

from assets.deployment.ablation import run_keys
from assets.deployment.graph import (
    ABLATION,
    LONG_VIDEOS_ONLY,
    SETTINGS,
    SHORT_VIDEO_PARTS,
    TRAINED_STAGES,
    VARIANTS,
)
from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.variants import Variant, trained

part_partitions = dg.DynamicPartitionsDefinition(name="part")
llava_part_partitions = dg.StaticPartitionsDefinition(
    [part_name(index) for index in range(LLAVA_PARTS)]
)
variant_partitions = dg.StaticPartitionsDefinition(list(VARIANTS))
# Stage -> the variants that train it.
stage_partitions = {
    stage: dg.StaticPartitionsDefinition(trained(VARIANTS, stage)) for stage in TRAINED_STAGES
}
source_partitions = dg.StaticPartitionsDefinition(sorted(SETTINGS.sources))
asked_source_partitions = dg.StaticPartitionsDefinition(sorted(set(SETTINGS.questions.sources)))
arm_partitions = dg.StaticPartitionsDefinition(
    [
        key
        for variant in VARIANTS.values()
        if ABLATION is not None
        for key in run_keys(ABLATION.chosen(variant.preset, LONG_VIDEOS_ONLY), ABLATION.seeds)
    ]
)

source_and_part = dg.MultiPartitionsDefinition(
    {"source": source_partitions, "part": part_partitions}
)
variant_and_part = dg.MultiPartitionsDefinition(
    {"variant": variant_partitions, "part": part_partitions}
)
variant_and_llava_part = dg.MultiPartitionsDefinition(
    {
        "variant": variant_partitions,
        "LLaVA part": dg.StaticPartitionsDefinition(list(SHORT_VIDEO_PARTS)),
    }
)

_DIMENSIONS = (
    ("part", part_partitions),
    ("LLaVA part", llava_part_partitions),
    *(("variant", of_stage) for of_stage in stage_partitions.values()),
    ("variant", variant_partitions),
    ("asked source", asked_source_partitions),
    ("arm", arm_partitions),
)

# Of a dimension with several sets, the last one holds all keys. No asset has partitions by source
# alone.
STATIC_KEYS = {
    name: known.get_partition_keys()
    for name, known in (*_DIMENSIONS, ("source", source_partitions))
    if isinstance(known, dg.StaticPartitionsDefinition)
}

# Mappings between partition sets of one and of two dimensions. There are no others, and Dagster
# still calls these beta.
warnings.filterwarnings("ignore", category=dg.BetaWarning, message="Class `Multi")

# Mappings are always written out. Without one, Dagster would join two partition sets by the names
# of their keys, and say nothing where these differ.
same_partition = dg.IdentityPartitionMapping()
all_partitions = dg.AllPartitionMapping()
same_part = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="part")
same_variant = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="variant")
same_part_any_source = dg.MultiPartitionMapping(
    {
        "part": dg.DimensionPartitionMapping(
            dimension_name="part", partition_mapping=dg.IdentityPartitionMapping()
        )
    }
)


def variants_where(applies: Callable[[Variant], bool]) -> dg.PartitionMapping | None:
    """The same variant, for those variants alone that something applies to; None where it applies
    to none.
    """
    names = {name: name for name, variant in VARIANTS.items() if applies(variant)}
    if len(names) == len(VARIANTS):
        return same_partition  # one run may then make both, which Dagster finds out by this
    return dg.StaticPartitionMapping(names) if names else None


def dimensions(context: dg.AssetExecutionContext) -> dict[str, str]:
    """Keys of a run's multi-dimensional partition, by dimension."""
    partitions = context.assets_def.partitions_def
    if not isinstance(partitions, dg.MultiPartitionsDefinition):
        raise TypeError(
            f"{context.asset_key.to_user_string()} has partitions of one dimension only"
        )
    return key_dimensions(partitions, context.partition_key)


def key_dimensions(partitions: dg.PartitionsDefinition | None, key: str) -> dict[str, str]:
    """What a partition key says, by dimension: `part`, `LLaVA part`, `variant`, `source`.

    Nothing where there are no partitions.
    """
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return dict(partitions.get_partition_key_from_str(key).keys_by_dimension)
    return dict.fromkeys(dimension_names(partitions), key)


def dimension_names(partitions: dg.PartitionsDefinition | None) -> tuple[str, ...]:
    """The dimensions of partitions, in the order in which their keys name them."""
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return tuple(sorted(partitions.partition_dimension_names))
    # The very object first: a source and a variant may have the same name, and sets of equal keys
    # are equal.
    same = [name for name, known in _DIMENSIONS if known is partitions]
    names = same or [name for name, known in _DIMENSIONS if known == partitions]
    return tuple(dict.fromkeys(names))
