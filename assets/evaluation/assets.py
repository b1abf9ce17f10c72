"""Scores of checkpoints on held-out questions."""

import dagster as dg

from assets.automation import FILL_AND_FOLLOW, TRAINING
from assets.checkpoints.assets import base_model, stage1, stage2, stage3
from assets.lineage import input_versions, product
from assets.partitions import same_partition, variant_partitions
from assets.reporting import CODE_VERSION, OWNERS, errors_for_people, publish, table
from assets.resources import Deployment


@dg.asset(
    deps=[dg.AssetDep(stage, partition_mapping=same_partition) for stage in (base_model, stage1, stage2, stage3)],
    partitions_def=variant_partitions,
    group_name="evaluation",
    kinds={"parquet"},
    owners=OWNERS,
    tags=TRAINING,
    automation_condition=FILL_AND_FOLLOW,
    pool="gpu",
    code_version=CODE_VERSION,
    description="""Held-out questions answered by the starting point and by each stage, side by side.

Accuracy by question type and by duration, with and without the visuals, and every answer with its prompt in a Parquet
file. The questions are those that the settings name (`evaluation.questions`).""",
)
def evaluation(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.evaluation.compare import compare_checkpoints

    storage, variant = deployment.storage(), context.partition_key
    with errors_for_people():
        inputs = input_versions(
            storage, [product(name, variant) for name in ("base_model", "stage1", "stage2", "stage3")]
        )
        report = compare_checkpoints(storage, deployment.settings(), variant, context.log.info)
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        folder=report.folder,
        metadata={
            "accuracy": table(report.table),
            "one question": dg.MetadataValue.md(report.example),
        },
    )
