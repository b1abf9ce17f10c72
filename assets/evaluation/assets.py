"""Scores of checkpoints on held-out questions."""

import dagster as dg

from assets.automation.rules import FILL_AND_FOLLOW, TRAINING
from assets.checkpoints.assets import variant_deps
from assets.deployment.addresses import gallery_address
from assets.deployment.graph import TRAINED_STAGES
from assets.deployment.launchpad import EvaluationLaunch
from assets.deployment.partitions import same_partition, variant_partitions
from assets.deployment.resources import Deployment
from assets.deployment.variants import checkpoints_of
from assets.records.lineage import input_versions, product
from assets.records.product_files import KnownFiles
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    own_name,
    publish,
    up_to_date_spec,
)
from assets.records.rendering import table


@dg.asset(
    deps=[
        dg.AssetDep("base_model", partition_mapping=same_partition),
        *variant_deps(
            [f"stage{stage}" for stage in TRAINED_STAGES],
            lambda asset: lambda variant: asset in checkpoints_of(variant),
        ),
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
        up_to_date_spec("evaluation"),
        check_spec(
            "above_blind",
            "evaluation",
            "Stage 3 answers better with the videos than with grey pictures, by more than "
            "chance. It only warns.",
            variant_partitions,
            blocking=False,
        ),
    ],
    description="""Held-out questions answered by the starting point and each stage, side by side.

Accuracy by question type and by duration, with and without the visuals, against the stage-3
checkpoint before this one, and every answer with its prompt in a Parquet file. The gallery shows
the questions with frames and what each checkpoint answered. The questions are those that the
settings name (`evaluation.questions`).""",
)
def evaluation(
    context: dg.AssetExecutionContext, deployment: Deployment, config: EvaluationLaunch
) -> Published:
    from assets.evaluation.answers import SCHEMA
    from assets.evaluation.checks import above_blind
    from assets.evaluation.compare import LAST, compare_checkpoints
    from assets.evaluation.gallery import GALLERY
    from assets.evaluation.report import checkpoint_columns, score_columns
    from assets.records.columns import ANSWERS

    settings, storage = config.applied(deployment.settings()), deployment.storage()
    variant, limit = context.partition_key, settings.evaluation.limit
    checkpoints = checkpoints_of(settings.variants[variant])
    with errors_for_people():
        mend_product(context, deployment)
        inputs = input_versions(storage, [product(name, variant) for name in checkpoints])
        found = compare_checkpoints(
            storage,
            variant,
            checkpoints,
            settings.evaluation.questions,
            context.log.info,
            limit=limit,
            device=settings.features.device,
            scratch=settings.training.scratch,
        )
    yield from publish(
        context,
        deployment,
        version=found.version,
        inputs=found.origins | inputs,
        counts=found.counts,
        files=KnownFiles(storage, own_name(context)).describe(found.files),
        folder=found.folder,
        checks=[above_blind(found.accuracy, found.blind_accuracy, found.counts["asked"])],
        config={"limit": limit},
        opening={
            "accuracy of stage 3": f"{found.accuracy:.1%} right, 95 % between {found.interval} "
            f"(Wilson); {found.blind_accuracy:.1%} with nothing shown",
            "scores of stage 3": table(score_columns(found.table, LAST)),
            "against the checkpoint before": table(found.previous),
            "what was different then": table(found.difference),
        },
        metadata={
            "gallery": f"{storage.path(found.folder)}/{GALLERY}, or, under `hourllava serve`, "
            f"{gallery_address(variant)}",
            "every checkpoint": table(checkpoint_columns(found.table, checkpoints)),
            "one question": dg.MetadataValue.md(found.example),
            # Not as a column schema: the UI would put that above the scores.
            "columns of the answers": table(
                [{"column": name, "what": ANSWERS[name]} for name in SCHEMA.names]
            ),
        },
    )
