"""The nightly schedule: runs again the downloads that may bring something new.

The automation asks for each new part, and again when its rows change. This schedule asks again for
what failed temporarily, what was never tried, and what was decided by something that has changed
since (a setting, a dropped file, a hub's revision): one run for each source and part in which
something may have changed.
"""

import dagster as dg

from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings
from assets.records.withdrawals import active_parts
from assets.videos.due import DueDownloads
from pipeline.integrity import check_integrity
from pipeline.jobs import ACQUIRE_VIDEOS

_AUTOMATION = load_settings().automation
VIDEOS = dg.AssetKey("videos")
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


# Where data follows by itself this runs from the first start, because it only repeats what was
# begun: without a catalogue it asks for nothing, and without the owner's consent to YouTube's terms
# never for that source.
@dg.schedule(
    name="download_nightly",
    target=ACQUIRE_VIDEOS,
    cron_schedule=_AUTOMATION.downloads_at,
    execution_timezone=_AUTOMATION.time_zone,
    default_status=dg.DefaultScheduleStatus.RUNNING
    if _AUTOMATION.data
    else dg.DefaultScheduleStatus.STOPPED,
    description="Every evening, one run for each source and part with videos that were never "
    "tried, that failed in passing (as often as one run tries), or whose outcome was decided by "
    "something that has changed since: a setting, a dropped file, a revision of the hub. What "
    "cannot be had is left alone.",
)
def download_nightly(
    context: dg.ScheduleEvaluationContext, deployment: Deployment
) -> list[dg.RunRequest] | dg.SkipReason:
    settings, storage = deployment.settings(), deployment.storage()
    parts, downloads = active_parts(storage), DueDownloads(storage, settings)
    due = [
        dg.MultiPartitionKey({"part": part, "source": source})
        for part in parts
        for source in sorted(settings.sources)
        if downloads.is_due(source, part)
    ]
    running = partitions_in_progress(context.instance)
    night = context.scheduled_execution_time.date().isoformat()
    requests = [
        dg.RunRequest(run_key=f"{night}:{key}", partition_key=key)
        for key in due
        if key not in running
    ]
    if requests:
        return requests
    if due:
        return dg.SkipReason(f"still being fetched: {', '.join(map(str, due))}")
    if not parts:
        return dg.SkipReason("no parts yet")
    return dg.SkipReason("every video is there, given up or waits for a person")


check_integrity_nightly = dg.ScheduleDefinition(
    name="check_integrity_nightly",
    job=check_integrity,
    cron_schedule=_AUTOMATION.integrity_at,
    execution_timezone=_AUTOMATION.time_zone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night (`automation.integrity_at`), reads as many bytes of what was made as "
    "`integrity.bytes_per_night` says. What is damaged becomes a failed check `intact`.",
)


def partitions_in_progress(instance: dg.DagsterInstance) -> set[str]:
    """Source-and-part keys of `videos` that a queued or running run makes."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    fetching = [
        run
        for run in runs
        if run.job_name == ACQUIRE_VIDEOS.name or VIDEOS in (run.asset_selection or ())
    ]
    return {run.tags["dagster/partition"] for run in fetching if "dagster/partition" in run.tags}
