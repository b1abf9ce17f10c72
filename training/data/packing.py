"""Which samples share a forward pass.

The ranks take as many forward passes as each other (they gather sharded parameters together), and
the slowest rank sets the pace. So a group of samples is cut into equally many packs on every rank,
filled up to a budget of tokens, and the packs of a group run from the most to the least work: the
n-th pack of one rank is about as long as that of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.config import HourLlavaConfig
from model.inputs import SampleInputs
from training.flops import Sizes, flops, sizes_of, total
from training.recipes import STAGES

# Samples of one rank that are cut into packs together, which bounds the host memory of prefetching:
# the features of an hour take ten times what a short video's pictures do.
GROUP_SAMPLES, GROUP_OF_LONG_VIDEOS = 32, 8


def group_samples(stage: int) -> int:
    """About how many samples of a rank are cut into packs together."""
    return GROUP_OF_LONG_VIDEOS if STAGES[stage].reads_long_videos else GROUP_SAMPLES


def group_sizes(stage: int, samples: int, micro_batch: int = 1) -> list[int]:
    """So many samples of a rank, as groups of whole micro-batches; the last one may be smaller."""
    group = max(1, group_samples(stage) // micro_batch) * micro_batch
    return [min(group, samples - first) for first in range(0, samples, group)]


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
        """Whether so much fits into one pack."""
        return (
            size.tokens <= self.tokens
            and size.memory <= self.memory
            and size.pictures <= self.pictures
        )


@dataclass(slots=True)
class Pack:
    """The samples of one forward pass of one rank; none where other ranks need more passes than
    this one.

    Attributes:
        samples: computed together.
        sizes: of all of them.
    """

    samples: list[SampleInputs]
    sizes: Sizes


def pack(
    samples: Sequence[SampleInputs],
    budget: Budget,
    config: HourLlavaConfig,
    tuned: Sequence[str],
    agree: Callable[[int], int],
) -> list[Pack]:
    """Samples of one rank as packs, the one with the most work first.

    Args:
        tuned: tuned modules, which decide what a sample costs.
        agree: takes the number of packs that this rank needs and returns the largest number over
            all ranks; every rank calls it once.
    """
    sizes = [sizes_of(sample, config) for sample in samples]
    work = [flops(size, config, tuned) for size in sizes]
    count = agree(len(first_fit(sizes, budget)))
    return [
        Pack([samples[i] for i in chosen], total(sizes[i] for i in chosen))
        for chosen in balance(sizes, work, budget, count)
    ]


def first_fit(sizes: Sequence[Sizes], budget: Budget) -> list[list[int]]:
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


def balance(
    sizes: Sequence[Sizes], work: Sequence[float], budget: Budget, count: int
) -> list[list[int]]:
    """Exactly `count` packs of sample numbers, even in work where the budget allows, from the
    most work to the least.

    Every number is in one pack, in ascending order within it; packs stay empty where there are too
    few samples.

    Args:
        work: of each sample.
        count: at least as many as `first_fit` needs.
    """
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for number in sorted(range(len(sizes)), key=lambda i: (-work[i], i)):
        place = min(range(count), key=lambda p: (loads[p], p))
        packs[place].append(number)
        loads[place] += work[number]
    if any(_is_above(chosen, sizes, budget) for chosen in packs):
        # Even work is too much memory somewhere: keep the tight packs and halve the largest ones.
        packs = first_fit(sizes, budget)
        assert len(packs) <= count
        while len(packs) < count:
            packs.sort(key=lambda chosen: (len(chosen) > 1, sum(work[i] for i in chosen)))
            largest = packs.pop() if packs else []
            middle = math.ceil(len(largest) / 2)
            packs += [largest[:middle], largest[middle:]]
    packs.sort(key=lambda chosen: (-sum(work[i] for i in chosen), chosen))
    return [sorted(chosen) for chosen in packs]


def _is_above(chosen: list[int], sizes: Sequence[Sizes], budget: Budget) -> bool:
    return len(chosen) > 1 and not budget.holds(total(sizes[i] for i in chosen))
