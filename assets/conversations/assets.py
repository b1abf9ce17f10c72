"""Question-answer rows of one part as multi-turn samples."""

import dagster as dg

from assets.annotations.assets import part_rows
from assets.annotations.rows_versions import rows_version
from assets.automation.rules import DATA, FILL_AND_FOLLOW, FOLLOW_CONTENT
from assets.deployment.partitions import (
    all_partitions,
    part_partitions,
    same_part,
    same_partition,
)
from assets.deployment.parts import part_index
from assets.deployment.resources import Deployment
from assets.engines.call import call
from assets.records.lineage import check_whole, input_versions, product
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
from assets.records.rendering import column_schema, drops, samples
from assets.records.withdrawals import active_parts, require_active
from assets.videos.assets import videos
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import describe_files


@dg.asset(
    deps=[
        dg.AssetDep(part_rows, partition_mapping=same_partition),
        dg.AssetDep(videos, partition_mapping=same_part),
    ],
    partitions_def=part_partitions,
    group_name="conversations",
    kinds={"parquet"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL_AND_FOLLOW,
    pool="cpu",
    code_version=CODE_VERSION,
    check_specs=[
        up_to_date_spec("conversations"),
        check_spec(
            "sound",
            "conversations",
            "Every sample has a name of its own and a video that is there, and every question in "
            "it an answer.",
            part_partitions,
        ),
    ],
    description="""Up to five question-answer pairs of one video become one multi-turn sample.

Which pairs come together is decided by a seeded hash, so the order of the rows never matters. Only
videos that are there are used; rows without one, without an answer, duplicates, and rows about
videos that are held out (`evaluation.held_out_share`) are counted by reason.""",
)
def conversations(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.conversations.checks import sound
    from assets.conversations.grouping import group_part
    from assets.conversations.samples import SCHEMA
    from assets.records.columns import CONVERSATIONS

    settings, storage = deployment.settings(), deployment.storage()
    part = context.partition_key
    fetched = [product("videos", f"{part}|{source}") for source in sorted(settings.sources)]
    with errors_for_people():
        require_active(storage, part)
        mend_product(context, deployment)
        check_whole(storage, "annotations")  # the rows of all parts are in one file
        inputs = rows_version(storage, part) | input_versions(storage, fetched)
        report = call(
            context, settings, "cpu", None, group_part,
            storage, settings, part_index(part), context.log.info,
        )  # fmt: skip
        verdict = sound(storage, settings, part_index(part))
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=describe_files(
            storage, [layout.conversations(part), layout.rejected_conversations(part)]
        ),
        checks=[verdict],
        coverage=report.coverage,
        config={
            "turns_per_sample": settings.shards.turns_per_sample,
            "seed": settings.shards.seed,
            "held_out_share": settings.held_out_share,
        },
        metadata={
            "dagster/row_count": report.counts["samples"],
            "hours of video": verdict.facts["hours"],
            "rows not used": drops(report.counts),
            **samples(report.examples),
            **column_schema(SCHEMA, CONVERSATIONS),
        },
    )


@dg.asset(
    deps=[dg.AssetDep(conversations, partition_mapping=all_partitions)],
    group_name="conversations",
    kinds={"json"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FOLLOW_CONTENT,
    pool="cpu",
    code_version=CODE_VERSION,
    check_specs=[up_to_date_spec("videomarathon_json")],
    description="""All grouped conversations in one file in LLaVA's format, for people and for other
    tools.

The pipeline itself reads the Parquet files of the parts.""",
)
def videomarathon_json(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.conversations.export import export_llava_json

    storage = deployment.storage()
    with errors_for_people():
        mend_product(context, deployment)
        parts = active_parts(storage)
        inputs = input_versions(storage, [product("conversations", part) for part in parts])
        samples = call(
            context, deployment.settings(), "cpu", None, export_llava_json,
            storage, [part_index(part) for part in parts], context.log.info,
        )  # fmt: skip
    yield from publish(
        context,
        deployment,
        version=data_version(inputs),
        inputs=inputs,
        counts={"samples": samples},
        files=describe_files(storage, [layout.CONVERSATIONS_JSON]),
        metadata={
            "dagster/row_count": samples,
            "bytes": storage.size(layout.CONVERSATIONS_JSON),
            "dagster/uri": storage.path(layout.CONVERSATIONS_JSON),
        },
    )
