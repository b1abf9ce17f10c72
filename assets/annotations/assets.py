"""Annotation rows, the catalogue of expected videos, and the outside data that is watched."""

import dagster as dg

from assets.automation.rules import DATA, FOLLOW_CONTENT, LOOKED_AT, RETRY_NETWORK, WATCHED
from assets.deployment.graph import COLLECTIONS
from assets.deployment.partitions import all_partitions, part_partitions
from assets.deployment.resources import Deployment
from assets.records.lineage import input_versions
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
from assets.records.rendering import column_schema, table
from assets.records.withdrawals import active_parts
from training.formats import layout
from training.formats.receipts import describe_files

GROUP = "sources"
LANDING = "landing"
# Rows that were written about own videos land by themselves.
WRITTEN = [dg.AssetDep("questions", partition_mapping=all_partitions)]


def _watched(name: str, kind: str, description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        deps=WRITTEN if name == LANDING else [],
        group_name=GROUP,
        kinds={kind},
        owners=OWNERS,
        tags=WATCHED,
        description=description,
        freshness_policy=LOOKED_AT,
    )


landing = _watched(
    LANDING,
    "file",
    "The landing folder (`landing` in the settings): question-answer files that people put there, "
    "and the rows that were written about own videos (`questions`). They become a new part. The "
    "sensor `watch_outside_data` records a version when something lands.",
)
hub_annotations = _watched(
    "hub_annotations",
    "huggingface",
    "The hub's question-answer rows (`annotations.repo`); its version is the commit that the "
    "revision is now.",
)
# Asset that holds a collection -> what is watched of it.
hub_collections = {
    collection: _watched(
        f"hub_{collection}",
        "huggingface",
        f"{name} on the hub (`collections.{setting}`); its version is the commit of the revision.",
    )
    for collection, name, setting in (
        ("llava_onevision", "LLaVA-OneVision", "onevision_repo"),
        ("llava_video", "LLaVA-Video-178K", "video_repo"),
    )
    if collection in COLLECTIONS
}
hub_specs = list(hub_collections.values())


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
        up_to_date_spec("annotations"),
        check_spec(
            "usable",
            "annotations",
            "Few rows were set aside (`shards.max_drop_share`), and every annotation file could be "
            "read.",
            blocking=False,
        ),
    ],
    description="""Question-answer rows about long videos, one row a question, in one Parquet file.

Read from the Hugging Face dataset or the files that the settings name (`annotations`), and from
the landing folder. They hold what these files say today: of rows with the same id, or without one
with the same video and question, the last one counts, and rows that were removed are gone. Rows
that cannot be used are set aside in `annotations.rejected.parquet`, with their reason. Materialize
it again to pick up a new revision, a landing or a correction.""",
)
def annotations(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.annotations.checks import usable
    from assets.annotations.collect import collect_annotations
    from assets.annotations.landing import written_versions
    from assets.annotations.tables import SCHEMA
    from assets.annotations.watched import HUB_ANNOTATIONS, watched_version
    from assets.records.columns import ANNOTATIONS

    settings, storage = deployment.settings(), deployment.storage()
    with errors_for_people():
        # Before it is read: what lands meanwhile is then newer than what is recorded.
        looked_at = {name: watched_version(name, settings) for name in (LANDING, HUB_ANNOTATIONS)}
        written = written_versions(storage, settings)
        mend_product(context, deployment)
        report = collect_annotations(storage, settings, context.log.info)
    rejected = [{"reason": reason, "rows": rows} for reason, rows in report.rejected.items()]
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=report.origins | looked_at | written,
        counts=report.counts,
        files=KnownFiles(storage, own_name(context)).describe(report.files),
        checks=[usable(report, settings)],
        metadata={
            "dagster/row_count": report.counts["rows"],
            "dagster/uri": storage.path(layout.ANNOTATIONS),
            "bytes": storage.size(layout.ANNOTATIONS),
            "columns found": report.columns,
            "rows since the collection before": table(
                [{"what": what, "rows": rows} for what, rows in report.changes.items()]
            ),
            "changed files": table(report.changed_files),
            "rejected": table(rejected),
            "origins": report.origins,
            "files": table(report.read),
            "files that could not be read": report.problems,
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
    check_specs=[up_to_date_spec("catalogue")],
    description="""One row for each video that the annotations ask for: where it comes from and what
    became of it.

Videos are dealt to parts by a stable hash, and the parts are registered as Dagster partitions. A
video stays in its part for ever: videos that appear later, from the landing folder, form a new
part. It also records each part's version of its rows (`part_rows`), which the assets of a part
follow.""",
)
def catalogue(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
    from assets.annotations.build import build_catalogue
    from assets.annotations.catalogue import SCHEMA
    from assets.annotations.nothing_to_fetch import record_nothing_to_fetch
    from assets.annotations.rows_versions import record_rows
    from assets.records.columns import CATALOGUE

    settings, storage = deployment.settings(), deployment.storage()
    with errors_for_people():
        mend_product(context, deployment)
        inputs = input_versions(storage, ["annotations"])
        report = build_catalogue(storage, settings, context.log.info)
    # A part that was given up does not come back with new data.
    parts = active_parts(storage)
    context.instance.add_dynamic_partitions(str(part_partitions.name), parts)
    rows = {part: report.rows[part] for part in parts}
    told = record_rows(storage, context.instance, rows, inputs, context.run_id)
    record_nothing_to_fetch(storage, settings, context.instance)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=describe_files(storage, [layout.PARTS]),
        folder=layout.CATALOGUE,
        metadata={
            "dagster/row_count": report.counts["videos"],
            "parts": report.parts,
            "parts with other rows than before": told,
            "videos": table([row for row in report.table if row["videos"]]),
            **column_schema(SCHEMA, CATALOGUE),
        },
    )


part_rows = dg.AssetSpec(
    "part_rows",
    deps=[catalogue],
    partitions_def=part_partitions,
    group_name=GROUP,
    kinds={"parquet"},
    owners=OWNERS,
    tags=WATCHED,
    description="The question-answer rows of one part. Its version is a hash of what the rows say; "
    "`catalogue` records it where it changed, so that a corrected or removed row reaches its own "
    "part and no other.",
)
