"""What the settings name: the storage root, the hub, Dagster's instance."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from assets.deployment.settings import Settings
from assets.sources.findings import Finding, missing, note, ok
from model.atomic import TEMPORARY_PREFIX
from pipeline.doctor.machine import GIB
from pipeline.estimate.installed import nearest_folder
from training.formats.storage import Storage

# From so many partitions upstream of an unpartitioned asset on, Dagster no longer computes whether
# it is stale; docs/operations.md says what follows.
MANY_PARTS = 100


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Whether files can be written below the root, and how much room there is."""
    try:
        storage = Storage(settings.root)
    except (ImportError, ValueError) as error:
        extra = settings.root.partition(":")[0]
        advice = f"pip install 'hour-llava[{extra}]'"
        yield missing("storage root", f"{settings.root}: {error}", advice)
        return
    try:
        _try_writing(storage)
    except Exception as error:  # object stores raise whatever their client does
        found = f"{storage.root}: {type(error).__name__}: {error}"
        advice = "make it writable for this user, or set root in the settings to a place that is"
        yield missing("storage root", found, advice)
        return
    yield ok("storage root", f"{storage.root} can be written")
    work = nearest_folder(Path(storage.root) if storage.is_local else storage.cache)
    free, least = shutil.disk_usage(work).free, settings.download.min_free_bytes
    found = f"{free / GIB:.1f} GiB free at {work}, downloads stop below {least / GIB:.1f} GiB"
    if free < least:
        yield missing("disk", found, "free some space, or lower download.min_free_bytes")
    else:
        yield ok("disk", found)


def _try_writing(storage: Storage) -> None:
    """Write an empty file and remove it again; makes no folder of a local root that is not there.

    Raises:
        Exception: whatever the storage raises where that cannot be done.
    """
    name = f"{TEMPORARY_PREFIX}doctor-{uuid.uuid4().hex}"
    if storage.is_local:
        file = nearest_folder(Path(storage.root)) / name
        file.write_bytes(b"")
        file.unlink()
    else:
        storage.write_bytes(name, b"")
        storage.fs.rm(f"{storage.base}/{name}")


def check_hub(settings: Settings) -> Iterator[Finding]:
    """Whether there is a token for the Hugging Face hub; never what it is."""
    from huggingface_hub import get_token

    where = settings.hub_endpoint or "the hub"
    if get_token():
        yield ok("hub token", f"there is one, for {where}")
    else:
        advice = (
            "set HF_TOKEN for gated data sets (after agreeing on their page) and for higher rate "
            "limits"
        )
        yield note("hub token", f"none; {where} is asked anonymously", advice)


def check_instance(home: Path) -> Iterator[Finding]:
    """Whether Dagster's storage answers, and whether the parts are so many that it says less."""
    from dagster import DagsterInstance

    what, file = "Dagster instance", home / "dagster.yaml"
    if not file.exists():
        advice = (
            "start from the repository root, or point DAGSTER_HOME to the folder with dagster.yaml"
        )
        yield missing(what, f"no {file}", advice)
        return
    try:
        # Relative folders of dagster.yaml count from the folder that Dagster is started in.
        with contextlib.chdir(home), DagsterInstance.from_config(str(home)) as instance:
            runs, storage = instance.get_runs_count(), type(instance.run_storage).__name__
            parts = len(instance.get_dynamic_partitions("part"))
    except Exception as error:  # bad settings, a missing package, a database that is away
        advice = f"check the storage section of {file}, and the variables that it names"
        yield missing(what, _first_line(error), advice)
        return
    yield ok(what, f"{home}: {storage} with {runs:,} runs")
    if parts >= MANY_PARTS:
        advice = (
            "let data_automation renew the mixture, or do so after every landing: the UI will not "
            "say that it is due"
        )
        yield note("parts", f"{parts}: from {MANY_PARTS} on Dagster shows no stale mixture", advice)


def _first_line(error: Exception) -> str:
    from dagster import DagsterInvalidConfigError

    said = error.errors[0].message if isinstance(error, DagsterInvalidConfigError) else str(error)
    return f"{type(error).__name__}: {said.strip().splitlines()[0]}"
