"""The data loader: shards -> micro-batches of samples, in an order that does not depend on how they
are read.

    loader = build_loader(run, processor, rank, world_size)
    for batch in loader: ...                       # the rest of one epoch
    state = loader.state_dict()                    # JSON; after the last micro-batch of a step

The order is a list of row numbers (`training.data.order`). Rows are read by number, in worker
processes, and handed out in that very order. So the number of workers never matters, and resuming
is starting at another place of the same list. A row that cannot be used leaves a gap: it is counted
and named, and never replaced by a neighbour.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from model.inputs import SampleInputs
from model.processor import Processor
from training.data.balance import work_of_rows
from training.data.held_out import HELD_OUT, HeldOutSplit, held_out_rows
from training.data.micro_batch import HeldOutQuestion, MicroBatch
from training.data.order import EpochOrder
from training.data.rows import RowReader
from training.data.sample_dataset import (
    DroppedRow,
    PostponedRow,
    PreparedSample,
    WorkerResult,
    feature_stores,
    sample_dataset,
    shard_cache,
)
from training.data.shard_index import Gather, ShardIndex
from training.data.survey import KnownLosses, find_losses
from training.data.worker_pool import WorkerPool, workers_of
from training.formats.hashing import hash_value
from training.formats.machine_faults import wait_out
from training.formats.receipts import Stamps
from training.formats.storage import Storage
from training.ranks import gather_results, together
from training.run_config import RunConfig
from training.supervise import stop_requested

log = logging.getLogger(__name__)

NAMED_DROPS = 20  # dropped samples that are named in the log; the rest is counted
STAMPS = "stamps"  # folder of what the file system said of whole shards, in the run's own
READ_AHEAD = 4  # feature files that are read at once, ahead of the sample that is needed next


def build_loader(run: RunConfig, processor: Processor, rank: int, world_size: int) -> ShardLoader:
    """The loader of one rank; every shard is verified before this returns. All ranks have to call
    it together.

    Raises:
        FileNotFoundError: an index is missing.
        ValueError: an index is broken, too many samples are in damaged shards, the ranks cannot
            share the global batch, or a stream is smaller than one.
    """
    open_index = partial(ShardIndex, run.streams, shard_cache(run), run.shard_cache_bytes, run.rows)
    open_index = partial(wait_out, open_index, run.machine_wait_s)
    several = dist.is_available() and dist.is_initialized() and world_size > 1
    index = together(open_index) if several else open_index()
    gather = gather_results if several else None
    losses = look_at_data(run, index, rank, world_size, gather)
    work = (
        work_of_rows(run, index, processor.config, rank, world_size, gather)
        if world_size > 1
        else None
    )
    order = EpochOrder(run, index, rank, world_size, work)
    split = HeldOutSplit(run.held_out_share, run.seed)
    held_out = partial(held_out_rows, run, index, split)

    def find() -> list[int]:
        return wait_out(held_out, run.machine_wait_s) if rank == 0 or not gather else []

    rows = (gather(find) if gather else [find()])[0]
    return ShardLoader(run, processor, index, order, losses, rows)


def look_at_data(
    run: RunConfig, index: ShardIndex, rank: int, world_size: int, gather: Gather | None
) -> KnownLosses:
    """What will be left out of training, told before the first step.

    Raises:
        ValueError: too much is lost, or a cache is too small for the files it is to hold.
        MachineFault: a disk or store did not answer for `machine_wait_s`.
    """
    largest = max(
        (shard.bytes for shard in index.shards if not index.storages[shard.stream].is_local),
        default=0,
    )
    if largest > run.shard_cache_bytes:
        raise ValueError(
            f"shard_cache_bytes is {run.shard_cache_bytes:,}, but a shard has {largest:,}; set it "
            "to several times that"
        )
    # Where whole files were known to be whole: kept with the run, which may be moved.
    kept = Storage(run.out) if run.out else None
    roots = {storage.root for storage in index.storages if storage.is_local}
    names = {root: f"{STAMPS}/{hash_value(root)[:16]}.json" for root in roots}
    stamps = {root: Stamps.read(kept, name) if kept else Stamps() for root, name in names.items()}
    index.verify(stamps, run.machine_wait_s, rank, world_size, gather)
    if kept and rank == 0:
        for root, name in names.items():
            stamps[root].write(kept, name)
    losses = find_losses(run, index, rank, world_size, gather)
    losses.refuse_above(run.max_dropped_share)
    return losses


class ShardLoader:
    """Micro-batches of one rank, out of shards; a `MicroBatchLoader`.

    Attributes:
        epoch: the epoch that the next micro-batch belongs to.
        steps_per_epoch: optimizer steps of an epoch; incomplete global batches are left out.
        accumulation: micro-batches of one rank in an optimizer step.
        losses: what was known to be lost before training; notes: the same in words.
        held_out: rows that are measured, of those that are never trained on.
        workers: the processes that prepare samples.
    """

    def __init__(
        self,
        run: RunConfig,
        processor: Processor,
        index: ShardIndex,
        order: EpochOrder,
        losses: KnownLosses,
        held_out: Sequence[int] = (),
    ) -> None:
        self.run, self.index, self.order, self.losses = run, index, order, losses
        self.notes: Sequence[str] = [losses.table()] if losses.counts else []
        self.micro, self.accumulation = run.batches(order.world_size)
        self.epoch = 0
        self._step = 0  # of the epoch
        self._taken = 0  # micro-batches of a step that is only partly taken
        self._first_epoch = order.rows(0)
        self.steps_per_epoch = len(self._first_epoch)
        self._drops: Counter[str] = Counter()
        self.damaged = 0  # samples so far whose videos are damaged
        self._surprises = 0  # drops that were not known before training
        self._surprises_before = 0.0  # this rank's share of those before the position
        self._iterating = False
        self._passes = 0  # over epochs or what was left of them
        self.held_out = held_out
        split = HeldOutSplit(run.held_out_share, run.seed)
        self._features = feature_stores(run)
        self._dataset = sample_dataset(run, RowReader(index), processor, losses.videos, split)
        self.workers = WorkerPool(
            self._dataset,
            workers=workers_of(run.workers),
            ahead=run.prefetch * self.micro,
            timeout_s=run.data_timeout_s,
        )

    def __len__(self) -> int:
        """Micro-batches of one epoch."""
        return self.steps_per_epoch * self.accumulation

    def report(self) -> dict[str, int]:
        """Samples that were dropped so far, by reason."""
        return dict(sorted(self._drops.items()))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last micro-batch that was taken, as JSON values.

        Raises:
            RuntimeError: an optimizer step is only partly taken; another number of ranks could not
                go on from there.
        """
        if self._taken:
            raise RuntimeError(
                f"{self._taken} of {self.accumulation} batches of this step are taken; save after "
                "it"
            )
        return {"epoch": self.epoch, "step": self._step, "identity": self.order.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position; to be called before the first micro-batch is taken.

        Args:
            state: of `state_dict`, and `dropped`: samples that were dropped up to there, of all
                ranks. Without `identity` the caller vouches for it.

        Raises:
            RuntimeError: micro-batches have been taken already.
            ValueError: the position belongs to other data, another global batch, seed, shuffling or
                order.
        """
        if self._passes:
            raise RuntimeError("a position has to be loaded before the first batch is taken")
        if state.get("identity", self.order.identity) != self.order.identity:
            raise ValueError(
                "the saved data position belongs to other shards, or another seed, global_batch, "
                "canonical_nodes or shuffle_block, or to a release whose order depended on the "
                "number of ranks; restore what the stage was started with, or rename the folder "
                "'state' of the run, which then begins at step 0"
            )
        self.epoch, self._step = int(state["epoch"]), int(state["step"])
        known = sum(self.losses.counts.values()) * (self.epoch + 1)
        surprises = max(0, state.get("dropped", 0) - known)
        self._surprises_before = surprises / self.order.world_size
        if self._step > self.steps_per_epoch:
            raise ValueError(
                f"the saved position is step {self._step} of an epoch of {self.steps_per_epoch}"
            )

    def held_out_sample(self, row: int) -> tuple[SampleInputs, int] | None:
        """A held-out sample and the number of its stream; None where it cannot be used.

        Raises:
            MachineFault: the machine was at fault for longer than `machine_wait_s`.
        """
        again = partial(self._dataset.prepare, 0, row, measured=True)
        item: SampleInputs | PreparedSample | DroppedRow = wait_out(
            again, self.run.machine_wait_s, stop_requested
        )
        if isinstance(item, PreparedSample):
            item = self._with_features(item) if item.frames is not None else item.sample
        return None if isinstance(item, DroppedRow) else (item, self.index.stream_of(row))

    def held_out_question(self, row: int) -> HeldOutQuestion | None:
        """The first question of a held-out sample; raises as `held_out_sample`."""
        ask = partial(self._dataset.question, row)
        return wait_out(ask, self.run.machine_wait_s, stop_requested)

    def text_of(self, ids: Sequence[int]) -> str:
        """What the ids of an answer say, up to the end of the turn."""
        tokenizer = self._dataset.processor.tokenizer
        return str(tokenizer.decode(list(ids))).partition("<|im_end|>")[0]

    def close(self) -> None:
        """End the worker processes, also those that no longer answer."""
        self.workers.close()

    def __iter__(self) -> Iterator[MicroBatch]:
        """The rest of the epoch.

        Raises:
            RuntimeError: a worker died or gave nothing for `data_timeout_s`, or samples were lost
                on the way.
            MachineFault: the machine was at fault for longer than `machine_wait_s`.
            ValueError: more samples had to be dropped than `max_dropped_share` allows.
        """
        if self._iterating:
            raise RuntimeError("the loader is being iterated already")
        self._iterating = True
        self._passes += 1
        self._taken = 0  # a step that an earlier pass left half taken begins again
        try:
            order = self.order.rows(self.epoch) if self.epoch else self._first_epoch
            rest = order[self._step :]
            samples = self._samples([(self.epoch, row) for row in rest.reshape(-1).tolist()])
            for rows in rest:
                for first in rows[:: self.micro].tolist():
                    stream = self.index.stream_of(first)
                    batch = self._batch(samples, stream)
                    self._advance()
                    yield batch
            if next(samples, None) is not None:
                raise RuntimeError("the workers gave more samples than were asked for")
        finally:
            self._iterating = False

    def _advance(self) -> None:
        """Move the position by one micro-batch."""
        self._taken = (self._taken + 1) % self.accumulation
        if not self._taken:
            self._step += 1
            if self._step == self.steps_per_epoch:
                self.epoch, self._step = self.epoch + 1, 0

    def _batch(self, samples: Iterator[SampleInputs | DroppedRow], stream: int) -> MicroBatch:
        batch = MicroBatch([], [], stream)
        for _ in range(self.micro):
            item = next(samples, None)
            if item is None:
                raise RuntimeError("the workers gave fewer samples than were asked for")
            if isinstance(item, DroppedRow) and item.reason == HELD_OUT:
                continue
            if isinstance(item, DroppedRow):
                batch.dropped.append((item.name, item.reason))
                self._count(item)
            else:
                if item.damage:
                    self._note_damage(item)
                batch.samples.append(item)
                batch.sample_ids.append(item.id)
        return batch

    def _note_damage(self, sample: SampleInputs) -> None:
        """Count a sample whose video is damaged; the first ones are named."""
        self.damaged += 1
        if self.damaged <= NAMED_DROPS:
            log.warning("the video of sample %s is damaged: %s", sample.id, sample.damage)
        elif self.damaged & (self.damaged - 1) == 0:  # powers of two: fewer and fewer lines
            log.warning("%d samples so far showed damaged videos", self.damaged)

    def _count(self, dropped: DroppedRow) -> None:
        """Count a dropped row. One that was not known before is named while there are few, and
        too many of them are refused.
        """
        self._drops[dropped.reason] += 1
        if dropped.known:
            return
        self._surprises += 1
        number = self._surprises + self._surprises_before
        of = (self.epoch + 1) * self.steps_per_epoch * self.order.share
        if self._surprises <= NAMED_DROPS:
            log.warning(
                "sample %s is left out: %s: %s", dropped.name, dropped.reason, dropped.detail
            )
        # What is lost anyway was allowed before the first step.
        if number > (self.run.max_dropped_share - self.losses.share) * of:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._drops.most_common())
            if self._surprises_before:
                reasons += f", {self._surprises_before:g} before this start"
            known = f", with the {self.losses.share:.2%} known before training"
            raise ValueError(
                f"{self._drops.total() + self._surprises_before:g} samples of this rank could not "
                f"be used ({reasons}){known if self.losses.counts else ''}, more than "
                f"max_dropped_share ({self.run.max_dropped_share:g}) of its {of}; the last one: "
                f"{dropped.name}: {dropped.detail}"
            )

    def _samples(self, rows: list[tuple[int, int]]) -> Iterator[SampleInputs | DroppedRow]:
        """Samples of (epoch, row) pairs in order, with stored features read a few ahead, in this
        process, by memory map.

        Raises:
            MachineFault: the machine was at fault for longer than `machine_wait_s`.
        """
        waiting: deque[Future[SampleInputs | DroppedRow] | SampleInputs | DroppedRow] = deque()
        with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="features") as pool:
            try:
                for prepared in self.workers.prepare(rows):
                    item = self._after_the_fault(prepared)
                    if isinstance(item, DroppedRow):
                        waiting.append(item)
                    elif item.frames is None:
                        waiting.append(item.sample)
                    else:
                        waiting.append(pool.submit(self._with_features, item))
                    if len(waiting) > READ_AHEAD:
                        yield _result(waiting.popleft())
                while waiting:
                    yield _result(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _after_the_fault(self, item: WorkerResult) -> PreparedSample | DroppedRow:
        """The sample of a row; one that a worker could not prepare because the machine was at fault
        is prepared here, as soon as that has passed.
        """
        if not isinstance(item, PostponedRow):
            return item
        again = partial(self._dataset.prepare, item.epoch, item.row)
        return wait_out(again, self.run.machine_wait_s, stop_requested)

    def _with_features(self, prepared: PreparedSample) -> SampleInputs | DroppedRow:
        """The sample with its stored frames in place of their stand-in."""
        sample, chosen = prepared.sample, prepared.frames
        assert chosen is not None
        store = self._features[chosen.store]

        def read() -> Tensor:
            return store.open_whole(chosen.video).read(chosen.indices)

        try:
            features = wait_out(read, self.run.machine_wait_s, stop_requested)
        except (FileNotFoundError, ValueError, IndexError) as error:
            return DroppedRow(sample.id, "features damaged", str(error))
        return replace(sample, visuals=[replace(sample.visuals[0], features=features)])


def _result(
    item: Future[SampleInputs | DroppedRow] | SampleInputs | DroppedRow,
) -> SampleInputs | DroppedRow:
    return item.result() if isinstance(item, Future) else item
