"""MDS shards of the six kinds, and the stage-3 mixture over them."""

import dagster as dg

from assets.automation import DATA, FILL_AND_FOLLOW, FOLLOW_CONTENT
from assets.conversations.assets import conversations
from assets.lineage import input_versions, product
from assets.partitions import (
    LLAVA_PARTS,
    all_partitions,
    llava_part_partitions,
    part_partitions,
    same_partition,
)
from assets.reporting import CODE_VERSION, OWNERS, errors_for_people, picture, publish, table
from assets.resources import Deployment
from assets.sources.assets import llava_onevision, llava_video
from assets.split import part_index, part_name
from training.samples import LLAVA_KINDS, LONG_VIDEO_KIND

GROUP = "shards"
DESCRIPTIONS = {
    "llava_ov_si_onlyimg": "Single images for stage 1 (LLaVA-OneVision, rows without an image left out).",
    "llavavideo_text": "Text-only conversations (LLaVA-OneVision).",
    "llavavideo_si": "Single images for stages 2 and 3 (LLaVA-OneVision).",
    "llavavideo_mi": "Conversations about several images (LLaVA-OneVision).",
    "llavavideo_video": "Short videos (LLaVA-Video-178K); samples name their video, frames are decoded in training.",
}


def shard_result(
    context: dg.AssetExecutionContext, deployment: Deployment, kind: str, inputs: dict[str, str], report
) -> dg.MaterializeResult:
    """What a shard asset tells about the part it wrote."""
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        folder=f"VideoMarathon/sharding/{kind}_{context.partition_key}",
        config=report.config,
        metadata={
            "dagster/row_count": report.counts["samples"],
            "bytes": report.bytes,
            "hours": report.hours,
            "text tokens (estimate)": report.tokens,
            "dropped": table([{"reason": reason, "samples": samples} for reason, samples in report.drops.items()]),
            "some that were dropped": report.named,
            "annotation files that are missing": report.missing,
            "examples": table(report.examples),
            **({"pictures": picture(report.picture, "some images")} if report.picture else {}),
        },
    )


def make_llava_shards(kind: str) -> dg.AssetsDefinition:
    """The shard asset of one kind of the LLaVA collections, ten parts."""
    collection = llava_video if kind == "llavavideo_video" else llava_onevision

    @dg.asset(
        name=kind,
        deps=[dg.AssetDep(collection, partition_mapping=all_partitions)],
        partitions_def=llava_part_partitions,
        group_name=GROUP,
        kinds={"mosaicml"},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FOLLOW_CONTENT,
        pool="cpu",
        code_version=CODE_VERSION,
        description=f"{DESCRIPTIONS[kind]}\n\nMosaicML Streaming shards; the same inputs give the same bytes.",
    )
    def shards(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
        from assets.shards.writer import write_kind_part

        with errors_for_people():
            inputs = input_versions(deployment.storage(), [collection.key.to_user_string()])
            report = write_kind_part(
                deployment.storage(),
                deployment.settings(),
                kind,
                part_index(context.partition_key),
                context.log.info,
            )
        return shard_result(context, deployment, kind, inputs, report)

    return shards


llava_shards = [make_llava_shards(kind) for kind in LLAVA_KINDS]


@dg.asset(
    name=LONG_VIDEO_KIND,
    deps=[dg.AssetDep(conversations, partition_mapping=same_partition)],
    partitions_def=part_partitions,
    group_name=GROUP,
    kinds={"mosaicml"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL_AND_FOLLOW,
    pool="cpu",
    code_version=CODE_VERSION,
    description="""Long-video conversations for stage 3 (VideoMarathon); samples name their video, never embed features.

MosaicML Streaming shards; the rows of one video stand together, so training reads each feature file about once.""",
)
def videomarathon_video(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.shards.writer import write_long_video_part

    part = context.partition_key
    with errors_for_people():
        inputs = input_versions(deployment.storage(), [product("conversations", part)])
        report = write_long_video_part(deployment.storage(), deployment.settings(), part_index(part), context.log.info)
    return shard_result(context, deployment, LONG_VIDEO_KIND, inputs, report)


@dg.asset(
    deps=[
        *(dg.AssetDep(kind, partition_mapping=all_partitions) for kind in llava_shards[1:]),
        dg.AssetDep(videomarathon_video, partition_mapping=all_partitions),
    ],
    group_name=GROUP,
    kinds={"mosaicml"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FOLLOW_CONTENT,
    code_version=CODE_VERSION,
    description="""The stage-3 mixture: two streams of parts, one short and one long; every batch comes from one.

Two index files over existing parts: nothing is copied or linked. A new part of long videos joins stream 1.""",
)
def hourllava_s3(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.shards.mixture_views import write_mixture

    parts = sorted(context.instance.get_dynamic_partitions(str(part_partitions.name)), key=part_index)
    with errors_for_people():
        inputs = input_versions(
            deployment.storage(),
            [
                *(product(kind, part_name(index)) for kind in LLAVA_KINDS[1:] for index in range(1, LLAVA_PARTS)),
                *(product(LONG_VIDEO_KIND, part) for part in parts),
            ],
        )
        report = write_mixture(deployment.storage(), [part_index(part) for part in parts])
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        folder="VideoMarathon/sharding/hourllava_s3",
        metadata={"streams": table(report.table)},
    )
