"""Scores of checkpoints on held-out questions."""

import dagster as dg

from assets.deployment.automation import FILL_AND_FOLLOW, TRAINING
from assets.deployment.launchpad import EvaluationLaunch
from assets.deployment.partitions import same_partition, variant_partitions
from assets.deployment.resources import Deployment
from assets.records.lineage import input_versions, product
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    publish,
)
from assets.records.rendering import column_schema, table


@dg.asset(
    deps=[
        dg.AssetDep(stage, partition_mapping=same_partition)
        for stage in ("base_model", "stage1", "stage2", "stage3")
    ],
    partitions_def=variant_partitions,
    group_name="evaluation",
    kinds={"parquet"},
    owners=OWNERS,
    tags=TRAINING,
    automation_condition=FILL_AND_FOLLOW,
    pool="gpu",
    code_version=CODE_VERSION,
    check_specs=[
        check_spec(
            "above_blind",
            "evaluation",
            (
                "Stage 3 answers better with the videos than with grey pictures, by more than "
                "chance. It only warns."
            ),
            variant_partitions,
            blocking=False,
        )
    ],
    description="""Held-out questions answered by the starting point and by each stage, side by
    side.

Accuracy by question type and by duration, with and without the visuals, against the stage-3
checkpoint before this one, and every answer with its prompt in a Parquet file. The questions are
those that the settings name (`evaluation.questions`).""",
)
def evaluation(
    context: dg.AssetExecutionContext, deployment: Deployment, config: EvaluationLaunch
) -> Published:
    from assets.evaluation.checks import above_blind
    from assets.evaluation.compare import CHECKPOINTS, compare_checkpoints
    from assets.evaluation.record import SCHEMA
    from assets.records.columns import ANSWERS

    settings, storage, variant = (
        config.applied(deployment.settings()),
        deployment.storage(),
        context.partition_key,
    )
    with errors_for_people():
        inputs = input_versions(storage, [product(name, variant) for name in CHECKPOINTS])
        report = compare_checkpoints(storage, settings, variant, context.log.info)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=report.origins | inputs,
        counts=report.counts,
        folder=report.folder,
        checks=[above_blind(report)],
        config={"limit": settings.evaluation.limit},
        metadata={
            "accuracy of stage 3": report.accuracy[CHECKPOINTS[-1]],
            "accuracy": table(report.table),
            "against the checkpoint before": table(report.previous),
            "one question": dg.MetadataValue.md(report.example),
            **column_schema(SCHEMA, ANSWERS),
        },
    )
