"""The partition sets of the graph.

- **part**: long videos, split by a stable hash. Dynamic: every landing of new data adds one. Fewer
  than 100, because above that Dagster no longer records a combined data version for an
  unpartitioned asset downstream.
- **LLaVA part**: the other two collections, always ten, because the stages' mixtures name them.
- **variant**: a model size, of those that the deployment's settings list.
- **source**: where a long video comes from, as the deployment's settings list them.
"""

from __future__ import annotations

import warnings

import dagster as dg

from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.settings import load_settings

_SETTINGS = load_settings()

part_partitions = dg.DynamicPartitionsDefinition(name="part")
llava_part_partitions = dg.StaticPartitionsDefinition(
    [part_name(index) for index in range(LLAVA_PARTS)]
)
variant_partitions = dg.StaticPartitionsDefinition(list(_SETTINGS.variants))
source_partitions = dg.StaticPartitionsDefinition(sorted(_SETTINGS.sources))

source_and_part = dg.MultiPartitionsDefinition(
    {"source": source_partitions, "part": part_partitions}
)
variant_and_part = dg.MultiPartitionsDefinition(
    {"variant": variant_partitions, "part": part_partitions}
)

_DIMENSIONS = (
    ("part", part_partitions),
    ("LLaVA part", llava_part_partitions),
    ("variant", variant_partitions),
    ("source", source_partitions),
)

STATIC_KEYS = {
    name: known.get_partition_keys()
    for name, known in _DIMENSIONS
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
    return {name: key for name, known in _DIMENSIONS if known == partitions}


def dimension_names(partitions: dg.PartitionsDefinition | None) -> tuple[str, ...]:
    """The dimensions of partitions, in the order in which their keys name them."""
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        return tuple(sorted(partitions.partition_dimension_names))
    return tuple(name for name, known in _DIMENSIONS if known == partitions)
