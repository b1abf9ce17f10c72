"""Worker processes that prepare samples: torch's `DataLoader`, with a time limit that holds and an
end that is sure.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, MutableSequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from training.data.fork_server import fork_server
from training.data.sample_dataset import SampleDataset, WorkerResult
from training.supervise import die_with_parent

START_S = 180.0  # starting workers imports torch, which takes long on a busy machine
# Of a rank's share of the host's cores, two are left to the training process; more processes than
# these would prepare more than a GPU takes (docs/performance.md, "The loader").
CORES_LEFT, FEWEST, MOST = 2, 2, 12
GRACE_S = 2.0  # the library says itself that it timed out, if it can

EpochRow = tuple[int, int]  # (epoch, row number)


def workers_of(wanted: int | None) -> int:
    """How many processes prepare samples for this rank: as many as are wanted, else by its share of
    the host's cores.
    """
    if wanted is not None:
        return wanted
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST, max(FEWEST, share - CORES_LEFT))


class WorkerPool:
    """Prepares rows in worker processes and gives them back in the order that was asked for.

    Args:
        dataset: prepares one row.
        workers: how many processes; 0 prepares in this one.
        ahead: samples that each worker prepares ahead.
        timeout_s: workers that give nothing for so long are broken.
    """

    def __init__(self, dataset: SampleDataset, workers: int, ahead: int, timeout_s: float) -> None:
        self.workers, self.ahead, self.timeout_s = workers, ahead, timeout_s
        self._sampler = _RowSampler()
        context = fork_server()
        self._pids = context.Array("q", max(workers, 1), lock=False)  # each worker fills its own
        self._loader: DataLoader | None = DataLoader(
            dataset,
            sampler=self._sampler,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            timeout=timeout_s if workers else 0,
            worker_init_fn=partial(_start_worker, self._pids),
            multiprocessing_context=context if workers else None,
            persistent_workers=workers > 0,
        )

    def prepare(self, rows: list[EpochRow]) -> Iterator[WorkerResult]:
        """The rows' samples, in order.

        The library's time limit covers waiting for its queue, but not what comes after: a message
        carries handles of shared memory, which a worker that is stuck never hands over. So its
        iterator runs in a thread, which is waited for with a limit of its own.

        Raises:
            RuntimeError: a worker died, or none gave a sample for `timeout_s`.
        """
        if self._loader is None:
            raise RuntimeError("the pool is closed")
        self._sampler.rows = rows
        if not self.workers:
            yield from self._loader
            return
        results: queue.Queue[WorkerResult | BaseException | None] = queue.Queue(self.ahead)
        stopped = threading.Event()
        thread = threading.Thread(
            target=self._put_all, args=(results, stopped), name="loader", daemon=True
        )
        thread.start()
        limit, join_s = START_S, START_S
        try:
            while (item := results.get(timeout=limit + self.timeout_s)) is not None:
                limit = GRACE_S
                if isinstance(item, BaseException):
                    raise item
                yield item
        except queue.Empty:
            join_s = 0.0  # it hangs: no use in waiting for it again below
            raise RuntimeError(
                f"the data loader timed out: no worker gave a sample for {self.timeout_s:g} s "
                "(data_timeout_s); one hangs, on a file system or in a decoder"
            ) from None
        finally:
            stopped.set()
            thread.join(join_s)

    def pids(self) -> list[int]:
        """Process ids of the workers that were started."""
        return [pid for pid in self._pids if pid]

    def close(self) -> None:
        """End the worker processes, also those that no longer answer; the pool is of no use
        afterwards.

        torch waits for a worker that hangs, so they are killed first: they only read.
        """
        pids = set(self.pids())
        for worker in multiprocessing.active_children():
            if worker.pid in pids:
                worker.kill()
        self._loader = None

    def _put_all(self, results: queue.Queue[Any], stopped: threading.Event) -> None:
        """Move samples from the workers to `results`; at the end None, or the error."""
        try:
            assert self._loader is not None
            for item in self._loader:
                _put(results, item, stopped)
                if stopped.is_set():
                    return
            _put(results, None, stopped)
        except BaseException as error:  # whatever it is, the consumer raises it
            _put(results, error, stopped)


class _RowSampler(Sampler):
    """The rows that the workers prepare next; the pool sets them before each pass."""

    def __init__(self) -> None:
        self.rows: list[EpochRow] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[EpochRow]:
        return iter(self.rows)


def _put(results: queue.Queue[Any], item: Any, stopped: threading.Event) -> None:
    """Put an item once there is room, unless nobody wants it any more."""
    while not stopped.is_set():
        try:
            results.put(item, timeout=0.1)
        except queue.Full:
            continue
        return


def _unchanged(item: Any) -> Any:
    """In place of torch's collating: samples differ in shape and stay single."""
    return item


def _start_worker(pids: MutableSequence[int], number: int) -> None:
    """First thing in a worker: it ends with its parent, says who it is, and leaves the machine's
    cores to the others.
    """
    pids[number] = os.getpid()
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
