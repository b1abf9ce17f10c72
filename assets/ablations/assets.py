"""The ablations as a partition set of the graph, for deployments whose settings have the section
`ablation`: runs, scores, one table.
"""

from dataclasses import asdict
from typing import Any

import dagster as dg

from assets.ablations.runs import (
    STAGE,
    arm_of,
    arm_run,
    arms_of,
    needs_pretraining,
    pretraining_run,
    read_products,
    start_asset,
    study_of,
)
from assets.automation.rules import BY_HAND
from assets.checkpoints.assets import (
    shard_deps,
    stage_check_specs,
    stage_metadata,
    stage_opening,
)
from assets.checkpoints.launcher import train_stage
from assets.checkpoints.runs import publish_results
from assets.deployment.graph import (
    ABLATION,
    HOLDS_OUT,
    SETTINGS,
    SHORT_VIDEO_PARTS,
    VARIANTS,
)
from assets.deployment.partitions import all_partitions, arm_partitions, same_partition
from assets.deployment.resources import Deployment
from assets.deployment.settings import Settings
from assets.engines.call import call
from assets.evaluation.assets import HELD_OUT
from assets.records.lineage import input_versions, is_recorded, product
from assets.records.publishing import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    errors_for_people,
    mend_product,
    publish,
    up_to_date_spec,
)
from assets.records.rendering import table
from assets.records.verdict import Verdict
from training.formats import layout
from training.formats.receipts import describe_files

GROUP = "ablations"
ARM, SCORES, TABLE = "ablation", "ablation_scores", "ablation_table"


def run_deps(settings: Settings) -> list[dg.AssetDep]:
    """What the runs of all arms read."""
    own = dg.SpecificPartitionsPartitionMapping(list(VARIANTS))
    pretraining = any(
        needs_pretraining(settings, key) for key in arm_partitions.get_partition_keys()
    )
    starts = {start_asset(settings), "vision_encoder", *(["base_model"] if pretraining else [])}
    return [
        *(dg.AssetDep(name, partition_mapping=own) for name in sorted(starts)),
        *(shard_deps(1) if pretraining else []),
        dg.AssetDep(layout.MIXTURE, partition_mapping=all_partitions),
        dg.AssetDep("features", partition_mapping=all_partitions),
        *(
            dg.AssetDep("short_video_features", partition_mapping=all_partitions)
            for _ in SHORT_VIDEO_PARTS[:1]
        ),
    ]


def make_ablation(settings: Settings) -> dg.AssetsDefinition:
    """The asset of the runs."""

    @dg.asset(
        name=ARM,
        deps=run_deps(settings),
        partitions_def=arm_partitions,
        group_name=GROUP,
        kinds={"pytorch"},
        owners=OWNERS,
        tags=BY_HAND,
        pool="gpu",
        code_version=CODE_VERSION,
        check_specs=stage_check_specs(ARM, arm_partitions),
        description="""One arm of the paper's ablations with one seed: the reference, one change.

Trained from a common start by the recipe of stage 3, as a stage is: it goes on where it was
stopped, and an arm, a seed or a setting that changes its steps is a run of its own. An arm whose
MemAug is another one trains stage 1 for itself first. The arms are in
assets/deployment/ablation.py, the study's settings in the section `ablation`.""",
    )
    def ablation(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.checkpoints.checks import stage_checks
        from assets.checkpoints.results import below, read_results

        settings, storage = deployment.settings(), deployment.storage()
        key = context.partition_key
        arm, seed = arm_of(settings, key)
        with errors_for_people():
            inputs = input_versions(storage, read_products(settings, storage, key))
            pretrained: tuple[str, str] | None = None
            if needs_pretraining(settings, key):
                first, first_folder = pretraining_run(settings, storage, key, inputs)
                train_stage(context, settings, storage, first, first_folder, inputs)
                publish_results(settings, storage, first_folder)
                pretrained = f"{first.out}/export", read_results(first).version
            run, folder = arm_run(settings, storage, key, inputs, pretrained)
            train_stage(context, settings, storage, run, folder, inputs)
            results = read_results(run)
            checks = call(context, settings, "cpu", None, stage_checks, run)
        publish_results(settings, storage, folder)
        config: dict[str, Any] = {
            "arm": arm.says,
            "seed": seed,
            "model": run.model and asdict(run.model),
            "rows": run.rows and dict(run.rows),
            "rates": dict(run.recipe.rates),
            "global_batch": run.recipe.global_batch,
            "pretrained": pretrained and pretrained[1],
        }
        yield from publish(
            context,
            deployment,
            version=results.version,
            inputs=inputs,
            counts=results.counts,
            files=below(folder, results.files),
            checks=checks,
            folder=folder,
            config=config,
            opening={"what": f"{arm.compares}: {arm.says}", **stage_opening(run, results)},
            metadata=stage_metadata(run, results) | {"ask it": None},
        )

    return ablation


def make_scores() -> dg.AssetsDefinition:
    """The asset of the scores."""

    @dg.asset(
        name=SCORES,
        deps=[
            *(dg.AssetDep(HELD_OUT, partition_mapping=all_partitions) for _ in range(HOLDS_OUT)),
            dg.AssetDep(ARM, partition_mapping=same_partition),
        ],
        partitions_def=arm_partitions,
        group_name=GROUP,
        kinds={"parquet"},
        owners=OWNERS,
        tags=BY_HAND,
        pool="gpu",
        code_version=CODE_VERSION,
        check_specs=[up_to_date_spec(SCORES)],
        description="The questions of the evaluation, answered by one arm with one seed as "
        "the stages' checkpoints answer them.",
    )
    def ablation_scores(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.ablations.score import answers_of_arm, score_arm
        from assets.evaluation.answers import answered

        settings, storage = deployment.settings(), deployment.storage()
        key = context.partition_key
        with errors_for_people():
            _, answers = answers_of_arm(storage, settings, key)
            mend_product(context, deployment)
            split = [HELD_OUT] if settings.held_out_share else []
            inputs = input_versions(storage, [*split, product(ARM, key)])
            found = call(
                context, settings, "gpu", lambda: answered([answers]), score_arm,
                storage, settings, key, context.log.info,
            )  # fmt: skip
        yield from publish(
            context,
            deployment,
            version=found.version,
            inputs=found.origins | inputs,
            counts=found.counts,
            files=describe_files(storage, found.files),
            config={"limit": settings.evaluation.limit},
            metadata={"accuracy": found.accuracy, "chance": found.chance},
        )

    return ablation_scores


def make_table() -> dg.AssetsDefinition:
    """The asset of the table."""

    @dg.asset(
        name=TABLE,
        deps=[dg.AssetDep(SCORES, partition_mapping=all_partitions)],
        group_name=GROUP,
        kinds={"json"},
        owners=OWNERS,
        tags=BY_HAND,
        pool="cpu",
        code_version=CODE_VERSION,
        check_specs=[
            up_to_date_spec(TABLE),
            check_spec(
                "all_arms",
                TABLE,
                "Every arm was trained and scored with every seed. It only warns.",
                blocking=False,
            ),
        ],
        description="All arms side by side: accuracy, and the gain over the reference, with "
        "intervals over the seeds. Arms that are not scored yet are named.",
    )
    def ablation_table(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.ablations.score import read_scores, write_table
        from assets.ablations.table import ALL, arms_table

        settings, storage = deployment.settings(), deployment.storage()
        variant, _ = study_of(settings)
        arms = arms_of(settings)
        keys = arm_partitions.get_partition_keys()
        made = [key for key in keys if is_recorded(storage, product(SCORES, key))]
        missing = [key for key in keys if key not in made]
        with errors_for_people():
            mend_product(context, deployment)
            if not made:
                raise ValueError("no arm was scored yet; materialize ablation_scores first")
            inputs = input_versions(storage, [product(SCORES, key) for key in made])
            scores = read_scores(storage, variant, made)
            report = write_table(storage, variant, arms, scores)
        rows = arms_table(arms, scores)
        says = f"not scored yet: {', '.join(missing)}" if missing else "every arm was scored"
        yield from publish(
            context,
            deployment,
            version=report.version,
            inputs=inputs,
            counts={"arms": len(rows), "runs": len(made), "not scored yet": len(missing)},
            files=describe_files(storage, [report.file]),
            checks=[Verdict("all_arms", says, not missing, blocking=False)],
            opening={f"arms, {ALL} questions": table(rows)},
            metadata={"trained from": start_asset(settings), "recipe": f"stage {STAGE}"},
        )

    return ablation_table


ablations = [] if ABLATION is None else [make_ablation(SETTINGS), make_scores(), make_table()]
