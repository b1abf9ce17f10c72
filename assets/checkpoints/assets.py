"""Checkpoints: the starting point, the three stages, and the vision encoder that features are made
with.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.automation.rules import BY_HAND, NIGHTLY_IF_NEW_DATA, RETRY_NETWORK, TRAINING
from assets.checkpoints.launcher import train_stage
from assets.checkpoints.runs import (
    feature_products,
    previous_checkpoint,
    publish_results,
    shard_products,
    stage_run,
    unfinished_before,
)
from assets.deployment.addresses import ask_address
from assets.deployment.graph import SHORT_VIDEO_PARTS, TRAINED_STAGES
from assets.deployment.launchpad import StageLaunch
from assets.deployment.partitions import (
    all_partitions,
    same_variant,
    stage_partitions,
    variant_partitions,
    variants_where,
)
from assets.deployment.resources import Deployment
from assets.deployment.variants import Variant, encoder_from, previous
from assets.engines.call import call
from assets.records.lineage import Lineage, input_versions, product
from assets.records.product_files import describe_folder
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
from assets.records.rendering import picture, small_picture, table
from assets.records.withdrawals import active_parts
from training.formats import layout
from training.recipes import STAGES, stage_inputs
from training.run_config import RunConfig

if TYPE_CHECKING:
    from assets.checkpoints.results import Results

GROUP = "checkpoints"
ADOPT = (
    "%s holds an unfinished run of an earlier release, which named folders otherwise. If it is "
    "this run, stop, move its state, samples and metrics.jsonl to %s, and materialize again with "
    "the overrides {on_other_state: adopt}"
)


@dg.asset(
    partitions_def=variant_partitions,
    group_name=GROUP,
    kinds={"huggingface", "safetensors"},
    owners=OWNERS,
    tags=BY_HAND,
    pool="download",
    retry_policy=RETRY_NETWORK,
    code_version=CODE_VERSION,
    description="""Where a variant's training starts, as the settings say (`variants`):
LLaVA-OneVision single-image weights with a newly initialised MemAug, a released Hour-LLaVA
checkpoint, or one's own export.

What a hub repository or a folder holds is recognised by its configuration and tensors, and
converted where it needs to be. The preset `tiny` is built by the project from a seed, for
demonstrations and tests.""",
)
def base_model(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.checkpoints.base import prepare_base

    with errors_for_people():
        mend_product(context, deployment)
        report = prepare_base(
            deployment.storage(), deployment.settings(), context.partition_key, context.log.info
        )
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=report.origins,
        counts={"tensors": report.tensors, "parameters": report.parameters},
        files=describe_folder(deployment.storage(), report.folder),
        folder=report.folder,
        config={"start": deployment.settings().variants[context.partition_key].facts},
        metadata={
            "what it is": report.kind,
            "parameters": report.parameters,
            "origins": report.origins,
        },
    )


def variant_deps(
    assets: Sequence[str], reads: Callable[[str], Callable[[Variant], bool]]
) -> list[dg.AssetDep]:
    """Assets by variant that others are made from: each for those variants that read it."""
    mappings = {asset: variants_where(reads(asset)) for asset in assets}
    return [
        dg.AssetDep(asset, partition_mapping=mapping)
        for asset, mapping in mappings.items()
        if mapping is not None
    ]


def make_stage(stage: int) -> dg.AssetsDefinition:
    """The asset of one training stage, a partition for each variant that trains it."""
    row, partitions = STAGES[stage], stage_partitions[stage]

    def starts_from(asset: str) -> Callable[[Variant], bool]:
        return lambda variant: stage in variant.stages and previous(variant, stage) == asset

    @dg.asset(
        name=f"stage{stage}",
        deps=[*variant_deps(("base_model", f"stage{stage - 1}"), starts_from), *shard_deps(stage)],
        partitions_def=partitions,
        group_name=GROUP,
        kinds={"pytorch"},
        owners=OWNERS,
        pool="gpu",
        # Only a stage that reads long videos gets new data by itself.
        tags=TRAINING if row.reads_long_videos else BY_HAND,
        automation_condition=NIGHTLY_IF_NEW_DATA if row.reads_long_videos else None,
        code_version=CODE_VERSION,
        check_specs=stage_check_specs(f"stage{stage}", partitions),
        description=f"""{row.title}

Runs under torchrun as its own processes and reports loss and rate while it runs. A run that is
stopped or killed goes on from its newest whole checkpoint when it is materialized again, whatever
changed that does not change its steps; other contents, or settings that do, start a new run beside
the old one. A finished one is looked at byte by byte, and made again from its last checkpoint where
it is damaged. The recipe is in training/recipes.py; for one run, the
launchpad takes deviations from it (`overrides`) and the number of ranks.""",
    )
    def train(
        context: dg.AssetExecutionContext, deployment: Deployment, config: StageLaunch
    ) -> Published:
        from assets.checkpoints.checks import stage_checks
        from assets.checkpoints.coverage import stage_coverage
        from assets.checkpoints.results import below, read_results

        settings, storage = config.applied(deployment.settings(), stage), deployment.storage()
        variant = context.partition_key
        needed = [previous_checkpoint(settings, variant, stage), *shard_products(stage)]
        with errors_for_people():
            parts = active_parts(storage) if row.reads_long_videos else []
            needed += feature_products(settings, variant, parts) if row.reads_long_videos else []
            inputs = input_versions(storage, needed)
            run, folder = stage_run(settings, storage, variant, stage, inputs)
            for path in unfinished_before(Path(run.out)):
                context.log.warning(ADOPT, path, run.out)
            train_stage(context, settings, storage, run, folder, inputs)
            results = read_results(run)
            checks = call(context, settings, "cpu", None, stage_checks, run)
            shards = shard_products(stage)
            coverage = stage_coverage(storage, variant, shards, parts, results.dropped)
        publish_results(settings, storage, folder)
        yield from publish(
            context,
            deployment,
            version=results.version,
            inputs=inputs,
            counts=results.counts,
            files=below(folder, results.files),
            checks=checks,
            coverage=coverage,
            folder=folder,
            config={
                "rates": dict(run.recipe.rates),
                "global_batch": run.recipe.global_batch,
                "seed": run.seed,
                "overrides": settings.training.overrides.get(f"stage{stage}", {}),
            },
            opening=stage_opening(run, results),
            metadata=stage_metadata(run, results),
        )

    return train


def stage_check_specs(asset: str, partitions: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    """The checks of a stage; `assets/checkpoints/checks.py` makes them."""
    return [
        up_to_date_spec(asset),
        check_spec(
            "loss",
            asset,
            "The loss of every stream is finite and has not risen, by the means of its first "
            "and last tenth.",
            partitions,
        ),
        check_spec(
            "loss_falls",
            asset,
            "The loss of every stream falls, and few steps were skipped. It only warns.",
            partitions,
            blocking=False,
        ),
        check_spec(
            "export_loads",
            asset,
            "The exported checkpoint loads with `from_pretrained`, whole and finite, in a "
            "process of its own.",
            partitions,
        ),
    ]


def stage_opening(run: RunConfig, results: "Results") -> dict[str, Any]:
    """How the loss went: what a finished stage's page opens with."""
    from assets.checkpoints.curve import small_loss_curve

    if results.first_loss is None:  # not one step had a finite loss; the check says so
        return {}
    caption = (
        f"**{results.first_loss:.3f}** first tenth of the steps, **{results.last_loss:.3f}** last "
        "tenth; zero is at the bottom"
    )
    return {"loss": small_picture(small_loss_curve(run), caption)}


def stage_metadata(run: RunConfig, results: "Results") -> dict[str, Any]:
    """What a finished stage shows of itself."""
    from assets.checkpoints.curve import loss_curve

    rates = [{"module": name, "learning rate": rate} for name, rate in run.recipe.rates.items()]
    return {
        "ask it": ask_address(product(f"stage{run.stage}", run.variant)),
        "first loss": results.first_loss,
        "last loss": results.last_loss,
        "hours": round(results.seconds / 3600, 3),
        **held_out_metadata(run),
        "loss curve": picture(loss_curve(run), f"loss of stage {run.stage}"),
        "throughput": table(results.throughput),
        "left out": table(
            [{"reason": reason, "samples": count} for reason, count in results.dropped.items()]
        ),
        "learning rates": table(rates),
    }


def held_out_metadata(run: RunConfig) -> dict[str, Any]:
    """The last loss of held-out samples and the last answers, where some were held out."""
    from training.metrics import ANSWERS_NAME, METRICS_NAME, read_metrics

    out = Path(run.out)
    found = [r["held_out"] for r in read_metrics(out / METRICS_NAME) if "held_out" in r]
    if not found:
        return {}
    answers = list(read_metrics(out / ANSWERS_NAME))
    last = [
        {name: record[name] for name in ("id", "question", "expected", "answer")}
        for record in answers
        if record["step"] == answers[-1]["step"]
    ]
    loss = {"held-out loss": found[-1]["loss"]} if "loss" in found[-1] else {}
    return {**loss, "held-out answers": table(last)}


def shard_deps(stage: int) -> list[dg.AssetDep]:
    """What a stage reads besides the checkpoint before it."""
    if STAGES[stage].reads_long_videos:
        return [
            dg.AssetDep(layout.MIXTURE, partition_mapping=all_partitions),
            dg.AssetDep("features", partition_mapping=same_variant),
            *(
                dg.AssetDep("short_video_features", partition_mapping=same_variant)
                for _ in SHORT_VIDEO_PARTS[:1]
            ),
        ]
    parts: dict[str, list[str]] = {}
    for stream in stage_inputs(stage, long_parts=()):
        for item in stream:
            parts.setdefault(item.kind, []).append(f"part{item.part}")
    return [
        dg.AssetDep(kind, partition_mapping=dg.SpecificPartitionsPartitionMapping(keys))
        for kind, keys in parts.items()
    ]


stages = [make_stage(stage) for stage in TRAINED_STAGES]


@dg.asset(
    deps=variant_deps(
        ("base_model", "stage2"), lambda asset: lambda variant: encoder_from(variant) == asset
    ),
    partitions_def=variant_partitions,
    group_name=GROUP,
    kinds={"safetensors"},
    owners=OWNERS,
    tags=BY_HAND,
    pool="cpu",
    code_version=CODE_VERSION,
    check_specs=[up_to_date_spec("vision_encoder")],
    description="The vision encoder that stage 2 tuned, or that of a later start, as a SigLIP "
    "checkpoint of its own; features are made with it.",
)
def vision_encoder(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.checkpoints.results import publish_vision_encoder

    storage, variant = deployment.storage(), context.partition_key
    source = product(encoder_from(deployment.settings().variants[variant]), variant)
    with errors_for_people():
        mend_product(context, deployment)
        inputs = input_versions(storage, [source])
        report = call(
            context, deployment.settings(), "cpu", None, publish_vision_encoder,
            storage, Lineage.read(storage, source).folder, variant,
        )  # fmt: skip
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts={"tensors": report.tensors, "parameters": report.parameters},
        files=describe_folder(storage, report.folder),
        folder=report.folder,
        metadata={"parameters": report.parameters},
    )
