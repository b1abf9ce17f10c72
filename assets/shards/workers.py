"""Runs the tasks of a part: in worker processes, into a folder that a later run can go on with."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path

from assets.shards.llava_rows import EXPECTED_DROPS
from assets.shards.tasks import (
    LlavaRows,
    ShardTask,
    TaskResult,
    done_tasks,
    read_record,
    run_task,
)
from model.atomic import TEMPORARY_PREFIX
from training.formats import layout
from training.formats.storage import Storage
from training.progress import Progress

POOL_FROM_ROWS = 512  # fewer rows are written in this process: starting workers would take longer


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
    """End this worker when the run ends. A killed run must not leave workers that write into its
    folder while the next run does.
    """
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()


def run_tasks(
    tasks: Sequence[ShardTask], pool: Executor | None, progress: Progress
) -> list[TaskResult]:
    """Results of all tasks, in order.

    What an earlier run wrote is kept, unless rows of it were lost: the files that they lacked may
    be there now.
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
    """How many rows a task reads."""
    rows = task.rows
    return len(rows.places) if isinstance(rows, LlavaRows) else rows.stop - rows.start


@contextmanager
def work_folder(storage: Storage, folder: str, key: str) -> Iterator[Path]:
    """The local folder that collects a part's finished tasks; it is emptied when it belongs to
    other inputs.

    It is locked while it is used, and removed when the part is published or its rows turn out
    unusable. A run that is killed leaves it behind for the next one.
    """
    work, plan = _work_path(storage, folder), "plan.json"
    parent, name = work.parent, folder.rpartition("/")[2]
    with locked_folder(work):
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


def _work_path(storage: Storage, folder: str) -> Path:
    parent = Path(storage.path(layout.SHARDS)) if storage.is_local else storage.cache / "work"
    return parent / f"{TEMPORARY_PREFIX}work-{folder.rpartition('/')[2]}"


def measured(storage: Storage, folder: str) -> Callable[[], list[str]] | None:
    """What tells how far a part is whose writing was cut short: names of the tasks that are done.
    None for a remote root: there they lie on the machine that wrote them.
    """
    if not storage.is_local:
        return None
    return lambda: done_tasks(_work_path(storage, folder))


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
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
