"""Temporal forgetting: which frames of a video stay as queries for MemAug.

A rule is one file of this folder, and its name is the file's. It holds a `RULE`. What a rule may
look at decides where it runs: one that looks at nothing is applied while a sample is laid out, on
the host; the others need the model's tensors, and the choice comes back from the device.

Shapes: T frames of the memory, C vision width, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from torch import Tensor

from model.config import FRAME_RULES


@dataclass(frozen=True, slots=True)
class Video:
    """What a rule may look at.

    Attributes:
        frames: T, of the memory: short videos are repeated up to its least number.
        seed: of the sample; None where it has none.
        features_TC: each frame's mean token of the vision encoder; empty where the rule does not
            look at it.
        tokens_TD: each frame's mean token behind the projector; the same.
        question_D: mean word embedding of the prompt behind the video; the same.
    """

    frames: int
    seed: int | None
    features_TC: Tensor
    tokens_TD: Tensor
    question_D: Tensor


@dataclass(frozen=True, slots=True)
class FrameRule:
    """One way of forgetting frames.

    Attributes:
        looks_at: what of a video it needs: nothing, the vision encoder's features, or the frames'
            tokens and the question.
        choose: the numbers of `count` frames that stay, ascending [count] int64, on the host.
    """

    looks_at: Literal["nothing", "features", "question"]
    choose: Callable[[Video, int], Tensor]


def find_frame_rule(name: str) -> FrameRule:
    """The rule of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in FRAME_RULES:
        raise ValueError(
            f"unknown temporal forgetting {name!r}; known: {', '.join(sorted(FRAME_RULES))}"
        )
    rule: FrameRule = import_module(f"{__name__}.{name}").RULE
    return rule
