"""Data is made ready while the model computes: packs in a thread, and the next pack's tensors on
their way to the device.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import HourLlavaConfig
from model.inputs import SampleInputs
from training.data.micro_batch import MicroBatch, MicroBatchLoader
from training.data.packing import GROUP_SAMPLES, Budget, Pack, pack
from training.data.worker_pool import START_S
from training.flops import Sizes
from training.formats.machine_faults import LONGEST_DELAY_S
from training.lockstep import EMPTY_SAMPLE
from training.ranks import Ranks, reduced, together
from training.run_config import RunConfig

PREPARED_GROUPS = 1  # besides the one in use and the one in the making
JOIN_S = 5.0


def longest_silence(run: RunConfig) -> float:
    """Seconds after which reading that gives nothing hangs: workers and faults of the machine have
    limits of their own, and what comes of these is to be told first.
    """
    return START_S + run.data_timeout_s + run.machine_wait_s + LONGEST_DELAY_S


@dataclass(slots=True)
class PackGroup:
    """Samples of one rank that were cut into packs together; a step is one or more groups.

    Attributes:
        packs: to be computed in this order.
        sample_ids: of all packs.
        streams: numbers of the streams that the samples are from.
        ends_step: whether the optimizer steps after it. It then has a pack, whatever was dropped:
            the step's last pass is what shards the gradients that earlier groups left.
        position: the loader's state after it, in the last group of a step.
        dropped: samples that are missing here, by reason.
    """

    packs: list[Pack]
    sample_ids: list[str]
    streams: set[int]
    ends_step: bool
    position: dict[str, Any] | None = None
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Prefetcher:
    """Pack groups of `steps` optimizer steps, prepared in a thread of their own.

    Args:
        loader: yields this rank's micro-batches, `accumulation` of them for each step.
        steps: optimizer steps to prepare.
        micro_batch: most samples in a micro-batch.
        budget: most that a pack holds.
        tuned: tuned modules, which decide what a sample costs.
        group_samples: about so many are cut into packs together.
        limit_s: a loader that gives no micro-batch for so long hangs.
    """

    loader: MicroBatchLoader
    steps: int
    accumulation: int
    micro_batch: int
    budget: Budget
    config: HourLlavaConfig
    tuned: Sequence[str]
    ranks: Ranks
    group_samples: int = GROUP_SAMPLES
    limit_s: float = math.inf
    _queue: queue.Queue[PackGroup | BaseException | None] = field(
        default_factory=lambda: queue.Queue(PREPARED_GROUPS)
    )
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Generator[PackGroup]:
        """The groups in order; closing it ends the thread.

        Raises:
            RuntimeError: the loader yields nothing.
            MachineFault: a rank's machine is at fault; all ranks raise it in place of the same
                group.
            Exception: whatever the loader raised, here or on another rank.
        """
        thread = threading.Thread(target=self._run, name="prefetcher", daemon=True)
        thread.start()
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stopped.set()
            # It may be in the middle of a sample, or wait for ranks that are gone.
            thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            for group in self._groups():
                self._put(group)
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, the training thread raises it
            self._put(error)

    def _put(self, item: PackGroup | BaseException | None) -> None:
        """Put an item once there is room, unless nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _groups(self) -> Iterator[PackGroup]:
        batches = self._batches()
        in_group = max(1, self.group_samples // self.micro_batch)
        for _ in range(self.steps):
            done = 0
            while done < self.accumulation:
                wanted = min(in_group, self.accumulation - done)
                taken = self._take(batches, wanted)
                done += len(taken)
                ends = done == self.accumulation
                samples = [sample for batch in taken for sample in batch.samples]
                packs = self._pack(samples)
                if ends and not packs:  # all were dropped, on all ranks
                    packs = [Pack([EMPTY_SAMPLE], Sizes())]
                yield PackGroup(
                    packs=packs,
                    sample_ids=[name for batch in taken for name in batch.sample_ids],
                    streams={batch.stream for batch in taken},
                    ends_step=ends,
                    position=self.loader.state_dict() if ends else None,
                    dropped=Counter(reason for batch in taken for _, reason in batch.dropped),
                )

    def _take(self, batches: Iterator[MicroBatch], wanted: int) -> list[MicroBatch]:
        """So many micro-batches on every rank: none waits in a collective while another one's disk
        or store does not answer, and an error ends all of them at one place.
        """
        taken: list[MicroBatch] = []

        def take() -> None:
            while len(taken) < wanted:
                taken.append(next(batches))

        together(take, self.ranks.prefetchers, self.limit_s, lambda: len(taken))
        return taken

    def _batches(self) -> Iterator[MicroBatch]:
        """Epoch after epoch. A state saved at the very end of an epoch may give one empty pass, but
        never two.
        """
        empty = 0
        while empty < 2:
            found = False
            for batch in self.loader:
                found = True
                yield batch
            empty = 0 if found else empty + 1
        raise RuntimeError(
            "the data loader yields nothing; its streams are empty or its saved position is past "
            "their end"
        )

    def _pack(self, samples: list[SampleInputs]) -> list[Pack]:
        packs = pack(samples, self.budget, self.config, self.tuned, self._most_of_all_ranks)
        if self.ranks.device.type == "cuda":  # pinned memory is copied beside the computation
            for made in packs:
                made.samples = [_with_tensors(s, Tensor.pin_memory) for s in made.samples]
        return packs

    def _most_of_all_ranks(self, count: int) -> int:
        (most,) = reduced((count,), dist.ReduceOp.MAX, self.ranks.prefetchers)
        return int(most)


class DevicePrefetcher:
    """Copies the next pack to the device while the last one computes, on its own CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def on_device(self, packs: Sequence[Pack]) -> Iterator[Pack]:
        """The same packs with their visuals on the device; a CPU needs no copy."""
        if self._stream is None:
            yield from packs
            return
        coming = self._start_copy(packs[0]) if packs else None
        for number in range(len(packs)):
            assert coming is not None
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._stream)
            current = coming
            for sample in current.samples:
                for visual in sample.visuals:
                    for tensor in (visual.pixels, visual.features):
                        if tensor is not None and tensor.is_cuda:
                            # Its memory was taken on the copying stream and may not be used again
                            # before this computation is done with it.
                            tensor.record_stream(computing)
            coming = self._start_copy(packs[number + 1]) if number + 1 < len(packs) else None
            yield current

    def _start_copy(self, source: Pack) -> Pack:
        def copy(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, non_blocking=True)

        with torch.cuda.stream(self._stream):
            return Pack([_with_tensors(s, copy) for s in source.samples], source.sizes)


def _with_tensors(sample: SampleInputs, change: Callable[[Tensor], Tensor]) -> SampleInputs:
    """The sample with its pixels and features changed."""
    visuals = [
        replace(
            visual,
            pixels=None if visual.pixels is None else change(visual.pixels),
            features=None if visual.features is None else change(visual.features),
        )
        for visual in sample.visuals
    ]
    return replace(sample, visuals=visuals)
