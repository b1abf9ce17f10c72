"""The long videos themselves, fetched and verified one part of one source at a time."""

import dagster as dg

from assets.automation import DATA, FILL
from assets.lineage import input_versions
from assets.partitions import dimensions, source_and_part
from assets.reporting import CODE_VERSION, OWNERS, errors_for_people, publish, table
from assets.resources import Deployment
from assets.sources.assets import catalogue


@dg.asset(
    deps=[dg.AssetDep(catalogue, partition_mapping=dg.AllPartitionMapping())],
    partitions_def=source_and_part,
    group_name="videos",
    kinds={"mp4"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL,
    pool="download",
    code_version=CODE_VERSION,
    description="""Long videos of one source and one part, each verified before it gets its final name.

YouTube and other URLs go through yt-dlp, hub files and archive members through the Hugging Face client, licensed sets
are adopted from a drop folder. What could not be had is a row with its reason in the catalogue, never a failed run;
the run fails when the disk is full, a tool is missing, or fewer videos are present than `download.coverage_threshold`
asks for. Run it again to retry what failed in passing; finished files are never fetched again.""",
)
def videos(context: dg.AssetExecutionContext, deployment: Deployment) -> dg.MaterializeResult:
    from assets.videos.acquire import acquire_part

    keys = dimensions(context)
    with errors_for_people():
        inputs = input_versions(deployment.storage(), ["catalogue"])
        report = acquire_part(
            deployment.storage(), deployment.settings(), keys["source"], keys["part"], context.log.info
        )
    return publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        metadata={
            "coverage": report.coverage,
            "hours": report.hours,
            "bytes": report.bytes,
            "outcomes": table(report.table),
            "question-answer pairs lost": report.lost_rows,
            "bytes a second": report.bytes_per_s,
            "notes": report.notes,
        },
    )
