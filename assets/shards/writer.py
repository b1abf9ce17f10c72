"""Writes one part of one kind as MDS shards: in parallel, in bounded memory, resumable, the same
bytes every time.

A part is cut into tasks of `rows_per_shard` rows each. Finished tasks stay in a work folder
beside the part, so a run that was killed is continued; when all are done the shards move into a
fresh folder that is published by one rename. An `index.json` therefore only ever describes a
whole part.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from assets.collections.mixtures import read_mixture
from assets.conversations.grouping import conversations_name
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.deployment.settings import Shards as ShardSettings
from assets.records.lineage import Lineage, record_name
from assets.shards.images import ImagePolicy
from assets.shards.llava_rows import EXPECTED_DROPS
from assets.shards.mds import HASH, index_json
from assets.shards.planning import plan_part
from assets.shards.tasks import (
    PICTURE,
    ConversationRows,
    LlavaRows,
    ShardTask,
    TaskResult,
    read_record,
    run_task,
)
from model.atomic import TEMPORARY_PREFIX
from training.formats import layout
from training.formats.hashing import data_version, hash_file
from training.formats.kinds import KINDS, LONG_VIDEO_KIND
from training.formats.sample import SCHEMA_VERSION
from training.formats.storage import Storage
from training.progress import Progress

INDEX = "index.json"
MANIFEST = "manifest.json"
LLAVA_PARTS = 10  # the five LLaVA kinds always have ten parts, because the stages name them
BYTES_PER_TOKEN = 4  # of English text; an estimate for people, never used to pack a batch
POOL_FROM_ROWS = 512  # fewer rows are written in this process: starting workers would take longer


Png = bytes  # `bytes` is also a field of the report


@dataclass(slots=True)
class ShardReport:
    """What became of a part's rows.

    Attributes:
        version: content hash: names, sizes and hashes of all shards.
        counts: `rows_in`, `samples`, `shards`, `videos`, missing annotation files, rows
            dropped by reason.
        config: the settings that decide the bytes.
        bytes: of all shards.
        hours: of distinct videos whose duration is known.
        tokens: text tokens, estimated.
        drops: dropped rows by reason.
        named: some of the dropped rows, a line each.
        missing: annotation files of the mixture that are not there.
        examples: a few samples for a table.
        picture: PNG of a few images, where the part has any.
    """

    version: str
    counts: dict[str, int]
    config: dict[str, Any]
    bytes: int
    hours: float
    tokens: int
    drops: dict[str, int]
    named: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    picture: Png | None = None


def part_folder(kind: str, part: int) -> str:
    """A part's folder, relative to the storage root."""
    return layout.shards(kind, part_name(part))


def write_kind_part(
    storage: Storage, settings: Settings, kind: str, part: int, log: Callable[[str], None]
) -> ShardReport:
    """Write one of the ten parts of one of the five LLaVA kinds, from the annotation files that the
    mixture names.

    Raises:
        ValueError: the mixture or an annotation file is broken, files are missing and
            `require_all` asks for them, or more rows are unusable than `max_drop_share` allows.
    """
    collections, shards = settings.collections, settings.shards
    entries = [entry for entry in read_mixture(collections.mixtures) if entry.kind == kind]
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
    if found := _finished(storage, folder, key):
        log(
            f"{kind} {part_name(part)}: inputs and settings have not changed, the part is left as "
            "it is"
        )
        return found
    with _work_folder(storage, folder, key) as work:
        tasks = [
            ShardTask(index, kind, storage.root, storage.cache, work, task_rows, images)
            for index, task_rows in enumerate((*first, *second))
        ]
        results = _run(tasks, pool, Progress(log, len(tasks), "shards"))
        report = _report(results, config)
        report.missing = list(missing)
        report.counts["annotation files missing"] = len(missing)
        _check_drops(kind, part, report, shards.max_drop_share)
        if (work / PICTURE).exists():
            report.picture = (work / PICTURE).read_bytes()
        _publish(storage, folder, work, results, len(first), report, key)
    for reason, number in report.drops.items():
        log(f"{kind} {part_name(part)}: {number:,} rows dropped: {reason}")
    for line in report.named:
        log(f"dropped {line}")
    return report


Halves = tuple[list[LlavaRows] | list[ConversationRows], list[LlavaRows] | list[ConversationRows]]


def halves(rows: np.ndarray, most: int, task_rows: Callable[[np.ndarray], Any]) -> Halves:
    """Tasks of at most `most` rows, none of which reaches over the middle: halves can be
    addressed by shards.
    """
    middle = len(rows) // 2
    first, second = rows[:middle], rows[middle:]
    return (
        [task_rows(first[start : start + most]) for start in range(0, len(first), most)],
        [task_rows(second[start : start + most]) for start in range(0, len(second), most)],
    )


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Worker processes, started one by one as work arrives; None where everything is to run in this
    process.

    They are forked from one process that has imported the library that writes: this takes 4 s,
    once.
    """
    if workers == 1:
        yield None
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["streaming", "assets.shards.tasks"])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Have this worker end with the run: a killed one leaves nobody who writes into its folder
    beside the next.
    """
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


@contextmanager
def _work_folder(storage: Storage, folder: str, key: str) -> Iterator[Path]:
    """The local folder that collects a part's finished tasks; it is emptied when it belongs to
    other inputs.

    It is locked while it is used, and removed when the part is published or its rows turn out
    unusable. A run that is killed leaves it behind for the next one.
    """
    parent = Path(storage.path(layout.SHARDS)) if storage.is_local else storage.cache / "work"
    name = folder.rpartition("/")[2]
    work, plan = parent / f"{TEMPORARY_PREFIX}work-{name}", "plan.json"
    with _locked_folder(work):
        if not (work / plan).exists() or (work / plan).read_text() != key:
            for path in work.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (work / plan).write_text(key)
        for left_behind in parent.glob(f"{TEMPORARY_PREFIX}*-{name}"):
            if left_behind != work:
                shutil.rmtree(left_behind)
        try:
            yield work
        except ValueError:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """An exclusive lock on a folder; the kernel frees it when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(descriptor).st_ino == folder.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            ours = False  # locked, or published and removed by another run just now
        if not ours:
            raise ValueError(
                f"{folder} is in use: another run is writing this part; wait for it or stop it"
            )
        yield
    finally:
        os.close(descriptor)


def _run(tasks: Sequence[ShardTask], pool: Executor | None, progress: Progress) -> list[TaskResult]:
    """Results of all tasks, in order. What an earlier run wrote is kept unless it lost rows: files
    may be there now.
    """
    earlier = ((task, read_record(task)) for task in tasks)
    results = {
        task.index: found for task, found in earlier if found and set(found.drops) <= EXPECTED_DROPS
    }
    if results:
        progress.note(
            f"{len(results)} of {len(tasks)} shards were written by an earlier run and are kept"
        )
        progress.advance(len(results))
    todo = [task for task in tasks if task.index not in results]
    if pool is None or sum(_row_count(task) for task in todo) < POOL_FROM_ROWS:
        for task in todo:
            results[task.index] = run_task(task)
            progress.advance()
    else:
        for future in as_completed([pool.submit(run_task, task) for task in todo]):
            result = future.result()
            results[result.index] = result
            progress.advance()
    return [results[task.index] for task in tasks]


def _row_count(task: ShardTask) -> int:
    rows = task.rows
    return len(rows.places) if isinstance(rows, LlavaRows) else rows.stop - rows.start


def _report(results: Sequence[TaskResult], config: dict[str, Any]) -> ShardReport:
    shards = [shard for result in results for shard in result.shards]
    drops, durations = Counter[str](), dict[str, float]()
    for result in results:
        drops.update(result.drops)
        durations.update(result.durations)
    counts = {
        "rows_in": sum(result.rows for result in results),
        "samples": sum(shard["samples"] for shard in shards),
        "shards": len(shards),
        "videos": len(durations),
        **{f"dropped: {reason}": number for reason, number in sorted(drops.items())},
    }
    return ShardReport(
        version=data_version(
            [(s["raw_data"]["basename"], s["samples"], s["raw_data"]["hashes"]) for s in shards]
        ),
        counts=counts,
        config=config,
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        hours=round(sum(durations.values()) / 3600, 3),
        tokens=sum(result.text_bytes for result in results) // BYTES_PER_TOKEN,
        drops=dict(sorted(drops.items())),
        named=[line for result in results for line in result.named][:20],
        examples=[row for result in results for row in result.examples][:5],
    )


def _check_drops(kind: str, part: int, report: ShardReport, most: float) -> None:
    """Raise ValueError when more rows are lost than allowed; rows that are left out by design do
    not count.
    """
    expected = sum(number for reason, number in report.drops.items() if reason in EXPECTED_DROPS)
    lost, rows = sum(report.drops.values()) - expected, report.counts["rows_in"] - expected
    if lost > most * rows:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in report.drops.items())
        raise ValueError(
            f"{kind} {part_name(part)}: {lost:,} of {rows:,} rows cannot be used, more than "
            f"shards.max_drop_share ({most:g}) allows: {reasons}; for example "
            f"{'; '.join(report.named[:3])}"
        )


def _publish(
    storage: Storage,
    folder: str,
    work: Path,
    results: Sequence[TaskResult],
    first_half: int,
    report: ShardReport,
    key: str,
) -> None:
    """Move the finished shards into a fresh folder with index and manifest, which then gets its
    final name.
    """
    shards = [shard for result in results for shard in result.shards]
    half = [shard for result in results[:first_half] for shard in result.shards]
    manifest = {
        "schema": SCHEMA_VERSION,
        "key": key,
        "report": {name: value for name, value in asdict(report).items() if name != "picture"},
        "first_half": {"shards": len(half), "samples": sum(shard["samples"] for shard in half)},
        "shards": {
            shard["raw_data"]["basename"]: shard["raw_data"]["hashes"][HASH] for shard in shards
        },
    }
    with storage.writing_folder(folder) as fresh:
        for name in [shard["raw_data"]["basename"] for shard in shards]:
            shutil.move(work / name, fresh / name)
        if report.picture:
            (fresh / PICTURE).write_bytes(report.picture)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        (fresh / INDEX).write_text(index_json(shards))


def _finished(storage: Storage, folder: str, key: str) -> ShardReport | None:
    """The report of a part that needs no work: same key, every shard there in full, no row lost."""
    if not (storage.exists(f"{folder}/{INDEX}") and storage.exists(f"{folder}/{MANIFEST}")):
        return None
    manifest = storage.read_json(f"{folder}/{MANIFEST}")
    if manifest["key"] != key or not set(manifest["report"]["drops"]) <= EXPECTED_DROPS:
        return None
    for shard in storage.read_json(f"{folder}/{INDEX}")["shards"]:
        name = f"{folder}/{shard['raw_data']['basename']}"
        if not storage.exists(name) or storage.size(name) != shard["raw_data"]["bytes"]:
            return None
    picture = (
        storage.read_bytes(f"{folder}/{PICTURE}") if storage.exists(f"{folder}/{PICTURE}") else None
    )
    return ShardReport(**manifest["report"], picture=picture)


def _collection_version(storage: Storage, kind: str) -> dict[str, str]:
    """Version of the collection that a kind reads, where the pipeline made it: images and videos
    are inputs too.
    """
    name = KINDS[kind].collection
    return {name: Lineage.read(storage, name).version} if storage.exists(record_name(name)) else {}
