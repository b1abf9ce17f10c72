"""Writes one part of one kind as MDS shards: in parallel, in bounded memory, resumable, the same
bytes every time.

A part is cut into tasks of `rows_per_shard` rows each. Finished tasks stay in a work folder
beside the part, so a run that was killed is continued. When all are done the shards move into a
fresh folder, which is published by one rename.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from assets.collections.mixtures import read_mixture
from assets.conversations.grouping import conversations_name
from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.settings import Settings
from assets.deployment.settings import Shards as ShardSettings
from assets.records.lineage import Lineage, record_name
from assets.shards.images import ImagePolicy
from assets.shards.part import (
    ShardReport,
    check_drops,
    finished_part,
    mendable_part,
    part_folder,
    part_report,
    publish_part,
    set_aside_damaged_shards,
)
from assets.shards.planning import plan_part
from assets.shards.tasks import PICTURE, ConversationRows, LlavaRows, ShardTask
from assets.shards.workers import run_tasks, work_folder, worker_pool
from training.formats.hashing import data_version, hash_file, hash_file_xxh64
from training.formats.kinds import KINDS, LONG_VIDEO_KIND
from training.formats.sample import SCHEMA_VERSION
from training.formats.storage import Storage
from training.progress import Progress

# What the tasks of the first and of the second half of a part read.
Halves = tuple[list[LlavaRows] | list[ConversationRows], list[LlavaRows] | list[ConversationRows]]


def write_kind_part(
    storage: Storage, settings: Settings, kind: str, part: int, log: Callable[[str], None]
) -> ShardReport:
    """Write one part of a kind of the LLaVA collections, from the annotation files that the mixture
    names.

    Raises:
        ValueError: the mixture or an annotation file is broken, files are missing and
            `require_all` asks for them, or more rows are unusable than `max_drop_share` allows.
    """
    collections, shards = settings.collections, settings.shards
    mixture = read_mixture(collections.mixtures, collections.skip)
    entries = [entry for entry in mixture if entry.kind == kind]
    with worker_pool(shards.workers) as pool:
        plan = plan_part(storage, entries, part, LLAVA_PARTS, shards.seed, pool)
        if plan.missing:
            listing = ", ".join(plan.missing[:10]) + (", ..." if len(plan.missing) > 10 else "")
            if collections.require_all:
                raise ValueError(
                    f"{kind}: {len(plan.missing)} of {len(entries)} annotation files are missing "
                    f"under {storage.root}: {listing}; materialize the collection, change "
                    "collections.mixtures, or unset require_all"
                )
            log(
                f"{kind}: {len(plan.missing)} of {len(entries)} annotation files are not there: "
                f"{listing}"
            )
        rows = halves(
            plan.rows.places,
            shards.rows_per_shard,
            lambda places: LlavaRows(plan.rows.names, places),
        )
        inputs = {name: hash_file(storage.local(name)) for name in plan.rows.names}
        inputs |= _collection_version(storage, kind)
        return write_part(
            storage, kind, part, rows, inputs, shards, log, pool=pool, missing=plan.missing
        )


def _collection_version(storage: Storage, kind: str) -> dict[str, str]:
    """Version of the collection that a kind reads, where the pipeline made it: images and videos
    are inputs too.
    """
    name = KINDS[kind].collection
    return {name: Lineage.read(storage, name).version} if storage.exists(record_name(name)) else {}


def write_long_video_part(
    storage: Storage, settings: Settings, part: int, log: Callable[[str], None]
) -> ShardReport:
    """Write one part of the long-video kind from its grouped conversations; the rows of one video
    stand together.

    Raises:
        FileNotFoundError: the part's conversations were not made.
        ValueError: more rows are unusable than `max_drop_share` allows.
    """
    name, shards = conversations_name(part), settings.shards
    if not storage.exists(name):
        raise FileNotFoundError(
            f"{storage.path(name)} is not there; materialize conversations[{part_name(part)}]"
        )
    total = pq.read_metadata(storage.local(name)).num_rows
    rows = halves(
        np.arange(total),
        shards.rows_per_shard,
        lambda chunk: ConversationRows(name, int(chunk[0]), int(chunk[-1]) + 1),
    )
    inputs = {name: hash_file(storage.local(name))}
    with worker_pool(shards.workers) as pool:
        return write_part(storage, LONG_VIDEO_KIND, part, rows, inputs, shards, log, pool=pool)


def write_part(
    storage: Storage,
    kind: str,
    part: int,
    rows: Halves,
    inputs: dict[str, str],
    shards: ShardSettings,
    log: Callable[[str], None],
    *,
    pool: Executor | None = None,
    missing: Sequence[str] = (),
) -> ShardReport:
    """Write shards, `index.json` and `manifest.json` of one part, or continue where an earlier
    run was killed.

    A part that was made from the same inputs with the same settings, and lost no row, is left as it
    is.

    Args:
        rows: what each task of the first and of the second half of the part reads, in order.
        inputs: name -> content hash of what the rows are read from; with the settings it decides
            whether the work of an earlier run can be used.
        missing: annotation files that were asked for and are not there; reported.
    """
    folder = part_folder(kind, part)
    images = ImagePolicy(shards.reencode)
    config = {
        "schema": SCHEMA_VERSION,
        "rows_per_shard": shards.rows_per_shard,
        "seed": shards.seed,
        "images": asdict(images),
    }
    first, second = rows
    key = data_version({"config": config, "inputs": inputs, "tasks": [len(first), len(second)]})
    set_aside_damaged_shards(storage, kind, part, log)
    if found := finished_part(storage, folder, key):
        log(
            f"{kind} {part_name(part)}: inputs and settings have not changed, and its files are "
            "whole; the part is left as it is"
        )
        return found
    with work_folder(storage, folder, key) as work:
        tasks = [
            ShardTask(index, kind, storage.root, storage.cache, work, task_rows, images)
            for index, task_rows in enumerate((*first, *second))
        ]
        if gone := mendable_part(storage, folder, key):
            _write_missing(storage, folder, gone, tasks, pool, log)
            if found := finished_part(storage, folder, key):
                log(f"{kind} {part_name(part)}: {len(gone):,} of its files were written again")
                return found
        results = run_tasks(tasks, pool, Progress(log, len(tasks), "shards"))
        report = part_report(results, config)
        report.missing = list(missing)
        report.counts["annotation files missing"] = len(missing)
        check_drops(kind, part, report, shards.max_drop_share)
        if (work / PICTURE).exists():
            report.picture = (work / PICTURE).read_bytes()
        publish_part(storage, folder, work, results, len(first), report, key)
    for reason, number in report.drops.items():
        log(f"{kind} {part_name(part)}: {number:,} rows dropped: {reason}")
    for line in report.named:
        log(f"dropped {line}")
    return report


def _write_missing(
    storage: Storage,
    folder: str,
    missing: Mapping[str, str],
    tasks: Sequence[ShardTask],
    pool: Executor | None,
    log: Callable[[str], None],
) -> None:
    """Write files of a finished part again that are not there: the same rows give the same bytes.

    A file with other bytes than before is not published: the caller then writes the whole part.

    Args:
        missing: name -> xxh64, as the part's manifest has them.
    """
    needed = {0 if name == PICTURE else int(name.split(".")[1]) for name in missing}
    todo = [task for task in tasks if task.index in needed]
    run_tasks(todo, pool, Progress(log, len(todo), "shards"))
    for name, expected in missing.items():
        written = tasks[0].folder / name
        if written.exists() and hash_file_xxh64(written) == expected:
            with storage.writing(f"{folder}/{name}") as target:
                shutil.copyfile(written, target)


def halves(rows: np.ndarray, most: int, task_rows: Callable[[np.ndarray], Any]) -> Halves:
    """Tasks of at most `most` rows. None of them reaches over the middle, so that each half of a
    part is a list of whole shards.

    Args:
        rows: int64 [n] or [n, k]: numbers or places of rows.
        task_rows: makes what a task reads out of some of them.
    """
    middle = len(rows) // 2
    first, second = rows[:middle], rows[middle:]
    return (
        [task_rows(first[start : start + most]) for start in range(0, len(first), most)],
        [task_rows(second[start : start + most]) for start in range(0, len(second), most)],
    )
