"""The data loader: shards -> micro-batches of samples, in an order that does not depend on how they
are read.

    loader = build_loader(run, processor, rank, world_size)
    for batch in loader: ...                       # the rest of one epoch
    state = loader.state_dict()                    # JSON; after the last batch of a step

The order comes from MosaicML Streaming; rows are then read by number, in worker processes, and
handed out in that very order. So the number of workers never matters, and resuming is starting at
another place of the same list. A row that cannot be used leaves a gap: it is counted and named, and
never replaced by a neighbour.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.context
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from model.inputs import SampleInputs
from model.processor import Processor
from training.data.order import RowReader, Streams
from training.data.worker import (
    Dropped,
    FrameChoice,
    Prepared,
    feature_store,
    preparing,
    start_worker,
)
from training.formats.feature_file import FeatureStore
from training.run_config import RunConfig

log = logging.getLogger(__name__)

NAMED_DROPS = 20  # dropped samples that are named in the log; the rest is counted
START_S = 180.0  # starting workers imports torch, which takes long on a busy machine
GRACE_S = 2.0  # the library says itself that it timed out, if it can
READ_AHEAD = 4  # feature files that are read at once, ahead of the sample that is needed next


@dataclass(slots=True)
class Batch:
    """One micro-batch of this rank. All batches of one optimizer step, on all ranks, are of one
    stream.

    Attributes:
        samples: at most ``micro`` of them; fewer, or none, where some were dropped.
        sample_ids: their ids.
        stream: number of the stream.
        dropped: (name, reason) of each sample that is missing here.
    """

    samples: list[SampleInputs]
    sample_ids: list[str]
    stream: int
    dropped: list[tuple[str, str]] = field(default_factory=list)


def build_loader(run: RunConfig, processor: Processor, rank: int, world_size: int) -> Loader:
    """The loader of one rank; every shard is verified before this returns. All ranks have to call
    it together.

    Raises:
        FileNotFoundError: an index is missing.
        ValueError: an index is broken, too many samples are in damaged shards, the ranks cannot
            share the global batch, or a stream is smaller than one.
    """
    streams = Streams(run, rank, world_size)
    streams.verify(
        _gather if dist.is_available() and dist.is_initialized() and world_size > 1 else None
    )
    return Loader(run, processor, streams)


def _gather(value: dict[int, str]) -> list[dict[int, str]]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class _Rows(Sampler):
    """The rows that workers prepare next; the loader sets them before each pass."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.rows)


class Loader:
    """Micro-batches of one rank.

    Attributes:
        epoch: the epoch that the next batch belongs to.
        steps_per_epoch: optimizer steps of an epoch; incomplete global batches are left out.
    """

    def __init__(self, run: RunConfig, processor: Processor, streams: Streams) -> None:
        self.run, self.streams = run, streams
        self.micro, self.accumulation = run.batches(streams.world_size)
        self.epoch, self._step, self._taken = 0, 0, 0
        self._order = streams.order(0)
        self.steps_per_epoch = len(self._order)
        self._drops: Counter[str] = Counter()
        self._iterating = False
        self._passes = 0  # over epochs or what was left of them
        self._features = feature_store(run)
        self._rows = _Rows()
        workers = run.workers
        self._loader = DataLoader(
            preparing(run, RowReader.of(streams), processor),
            sampler=self._rows,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=run.prefetch * self.micro if workers else None,
            timeout=run.data_timeout_s if workers else 0,
            worker_init_fn=start_worker,
            multiprocessing_context=_context() if workers else None,
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        """Batches of one epoch."""
        return self.steps_per_epoch * self.accumulation

    def report(self) -> dict[str, int]:
        """Samples that were dropped so far, by reason."""
        return dict(sorted(self._drops.items()))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was taken, as JSON values.

        Raises:
            RuntimeError: an optimizer step is only partly taken; another number of ranks could not
                go on from there.
        """
        if self._taken:
            raise RuntimeError(
                f"{self._taken} of {self.accumulation} batches of this step are taken; save after "
                "it"
            )
        return {"epoch": self.epoch, "step": self._step, "identity": self.streams.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position; to be called before the first batch is taken.

        Raises:
            RuntimeError: batches have been taken already.
            ValueError: the position belongs to other data, another global batch, seed or shuffling.
        """
        if self._passes:
            raise RuntimeError("a position has to be loaded before the first batch is taken")
        if state["identity"] != self.streams.identity:
            raise ValueError(
                "the saved data position belongs to other shards, or another seed, global_batch, "
                "canonical_nodes or shuffle_block; start the stage anew, or restore what it was "
                "started with"
            )
        self.epoch, self._step = int(state["epoch"]), int(state["step"])
        if self._step > self.steps_per_epoch:
            raise ValueError(
                f"the saved position is step {self._step} of an epoch of {self.steps_per_epoch}"
            )

    def close(self) -> None:
        """End the worker processes, also those that no longer answer."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
            for worker in iterator._workers:
                worker.kill()

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch.

        Raises:
            RuntimeError: a worker died or gave nothing for ``data_timeout_s``, or samples were lost
                on the way.
            ValueError: more samples had to be dropped than ``max_dropped_share`` allows.
        """
        if self._iterating:
            raise RuntimeError("the loader is being iterated already")
        self._iterating = True
        self._passes += 1
        self._taken = 0  # a step that an earlier pass left half taken begins again
        try:
            order = self.streams.order(self.epoch) if self.epoch else self._order
            rest = order[self._step :]
            self._rows.rows = [(self.epoch, row) for row in rest.reshape(-1).tolist()]
            found = self._read()
            for rows in rest:
                stream = self.streams.stream_of(int(rows[0]))
                for _ in range(self.accumulation):
                    batch = self._batch(found, stream)
                    self._taken = (self._taken + 1) % self.accumulation
                    if not self._taken:
                        self._step += 1
                        if self._step == self.steps_per_epoch:
                            self.epoch, self._step = self.epoch + 1, 0
                    yield batch
            if next(found, None) is not None:
                raise RuntimeError("the workers gave more samples than were asked for")
        finally:
            self._iterating = False

    def _batch(self, found: Iterator[SampleInputs | Dropped], stream: int) -> Batch:
        batch = Batch([], [], stream)
        for _ in range(self.micro):
            item = next(found, None)
            if item is None:
                raise RuntimeError("the workers gave fewer samples than were asked for")
            if isinstance(item, Dropped):
                batch.dropped.append((item.name, item.reason))
                self._count(item)
            else:
                batch.samples.append(item)
                batch.sample_ids.append(item.id)
        return batch

    def _count(self, dropped: Dropped) -> None:
        self._drops[dropped.reason] += 1
        number, of = self._drops.total(), self._passes * self.steps_per_epoch * self.streams.share
        if number <= NAMED_DROPS:
            log.warning(
                "sample %s is left out: %s: %s", dropped.name, dropped.reason, dropped.detail
            )
        if number > self.run.max_dropped_share * of:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._drops.most_common())
            raise ValueError(
                f"{number} samples of this rank could not be used ({reasons}), more than "
                f"max_dropped_share ({self.run.max_dropped_share:g}) of its {of}; the last one: "
                f"{dropped.name}: {dropped.detail}"
            )

    def _prepared(self) -> Iterator[Prepared | Dropped]:
        """What the workers prepare, with a time limit of its own.

        The library's limit covers waiting for its queue, but not what comes after: a message
        carries handles of shared memory, which a worker that is stuck never hands over.
        """
        if not self.run.workers:
            yield from self._loader
            return
        results: queue.Queue[Prepared | Dropped | BaseException | None] = queue.Queue(
            self.run.prefetch * self.micro
        )
        stopped = threading.Event()

        def pull() -> None:
            try:
                for item in self._loader:
                    _put(results, item, stopped)
                    if stopped.is_set():
                        return
                _put(results, None, stopped)
            except BaseException as error:  # whatever it is, it is the consumer's to raise
                _put(results, error, stopped)

        puller = threading.Thread(target=pull, name="loader", daemon=True)
        puller.start()
        limit, joined = START_S, START_S
        try:
            while (item := results.get(timeout=limit + self.run.data_timeout_s)) is not None:
                limit = GRACE_S
                if isinstance(item, BaseException):
                    raise item
                yield item
        except queue.Empty:
            joined = 0.0  # it hangs: no use in waiting for it again below
            raise RuntimeError(
                "the data loader timed out: no worker gave a sample for "
                f"{self.run.data_timeout_s:g} s (data_timeout_s); one hangs, on a file system or "
                "in a decoder"
            ) from None
        finally:
            stopped.set()
            puller.join(joined)

    def _read(self) -> Iterator[SampleInputs | Dropped]:
        """Samples in order, with stored features read a few ahead, in this process, by memory map."""
        waiting: deque[Future[SampleInputs | Dropped] | SampleInputs | Dropped] = deque()
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="features") as pool:
            try:
                for item in self._prepared():
                    if isinstance(item, Prepared) and item.frames is not None:
                        waiting.append(
                            pool.submit(_with_features, item.sample, item.frames, self._features)
                        )
                    else:
                        waiting.append(item.sample if isinstance(item, Prepared) else item)
                    if len(waiting) > READ_AHEAD:
                        yield _result(waiting.popleft())
                while waiting:
                    yield _result(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)


def _put(results: queue.Queue[Any], item: Any, stopped: threading.Event) -> None:
    """Put an item once there is room, unless nobody wants it any more."""
    while not stopped.is_set():
        try:
            results.put(item, timeout=0.1)
        except queue.Full:
            continue
        return


def _result(
    item: Future[SampleInputs | Dropped] | SampleInputs | Dropped,
) -> SampleInputs | Dropped:
    return item.result() if isinstance(item, Future) else item


def _with_features(
    sample: SampleInputs, chosen: FrameChoice, store: FeatureStore | None
) -> SampleInputs | Dropped:
    """The sample with its stored frames in place of their stand-in."""
    assert store is not None
    try:
        features = store.open(chosen.video).read(chosen.indices)
    except (FileNotFoundError, ValueError, IndexError) as error:
        return Dropped(sample.id, "features damaged", str(error))
    return replace(sample, visuals=[replace(sample.visuals[0], features=features)])


def _as_it_is(item: Any) -> Any:
    return item


def _context() -> multiprocessing.context.ForkServerContext:
    """Workers are forked from a clean server: this process has threads, and forking those can
    deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["training.data.worker"]
    )  # imports torch once, not once a worker
    return context
