"""From the loader's samples to packs that every rank computes at the same time, prepared while the
last ones compute.

The ranks take as many forward passes as each other (they gather sharded parameters together), and
the slowest rank sets the pace. So a window of samples is cut into equally many packs on every rank,
filled up to a budget of tokens, and the packs of a window run from the most to the least work: the
n-th pack of one rank is about as long as that of another.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from model.config import HourLlavaConfig
from model.inputs import SampleInputs, Visual
from training.flops import Sizes, flops, sizes_of, total
from training.parallel import Ranks

WINDOW_SAMPLES = (
    8  # samples of one rank that are cut into packs together; bounds the host memory of prefetching
)
PREPARED_WINDOWS = 1  # besides the one in use and the one in the making
JOIN_S = 5.0


class Batch(Protocol):
    """What a loader yields: some samples of one rank, all from one stream."""

    samples: list[SampleInputs]
    sample_ids: list[str]
    stream: int


class Loader(Protocol):
    """See `training.data.loader`. Iterating goes over what is left of one epoch."""

    steps_per_epoch: int

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def report(self) -> dict[str, int]:
        """Samples that this rank could not use, by reason."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Most that one pack holds; a single sample may be larger.

    Attributes:
        tokens: tokens in the language model.
        memory: memory tokens.
        pictures: images and frames that pass the vision encoder.
    """

    tokens: int
    memory: int
    pictures: int

    def holds(self, size: Sizes) -> bool:
        return (
            size.tokens <= self.tokens
            and size.memory <= self.memory
            and size.pictures <= self.pictures
        )


@dataclass(slots=True)
class Pack:
    """The samples of one forward pass of one rank; none where other ranks need more passes than
    this one.
    """

    samples: list[SampleInputs]
    sizes: Sizes


@dataclass(slots=True)
class Window:
    """Packs of one rank; a step is one or more windows.

    Attributes:
        ends_step: whether the optimizer steps after it.
        position: the loader's state after it, in the last window of a step.
        waited_s: how long the loader took for it.
    """

    packs: list[Pack]
    sample_ids: list[str]
    stream: int
    ends_step: bool
    position: dict[str, Any] | None = None
    waited_s: float = 0.0


@dataclass(slots=True)
class Feed:
    """Windows of ``steps`` optimizer steps, prepared in a thread of their own.

    Args:
        loader: yields this rank's micro-batches, ``accumulation`` of them for each step.
        micro_batch: most samples in one of them.
        tuned: tuned modules, which decide what a sample costs.
    """

    loader: Loader
    steps: int
    accumulation: int
    micro_batch: int
    budget: Budget
    config: HourLlavaConfig
    tuned: Sequence[str]
    ranks: Ranks
    _queue: queue.Queue[Window | BaseException | None] = field(
        default_factory=lambda: queue.Queue(PREPARED_WINDOWS)
    )
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Generator[Window]:
        thread = threading.Thread(target=self._run, name="feed", daemon=True)
        thread.start()
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stopped.set()
            thread.join(
                JOIN_S
            )  # it may be in the middle of a sample, or wait for ranks that are gone

    def _run(self) -> None:
        try:
            for window in self._windows():
                self._put(window)
                if self._stopped.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, it is the training thread's to raise
            self._put(error)

    def _put(self, item: Window | BaseException | None) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def _windows(self) -> Iterator[Window]:
        batches = self._batches()
        in_window = max(1, WINDOW_SAMPLES // self.micro_batch)
        for _ in range(self.steps):
            done = 0
            while done < self.accumulation:
                began = time.monotonic()
                taken = [next(batches) for _ in range(min(in_window, self.accumulation - done))]
                done += len(taken)
                ends = done == self.accumulation
                samples = [sample for batch in taken for sample in batch.samples]
                yield Window(
                    packs=self._pack(samples),
                    sample_ids=[name for batch in taken for name in batch.sample_ids],
                    stream=taken[-1].stream,
                    ends_step=ends,
                    position=self.loader.state_dict() if ends else None,
                    waited_s=time.monotonic() - began,
                )

    def _batches(self) -> Iterator[Batch]:
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
        sizes = [sizes_of(sample, self.config) for sample in samples]
        work = [flops(size, self.config, self.tuned) for size in sizes]
        count = torch.tensor(len(fill(sizes, self.budget)))
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=self.ranks.feeders)
        return [
            Pack([self._pinned(samples[i]) for i in chosen], total(sizes[i] for i in chosen))
            for chosen in spread(sizes, work, self.budget, int(count))
        ]

    def _pinned(self, sample: SampleInputs) -> SampleInputs:
        if self.ranks.device.type != "cuda":
            return sample
        return replace(
            sample, visuals=[_mapped(visual, Tensor.pin_memory) for visual in sample.visuals]
        )


def fill(sizes: Sequence[Sizes], budget: Budget) -> list[list[int]]:
    """As few packs of sample numbers as first-fit finds, longest samples first, none above the
    budget.

    A sample that is above it alone has a pack of its own.
    """
    packs: list[list[int]] = []
    sums: list[Sizes] = []
    for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i].tokens, i)):
        size = sizes[number]
        for place, held in enumerate(sums):
            if budget.holds(held + size):
                packs[place].append(number)
                sums[place] = held + size
                break
        else:
            packs.append([number])
            sums.append(size)
    return packs


def spread(
    sizes: Sequence[Sizes], work: Sequence[float], budget: Budget, count: int
) -> list[list[int]]:
    """Exactly ``count`` packs of sample numbers, even in work where the budget allows, from the
    most work to the least.

    Every number is in one pack, in ascending order within it; packs stay empty where there are too
    few samples.
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for number in sorted(range(len(sizes)), key=lambda i: (-work[i], i)):
        place = min(range(count), key=lambda p: (loads[p], p))
        packs[place].append(number)
        loads[place] += work[number]
    if any(_above(pack, sizes, budget) for pack in packs):
        packs = fill(sizes, budget)
        assert len(packs) <= count
        while len(packs) < count:
            packs.sort(key=lambda pack: (len(pack) > 1, sum(work[i] for i in pack)))
            largest = packs.pop() if packs else []
            middle = math.ceil(len(largest) / 2)
            packs += [largest[:middle], largest[middle:]]
    packs.sort(key=lambda pack: (-sum(work[i] for i in pack), pack))
    return [sorted(pack) for pack in packs]


def _above(pack: list[int], sizes: Sequence[Sizes], budget: Budget) -> bool:
    return len(pack) > 1 and not budget.holds(total(sizes[i] for i in pack))


class Courier:
    """Brings the next pack to the device while the last one computes, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, packs: Sequence[Pack]) -> Iterator[Pack]:
        """The same packs with their visuals on the device; nothing moves for a CPU."""
        if self._stream is None:
            yield from packs
            return
        coming = self._start(packs[0]) if packs else None
        for number in range(len(packs)):
            assert coming is not None
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            here = coming
            for sample in here.samples:
                for visual in sample.visuals:
                    for tensor in (visual.pixels, visual.features):
                        if tensor is not None and tensor.is_cuda:
                            tensor.record_stream(torch.cuda.current_stream(self.device))
            coming = self._start(packs[number + 1]) if number + 1 < len(packs) else None
            yield here

    def _start(self, pack: Pack) -> Pack:
        with torch.cuda.stream(self._stream):
            samples = [
                replace(
                    s,
                    visuals=[
                        _mapped(v, lambda t: t.to(self.device, non_blocking=True))
                        for v in s.visuals
                    ],
                )
                for s in pack.samples
            ]
        return Pack(samples, pack.sizes)


def _mapped(visual: Visual, change: Any) -> Visual:
    return replace(
        visual,
        pixels=None if visual.pixels is None else change(visual.pixels),
        features=None if visual.features is None else change(visual.features),
    )
