"""Forgetting: which tokens of a memory stay as queries for MemAug.

Of a video's frames some stay; which ones is decided in model/frame_rules. Of each map of tokens
that stays (a frame, an image, the base or the map of an anyres image) a rule of this file chooses
tokens. A new rule is one function with `@rule`.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import MemoryConfig


class Rule(Protocol):
    """Chooses tokens of the `chosen` ones among `total` maps of height x width tokens.

    Args:
        height, width, total: sizes of one map, and how many there are.
        chosen: numbers of the maps that stay, [maps].
        memory: how much to keep.
        generator: of the sample's seed, on the CPU; None where the sample has no seed.

    Returns:
        Ascending indices of the tokens that stay of each chosen map, [maps, kept].

    Raises:
        ValueError: the rule cannot do without a seed.
    """

    def __call__(
        self,
        height: int,
        width: int,
        total: int,
        chosen: Tensor,
        memory: MemoryConfig,
        generator: torch.Generator | None,
    ) -> Tensor: ...


RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    """Make a rule known by its function's name."""
    RULES[function.__name__] = function  # type: ignore[attr-defined]  # a function has a name
    return function


def find_rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in RULES:
        raise ValueError(f"unknown forgetting {name!r}; known: {', '.join(sorted(RULES))}")
    return RULES[name]


def spread(count: int, total: int) -> Tensor:
    """`count` indices spread evenly over 0 .. total - 1, rounded down as numpy's float64 linspace
    is.
    """
    return torch.from_numpy(np.linspace(0, total - 1, count).astype(np.int64))


def kept_count(frames: int, memory: MemoryConfig) -> int:
    """How many of a video's frames stay, at least one; with the published numbers 32 to 512."""
    return max(1, min(memory.max_query_frames, int(frames * memory.temporal_ratio)))


def kept_frames(frames: int, memory: MemoryConfig) -> Tensor:
    """Which of a video's frames stay by the rule `uniform`: [kept], ascending."""
    return spread(kept_count(frames, memory), frames)


def kept_tokens(tokens: int, memory: MemoryConfig) -> int:
    """How many tokens of a map of `tokens` stay by the rule `random`."""
    return math.ceil(tokens * memory.spatial_ratio)


# -- the rules -------------------------------------------------------------------------------------


@rule
def uniform(
    height: int,
    width: int,
    total: int,
    chosen: Tensor,
    memory: MemoryConfig,
    generator: torch.Generator | None,
) -> Tensor:
    """Every n-th row and column: the same of every map. For evaluation, where nothing is drawn."""
    grid = torch.arange(height * width).view(height, width)
    kept = grid[:: memory.stride, :: memory.stride]
    return kept.reshape(1, -1).expand(len(chosen), -1)


@rule
def random(
    height: int,
    width: int,
    total: int,
    chosen: Tensor,
    memory: MemoryConfig,
    generator: torch.Generator | None,
) -> Tensor:
    """Tokens drawn anew for each map. For training, where every token should have its turn."""
    if generator is None:
        raise ValueError("random forgetting needs a seed for every sample")
    # Drawn for all maps, chosen or not: what a seed keeps of a frame must not depend on which
    # frames are kept.
    drawn = torch.rand(total, height * width, generator=generator)[chosen]
    kept = drawn.argsort(dim=1)[:, : kept_tokens(height * width, memory)]
    return kept.sort(dim=1).values
