"""MDS shards of the six kinds, and the stage-3 mixture over them."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.automation.rules import DATA, FILL_AND_FOLLOW, FOLLOW_CONTENT
from assets.deployment.graph import LLAVA_READ, MIXED_READ
from assets.deployment.launchpad import ShardsLaunch
from assets.deployment.partitions import (
    all_partitions,
    llava_part_partitions,
    part_partitions,
    same_partition,
)
from assets.deployment.parts import LLAVA_PARTS, part_index, part_name
from assets.deployment.resources import Deployment
from assets.engines.call import call
from assets.records.lineage import check_whole, input_versions, product
from assets.records.product_files import describe_folder
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
from assets.records.rendering import picture, samples, table
from assets.records.withdrawals import active_parts, catalogued_parts, require_active
from training.formats import layout
from training.formats.kinds import KINDS, LONG_VIDEO_KIND
from training.formats.storage import Storage

if TYPE_CHECKING:
    from assets.records.coverage import Coverage
    from assets.shards.part import ShardReport

GROUP = "shards"


def whole_spec(kind: str, partitions: dg.PartitionsDefinition) -> dg.AssetCheckSpec:
    """The check that every shard asset makes of a part."""
    return check_spec(
        "whole",
        kind,
        "Index, manifest and files agree: names, sizes, hashes and the number of samples.",
        partitions,
    )


def shard_result(
    context: dg.AssetExecutionContext,
    deployment: Deployment,
    config: ShardsLaunch,
    kind: str,
    inputs: dict[str, str],
    report: "ShardReport",
    coverage: "Coverage",
) -> Published:
    """What a shard asset tells about the part it wrote."""
    from assets.shards.checks import whole
    from assets.shards.part import part_files

    folder, storage = layout.shards(kind, context.partition_key), deployment.storage()
    with errors_for_people():
        verdict = whole(storage, folder, own_name(context))
        lengths = short_videos(storage, folder) if KINDS[kind].rows == "short video" else {}
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=part_files(storage, kind, part_index(context.partition_key)),
        checks=[verdict],
        coverage=coverage,
        folder=folder,
        config={**report.config, **config.chosen()},
        metadata={
            "dagster/row_count": report.counts["samples"],
            "bytes": report.bytes,
            "hours of video": report.hours or None,
            **lengths,
            "text tokens (estimate)": report.tokens,
            "dropped": table(
                [{"reason": reason, "samples": samples} for reason, samples in report.drops.items()]
            ),
            "some that were dropped": report.named,
            "annotation files that are missing": report.missing,
            **samples(report.examples),
            "sample images": picture(report.picture, "images of the part"),
        },
    )


def short_videos(storage: Storage, folder: str) -> dict[str, Any]:
    """How long the short videos of a part are."""
    from assets.records.histogram import duration_histogram
    from assets.shards.lengths import short_video_lengths

    lengths = short_video_lengths(storage, folder)
    title = f"{len(lengths.seconds):,} of {lengths.videos:,} videos"
    return {
        "hours of video": round(lengths.hours, 3) if lengths.seconds else None,
        "how long": lengths.summary,
        "durations": picture(
            duration_histogram(lengths.seconds, title) if lengths.seconds else None, title
        ),
    }


def make_llava_shards(kind: str) -> dg.AssetsDefinition:
    """The shard asset of one kind of the LLaVA collections, ten parts."""
    row = KINDS[kind]

    @dg.asset(
        name=kind,
        deps=[dg.AssetDep(row.collection, partition_mapping=all_partitions)],
        partitions_def=llava_part_partitions,
        group_name=GROUP,
        kinds={"mosaicml"},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FOLLOW_CONTENT,
        pool="cpu",
        code_version=CODE_VERSION,
        check_specs=[
            up_to_date_spec(kind),
            whole_spec(kind, llava_part_partitions),
        ],
        description=f"""{row.description}

MosaicML Streaming shards; the same inputs give the same bytes.""",
    )
    def shards(
        context: dg.AssetExecutionContext, deployment: Deployment, config: ShardsLaunch
    ) -> Published:
        from assets.shards.coverage import collection_coverage
        from assets.shards.part import part_folder
        from assets.shards.workers import measured
        from assets.shards.writer import write_kind_part

        settings, part = config.applied(deployment.settings()), part_index(context.partition_key)
        with errors_for_people():
            inputs = input_versions(deployment.storage(), [row.collection])
            report = call(
                context, settings, "cpu",
                measured(deployment.storage(), part_folder(kind, part)), write_kind_part,
                deployment.storage(), settings, kind, part, context.log.info,
            )  # fmt: skip
        coverage = collection_coverage(kind, report)
        yield from shard_result(context, deployment, config, kind, inputs, report, coverage)

    return shards


llava_shards = [make_llava_shards(kind) for kind in LLAVA_READ]


@dg.asset(
    name=LONG_VIDEO_KIND,
    deps=[dg.AssetDep("conversations", partition_mapping=same_partition)],
    partitions_def=part_partitions,
    group_name=GROUP,
    kinds={"mosaicml"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL_AND_FOLLOW,
    pool="cpu",
    code_version=CODE_VERSION,
    check_specs=[
        up_to_date_spec(LONG_VIDEO_KIND),
        whole_spec(LONG_VIDEO_KIND, part_partitions),
    ],
    description=f"""{KINDS[LONG_VIDEO_KIND].description}

MosaicML Streaming shards; the rows of one video stand together, so training reads each feature file
about once.""",
)
def videomarathon_video(
    context: dg.AssetExecutionContext, deployment: Deployment, config: ShardsLaunch
) -> Published:
    from assets.shards.coverage import long_video_coverage
    from assets.shards.part import part_folder
    from assets.shards.workers import measured
    from assets.shards.writer import write_long_video_part

    settings, part = config.applied(deployment.settings()), context.partition_key
    with errors_for_people():
        require_active(deployment.storage(), part)
        samples = product("conversations", part)
        inputs = input_versions(deployment.storage(), [samples])
        report = call(
            context, settings, "cpu",
            measured(deployment.storage(), part_folder(LONG_VIDEO_KIND, part_index(part))),
            write_long_video_part,
            deployment.storage(), settings, part_index(part), context.log.info,
        )  # fmt: skip
        coverage = long_video_coverage(deployment.storage(), samples, report)
    yield from shard_result(context, deployment, config, LONG_VIDEO_KIND, inputs, report, coverage)


@dg.asset(
    deps=[
        *(dg.AssetDep(kind, partition_mapping=all_partitions) for kind in MIXED_READ),
        dg.AssetDep(LONG_VIDEO_KIND, partition_mapping=all_partitions),
    ],
    group_name=GROUP,
    kinds={"mosaicml"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FOLLOW_CONTENT,
    code_version=CODE_VERSION,
    check_specs=[
        up_to_date_spec(layout.MIXTURE),
        check_spec(
            "one_place",
            layout.MIXTURE,
            "No shard stands twice in the mixture, and no sample in two parts of a kind.",
        ),
        check_spec(
            "labels",
            layout.MIXTURE,
            "Samples of every kind, drawn from the mixture and tokenised as in training, have "
            "answers and supervised tokens.",
        ),
    ],
    description="""The stage-3 mixture: two streams of parts, one short and one long; every batch
    comes from one. With `training.long_videos_only` there is the long one alone.

Index files over existing parts: nothing is copied or linked. A new part of long videos joins the
long stream.""",
)
def hourllava_s3(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.shards.checks import labels, one_place
    from assets.shards.coverage import mixture_coverage
    from assets.shards.mixture_views import write_mixture

    storage, settings = deployment.storage(), deployment.settings()
    long_videos_only = settings.training.long_videos_only
    with errors_for_people():
        mend_product(context, deployment)
        check_whole(storage, "catalogue")  # it says which parts there are
        parts = active_parts(storage)
        inputs = input_versions(
            storage,
            [
                *(
                    product(kind, part_name(index))
                    for kind in MIXED_READ
                    for index in range(1, LLAVA_PARTS)
                ),
                *(product(LONG_VIDEO_KIND, part) for part in parts),
            ],
        )
        report = write_mixture(
            storage, [part_index(part) for part in parts], long_videos_only=long_videos_only
        )
        checks = [one_place(storage, parts), labels(storage, settings)]
        given_up = sorted(set(catalogued_parts(storage)) - set(parts))
        coverage = mixture_coverage(storage, settings, inputs, given_up)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=describe_folder(storage, layout.STAGE3_MIXTURE),
        checks=checks,
        coverage=coverage,
        folder=layout.STAGE3_MIXTURE,
        config={"long_videos_only": long_videos_only},
        metadata={"dagster/row_count": report.counts["samples"], "streams": table(report.table)},
    )
