"""Checkpoints: the starting point, the three stages, and the vision encoder that features are made with."""

import dagster as dg

from assets.automation import NIGHTLY_IF_NEW_DATA, TRAINING
from assets.checkpoints.launcher import Torchrun
from assets.checkpoints.runs import MIXTURE, previous_checkpoint, publish_results, shard_products, stage_run
from assets.lineage import Lineage, input_versions, product
from assets.partitions import (
    all_partitions,
    part_partitions,
    same_partition,
    same_variant,
    variant_partitions,
)
from assets.reporting import CODE_VERSION, OWNERS, errors_for_people, picture, publish, table
from assets.resources import Deployment
from training.stages import stage_inputs

GROUP = "checkpoints"


@dg.asset(
    partitions_def=variant_partitions,
    group_name=GROUP,
    kinds={"huggingface", "safetensors"},
    owners=OWNERS,
    pool="download",
    code_version=CODE_VERSION,
    description="""Where stage 1 starts: LLaVA-OneVision single-image weights with a newly initialised MemAug.

For `3b` and `7b` the published weights are fetched from the hub and converted; `tiny` is built by the project from a
seed, for demonstrations and tests.""",
)
def base_model(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.checkpoints.base import prepare_base

    with errors_for_people():
        report = prepare_base(deployment.storage(), deployment.settings(), context.partition_key, context.log.info)
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=report.origins,
        counts={"tensors": report.tensors, "parameters": report.parameters},
        folder=report.folder,
    )


def make_stage(stage: int, title: str, previous: dg.AssetsDefinition, deps: list[dg.AssetDep]) -> dg.AssetsDefinition:
    """The asset of one training stage, a partition a variant."""

    @dg.asset(
        name=f"stage{stage}",
        deps=[dg.AssetDep(previous, partition_mapping=same_partition), *deps],
        partitions_def=variant_partitions,
        group_name=GROUP,
        kinds={"pytorch"},
        owners=OWNERS,
        pool="gpu",
        tags=TRAINING if stage == 3 else None,
        automation_condition=NIGHTLY_IF_NEW_DATA if stage == 3 else None,
        code_version=CODE_VERSION,
        description=f"""{title}

Runs under torchrun as its own processes and reports loss and rate while it runs. A run that is stopped or killed goes
on from its newest complete checkpoint when it is materialized again; changed inputs start a new run beside the old one.
The recipe is in training/stages.py.""",
    )
    def train(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
        from assets.checkpoints.curve import loss_curve
        from assets.checkpoints.results import read_results

        settings, storage, variant = deployment.settings(), deployment.storage(), context.partition_key
        needed = [previous_checkpoint(variant, stage), *shard_products(stage)]
        if stage == 3:
            parts = context.instance.get_dynamic_partitions(str(part_partitions.name))
            needed += [product("features", f"{part}|{variant}") for part in sorted(parts)]
        with errors_for_people():
            inputs = input_versions(storage, needed)
            run, folder = stage_run(settings, storage, variant, stage, inputs)
            Torchrun(settings.training).run(context, run)
            results = read_results(run)
        publish_results(settings, storage, folder)
        return publish(
            context,
            deployment,
            version=results.version,
            inputs=inputs,
            counts=results.counts,
            folder=folder,
            config={"rates": dict(run.recipe.rates), "global_batch": run.recipe.global_batch, "seed": run.seed},
            metadata={
                "first loss": results.first_loss,
                "last loss": results.last_loss,
                "seconds": results.seconds,
                "loss": picture(loss_curve(run), f"loss of stage {stage}"),
                "rates": table([{"module": name, "learning rate": rate} for name, rate in run.recipe.rates.items()]),
            },
        )

    return train


def shard_deps(stage: int) -> list[dg.AssetDep]:
    """The shard parts that feed stage 1 or 2."""
    parts: dict[str, list[str]] = {}
    for stream in stage_inputs(stage, long_parts=()):
        for item in stream:
            parts.setdefault(item.kind, []).append(f"part{item.part}")
    return [
        dg.AssetDep(kind, partition_mapping=dg.SpecificPartitionsPartitionMapping(keys)) for kind, keys in parts.items()
    ]


stage1 = make_stage(
    1, "Stage 1, image-language pretraining: MemAug learns on single images.", base_model, shard_deps(1)
)
stage2 = make_stage(
    2,
    "Stage 2, video-language adaptation: everything is tuned on images, text and short videos.",
    stage1,
    shard_deps(2),
)


@dg.asset(
    deps=[dg.AssetDep(stage2, partition_mapping=same_partition)],
    partitions_def=variant_partitions,
    group_name=GROUP,
    kinds={"safetensors"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    description="The vision encoder that stage 2 tuned, as a SigLIP checkpoint of its own; features are made with it.",
)
def vision_encoder(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.checkpoints.results import publish_vision_encoder

    storage, variant = deployment.storage(), context.partition_key
    source = product("stage2", variant)
    with errors_for_people():
        inputs = input_versions(storage, [source])
        report = publish_vision_encoder(storage, Lineage.read(storage, source).folder, variant)
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts={"tensors": report.tensors, "parameters": report.parameters},
        folder=report.folder,
    )


stage3 = make_stage(
    3,
    "Stage 3, video instruction tuning: projector, MemAug and LLM learn on hour-long videos through their features.",
    stage2,
    [
        dg.AssetDep(MIXTURE, partition_mapping=all_partitions),
        dg.AssetDep("features", partition_mapping=same_variant),
    ],
)
