"""The long videos themselves, fetched and verified one part of one source at a time."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.annotations.assets import part_rows
from assets.annotations.rows_versions import rows_version
from assets.automation.rules import DATA, FILL_AND_FOLLOW, RETRY_NETWORK
from assets.deployment.launchpad import VideosLaunch
from assets.deployment.partitions import dimensions, same_part, source_and_part
from assets.deployment.resources import Deployment
from assets.fetching.errors import CoverageError
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
from assets.records.rendering import picture, table
from assets.records.withdrawals import require_active

if TYPE_CHECKING:
    from assets.videos.report import AcquireReport


@dg.asset(
    deps=[dg.AssetDep(part_rows, partition_mapping=same_part)],
    partitions_def=source_and_part,
    group_name="videos",
    kinds={"mp4"},
    owners=OWNERS,
    tags=DATA,
    automation_condition=FILL_AND_FOLLOW,
    pool="download",
    retry_policy=RETRY_NETWORK,
    code_version=CODE_VERSION,
    check_specs=[
        up_to_date_spec("videos"),
        check_spec(
            "coverage",
            "videos",
            "At least the share of the expected videos that the settings ask for is there "
            "(`coverage_threshold`), or all but one of them.",
            source_and_part,
        ),
        check_spec(
            "nothing_more_to_get",
            "videos",
            "No video is missing that another run, or a person, could still get. It only warns.",
            source_and_part,
            blocking=False,
        ),
    ],
    description="""Long videos of one source and one part, each verified before it gets its final
    name.

YouTube and other URLs go through yt-dlp, hub files and archive members through the Hugging Face
client, licensed sets are adopted from a drop folder. What could not be had is a row with its reason
in the catalogue, never a failed run; the run fails when the disk is full, a tool is missing, or
fewer videos are present than `download.coverage_threshold` asks for. Run it again to retry what
failed in passing; finished files are never fetched again. For one run, the launchpad takes reasons
to retry, another threshold, and the number of downloads at a time. `hourllava why SOURCE/ID` tells
what became of one video.""",
)
def videos(
    context: dg.AssetExecutionContext, deployment: Deployment, config: VideosLaunch
) -> Published:
    from assets.videos.acquire import acquire_part
    from assets.videos.checks import coverage
    from assets.videos.report import durations_picture, read_report, video_entries

    storage, keys = deployment.storage(), dimensions(context)
    source, part = keys["source"], keys["part"]
    settings = config.applied(deployment.settings(), source)
    with errors_for_people():
        require_active(storage, part)
        mend_product(context, deployment)
        inputs = rows_version(storage, part)
        try:
            report = acquire_part(storage, settings, source, part, context.log.info)
        except CoverageError:  # the check says so, with everything that is known of it
            report = read_report(storage, source, part)
    yield from publish(
        context,
        deployment,
        version=report.version,
        inputs=inputs,
        counts=report.counts,
        files=video_entries(storage, source, part),
        checks=coverage(report, settings),
        config=config.chosen(),
        metadata={
            **videos_metadata(report),
            "durations": picture(durations_picture(storage, source, part), "durations"),
        },
    )


def videos_metadata(report: "AcquireReport") -> dict[str, Any]:
    """What an acquisition shows of itself."""
    return {
        "coverage": report.coverage,
        "hours": round(report.hours, 3),
        "bytes": report.bytes,
        "outcomes": table(report.table),
        "question-answer pairs lost": report.lost_rows,
        "duplicates": report.duplicates or None,
        "throughput": table(report.throughput),
        "refusals": table(report.refusals) if report.refusals else None,
        "notes": report.notes,
    }
