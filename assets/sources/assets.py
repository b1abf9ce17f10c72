"""Annotation rows, the catalogue of expected videos, and the two other collections."""

from collections.abc import Callable

import dagster as dg

from assets.automation import DATA, FOLLOW_CONTENT, RETRY_NETWORK, WATCHED
from assets.lineage import input_versions
from assets.reporting import (
    CODE_VERSION,
    OWNERS,
    Published,
    check_spec,
    column_schema,
    errors_for_people,
    publish,
    table,
)
from assets.resources import Deployment
from assets.settings import Settings
from assets.sources.collections import CollectionReport, collect_llava_video, collect_onevision
from training.storage import Storage

GROUP = "sources"
Collect = Callable[[Storage, Settings, Callable[[str], None]], CollectionReport]

landing, hub_annotations, hub_llava_onevision, hub_llava_video = (
    dg.AssetSpec(name, group_name=GROUP, kinds={kind}, owners=OWNERS, tags=WATCHED, description=description)
    for name, kind, description in (
        (
            "landing",
            "file",
            "The landing folder (`landing` in the settings): question-answer files that people put there. They become "
            "a new part. The sensor `watch_outside_data` records a version when something lands.",
        ),
        (
            "hub_annotations",
            "huggingface",
            "The hub's question-answer rows (`annotations.repo`); its version is the commit that the revision is now.",
        ),
        (
            "hub_llava_onevision",
            "huggingface",
            "LLaVA-OneVision on the hub (`collections.onevision_repo`); its version is the commit of the revision.",
        ),
        (
            "hub_llava_video",
            "huggingface",
            "LLaVA-Video-178K on the hub (`collections.video_repo`); its version is the commit of the revision.",
        ),
    )
)


@dg.asset(
    deps=[landing, hub_annotations],
    group_name=GROUP,
    kinds={"huggingface", "parquet"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FOLLOW_CONTENT,
    pool="download",
    retry_policy=RETRY_NETWORK,
    code_version=CODE_VERSION,
    check_specs=[
        check_spec(
            "usable",
            "annotations",
            "Few rows were set aside (`shards.max_drop_share`), and every file in the landing folder could be read.",
            blocking=False,
        )
    ],
    description="""Question-answer rows about long videos, one row a question, in one Parquet file.

Read from the Hugging Face dataset or the files that the settings name (`annotations`); a hub revision is resolved once
and recorded. Rows that cannot be used are set aside in `annotations.rejected.parquet`, with their reason. Materialize
it again to pick up a new revision.""",
)
def annotations(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.columns import ANNOTATIONS
    from assets.sources.annotations import ANNOTATIONS as FILE
    from assets.sources.annotations import SCHEMA, collect_annotations
    from assets.sources.checks import usable

    settings, storage = deployment.settings(), deployment.storage()
    with errors_for_people():
        report = collect_annotations(storage, settings, context.log.info)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=report.origins,
        counts=report.counts,
        checks=[usable(report, settings)],
        metadata={
            "dagster/row_count": report.counts["rows"],
            "dagster/uri": storage.path(FILE),
            "bytes": storage.size(FILE),
            "columns found": report.columns,
            "rejected": table([{"reason": reason, "rows": rows} for reason, rows in report.rejected.items()]),
            "origins": report.origins,
            "landing files that could not be read": report.problems,
            **column_schema(SCHEMA, ANNOTATIONS),
        },
    )


@dg.asset(
    deps=[annotations],
    group_name=GROUP,
    kinds={"parquet"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FOLLOW_CONTENT,
    code_version=CODE_VERSION,
    description="""One row for each video that the annotations ask for: where it comes from and what became of it.

Videos are dealt to parts by a stable hash, and the parts are registered as Dagster partitions. A part never changes
once it is catalogued: videos that appear later, from the landing folder, form a new part.""",
)
def catalogue(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.columns import CATALOGUE
    from assets.partitions import part_partitions
    from assets.videos.catalogue import SCHEMA, build_catalogue

    with errors_for_people():
        inputs = input_versions(deployment.storage(), ["annotations"])
        report = build_catalogue(deployment.storage(), deployment.settings(), context.log.info)
    context.instance.add_dynamic_partitions(str(part_partitions.name), report.parts)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        folder="VideoMarathon/catalogue",
        metadata={
            "dagster/row_count": report.counts["videos"],
            "parts": report.parts,
            "videos": table([row for row in report.table if row["videos"]]),
            **column_schema(SCHEMA, CATALOGUE),
        },
    )


def make_collection(
    name: str, folder: str, watched: dg.AssetSpec, kind: str, collect: Collect, description: str
) -> dg.AssetsDefinition:
    """The asset of one of the LLaVA collections, fetched by ``collect`` into ``folder``."""

    @dg.asset(
        name=name,
        deps=[watched],
        group_name=GROUP,
        kinds={"huggingface", kind},
        owners=OWNERS,
        tags=DATA,
        automation_condition=FOLLOW_CONTENT,
        pool="download",
        retry_policy=RETRY_NETWORK,
        code_version=CODE_VERSION,
        check_specs=[
            check_spec("all_there", name, "The hub has every annotation file that the mixture names.", blocking=False)
        ],
        description=description,
    )
    def collection(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        from assets.sources.checks import all_there

        with errors_for_people():
            report = collect(deployment.storage(), deployment.settings(), context.log.info)
        yield from publish(
            context,
            deployment,
            version=report.version,
            inputs=report.origins,
            counts=report.counts,
            checks=[all_there(report)],
            folder=folder,
            metadata={
                "dagster/row_count": report.counts.get("rows", 0),
                "annotation files": table(report.table),
                "origins": report.origins,
            },
        )

    return collection


llava_onevision = make_collection(
    "llava_onevision",
    "LLaVA-OneVision",
    hub_llava_onevision,
    "jpeg",
    collect_onevision,
    """LLaVA-OneVision: single images, several images and text, as annotation files beside image files.

Only the sets that the mixture names (`assets/shards/mixtures.csv`, or the settings' own) are fetched. Images keep the
bytes that the hub serves. Sets that the hub does not have are listed.""",
)
llava_video = make_collection(
    "llava_video",
    "LLaVA-Video-178K",
    hub_llava_video,
    "mp4",
    collect_llava_video,
    """LLaVA-Video-178K: short videos, unpacked from their archives as they stream in, and annotation files.

Only folders that the mixture names are fetched. Archives are never kept; what they hold is checked on the way.""",
)
