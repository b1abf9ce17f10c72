"""Scores of checkpoints on held-out questions."""

import dagster as dg

from assets.annotations.rows_versions import rows_version
from assets.automation.rules import DATA, FILL_AND_FOLLOW, FOLLOW_CONTENT, TRAINING
from assets.checkpoints.assets import variant_deps
from assets.deployment.addresses import gallery_address, serve_command
from assets.deployment.graph import HOLDS_OUT, TRAINED_STAGES
from assets.deployment.launchpad import EvaluationLaunch
from assets.deployment.partitions import all_partitions, same_partition, variant_partitions
from assets.deployment.resources import Deployment
from assets.deployment.variants import checkpoints_of
from assets.engines.call import call
from assets.records.lineage import check_whole, input_versions, product
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
from assets.records.withdrawals import active_parts
from training.formats import layout
from training.formats.receipts import describe_files

GROUP, HELD_OUT = "evaluation", "held_out_questions"


def make_held_out_questions() -> dg.AssetsDefinition:
    """The asset of the held-out questions, for deployments that hold some out."""

    @dg.asset(
        name=HELD_OUT,
        deps=[
            dg.AssetDep("part_rows", partition_mapping=all_partitions),
            dg.AssetDep("videos", partition_mapping=all_partitions),
        ],
        group_name=GROUP,
        kinds={"json"},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FOLLOW_CONTENT,
        pool="cpu",
        code_version=CODE_VERSION,
        check_specs=[up_to_date_spec(HELD_OUT)],
        description="""Questions about long videos that are never trained on, from the rows
themselves: they score a checkpoint before and after it was tuned.

Which videos are held out is decided by a hash of their names (`evaluation.held_out_share`), so a
video stays on its side whatever else is added. A row with lettered options is asked with them, any
other with the answers of other rows of its kind to choose from.""",
    )
    def held_out_questions(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.evaluation.held_out import write_held_out

        settings, storage = deployment.settings(), deployment.storage()
        with errors_for_people():
            mend_product(context, deployment)
            check_whole(storage, "annotations", "catalogue")
            parts = active_parts(storage)
            videos = [
                product("videos", f"{part}|{source}")
                for part in parts
                for source in sorted(settings.sources)
            ]
            rows = {name: v for part in parts for name, v in rows_version(storage, part).items()}
            inputs = rows | input_versions(storage, videos)
            report = write_held_out(storage, settings, parts)
        yield from publish(
            context,
            deployment,
            version=report.version,
            inputs=inputs,
            counts=report.counts,
            files=describe_files(storage, [layout.HELD_OUT]),
            config={"held_out_share": settings.held_out_share},
            metadata={
                "dagster/row_count": report.counts["questions"],
                "share that is held out": settings.held_out_share,
                "videos": table(report.videos),
            },
        )

    return held_out_questions


held_out = [make_held_out_questions()] if HOLDS_OUT else []


@dg.asset(
    deps=[
        *(dg.AssetDep(HELD_OUT, partition_mapping=all_partitions) for _ in held_out),
        dg.AssetDep("base_model", partition_mapping=same_partition),
        *variant_deps(
            [f"stage{stage}" for stage in TRAINED_STAGES],
            lambda asset: lambda variant: asset in checkpoints_of(variant),
        ),
    ],
    partitions_def=variant_partitions,
    group_name=GROUP,
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
settings name (`evaluation.questions`), or those that are held out of the deployment's own rows
(`held_out_questions`).""",
)
def evaluation(
    context: dg.AssetExecutionContext, deployment: Deployment, config: EvaluationLaunch
) -> Published:
    from assets.evaluation.answers import SCHEMA, answered
    from assets.evaluation.checks import above_blind
    from assets.evaluation.compare import LAST, answer_files, compare_checkpoints
    from assets.evaluation.gallery import GALLERY
    from assets.evaluation.report import checkpoint_columns, score_columns
    from assets.records.columns import ANSWERS

    settings, storage = config.applied(deployment.settings()), deployment.storage()
    variant, limit = context.partition_key, settings.evaluation.limit
    checkpoints = checkpoints_of(settings.variants[variant])
    scratch = settings.training.scratch
    files = answer_files(storage, variant, checkpoints, scratch).values()
    with errors_for_people():
        mend_product(context, deployment)
        split = [HELD_OUT] if settings.held_out_share else []
        inputs = input_versions(
            storage, [*split, *(product(name, variant) for name in checkpoints)]
        )
        found = call(
            context,
            settings,
            "gpu",
            lambda: answered(files),
            compare_checkpoints,
            storage,
            variant,
            checkpoints,
            storage.local(layout.HELD_OUT) if split else settings.evaluation.questions,
            context.log.info,
            below_root=bool(split),
            limit=limit,
            device=settings.features.device,
            scratch=scratch,
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
            "gallery": f"{storage.path(found.folder)}/{GALLERY}, or, under {serve_command()}, "
            f"{gallery_address(variant)}",
            "every checkpoint": table(checkpoint_columns(found.table, checkpoints)),
            "one question": table(found.example),
            # Not as a column schema: the UI would put that above the scores.
            "columns of the answers": table(
                [{"column": name, "what": ANSWERS[name]} for name in SCHEMA.names]
            ),
        },
    )
