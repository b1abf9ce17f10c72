"""The plain nightly schedule: what of the videos may be had tonight is asked for again.

The automation asks for each new part once. What failed in passing, what was never tried, what a person has dropped into
a folder since: that is asked for here, one run for each source and part in which something may have changed.
"""

import os

import dagster as dg
import pyarrow.compute as pc

from assets.annotations.catalogue import (
    EXHAUSTED,
    MANUAL_MISSING,
    PENDING,
    TRANSIENT,
    read_catalogue,
    snapshot_name,
)
from assets.deployment.partitions import part_partitions
from assets.deployment.parts import part_index
from assets.deployment.resources import Deployment
from assets.deployment.settings import DropSource, Settings, YoutubeSource, load_settings
from pipeline.jobs import ACQUIRE_VIDEOS
from training.formats.storage import Storage

IN_THE_EVENING = (
    "0 20 * * *"  # six hours before trainings may start (`assets.deployment.automation.NIGHTLY`)
)
VIDEOS = dg.AssetKey("videos")
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


# Running from the first start where data follows by itself, because it only repeats what was begun: without a catalogue
# it asks for nothing, and without the owner's consent to YouTube's terms never for that source.
@dg.schedule(
    name="download_nightly",
    target=ACQUIRE_VIDEOS,
    cron_schedule=IN_THE_EVENING,
    default_status=dg.DefaultScheduleStatus.RUNNING
    if load_settings().automation.data
    else dg.DefaultScheduleStatus.STOPPED,
    description="Every evening (UTC), one run for each source and part with videos that were never tried, that failed "
    "in passing (as often as one run tries), or whose drop folder has changed. What cannot be had is left alone.",
)
def download_nightly(context: dg.ScheduleEvaluationContext, deployment: Deployment):
    settings, storage = deployment.settings(), deployment.storage()
    parts = sorted(
        context.instance.get_dynamic_partitions(str(part_partitions.name)), key=part_index
    )
    night = context.scheduled_execution_time.date().isoformat()
    busy = partitions_in_progress(context.instance)
    requests, waiting = [], []
    for part in parts:
        for source in sorted(settings.sources):
            key = dg.MultiPartitionKey({"part": part, "source": source})
            if not may_be_had(storage, settings, source, part):
                continue
            if key in busy:
                waiting.append(str(key))
            else:
                requests.append(dg.RunRequest(run_key=f"{night}:{key}", partition_key=key))
    if requests:
        return requests
    if waiting:
        return dg.SkipReason(f"still being fetched: {', '.join(waiting)}")
    return dg.SkipReason(
        "every video is there, given up or waits for a person" if parts else "no parts yet"
    )


def may_be_had(storage: Storage, settings: Settings, source: str, part: str) -> bool:
    """Whether another try could bring a video of a source and part that is not there."""
    chosen = settings.sources[source]
    if isinstance(chosen, YoutubeSource) and not chosen.accept_terms:
        return False
    if not storage.exists(snapshot_name(source, part)):
        return False
    table = read_catalogue(storage, source, part)
    if set(table["status"].to_pylist()) & {PENDING, TRANSIENT, EXHAUSTED}:
        return True
    missing = table.filter(pc.equal(table["status"], MANUAL_MISSING))
    if not missing.num_rows or not isinstance(chosen, DropSource):
        return False
    looked = pc.max(missing["updated_at"]).as_py()
    return looked is None or any(
        os.stat(folder).st_mtime > looked for folder, _, _ in os.walk(chosen.folder)
    )


def partitions_in_progress(instance: dg.DagsterInstance) -> set[str]:
    """Source-and-part keys of `videos` that a queued or running run is about."""
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    about = [
        run
        for run in runs
        if run.job_name == ACQUIRE_VIDEOS.name or VIDEOS in (run.asset_selection or ())
    ]
    return {run.tags["dagster/partition"] for run in about if "dagster/partition" in run.tags}
