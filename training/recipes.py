"""The three training stages as data: what is tuned, at which rate, in which batches, and which
shard parts feed it.

Read the tables; `recipe` and `stage_inputs` only look things up. No torch here: the asset graph
reads this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.formats.sample import (
    IMAGE_KIND,
    LONG_VIDEO_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    SINGLE_IMAGE_KIND,
    TEXT_KIND,
)

VARIANTS = ("tiny", "3b", "7b")
STAGES = (1, 2, 3)

# Every parameter of the model belongs to exactly one of these. `llm` includes embeddings, head and
# image_newline.
MODULES = ("vision", "projector", "memaug", "llm")

SMALL_KINDS = (TEXT_KIND, SINGLE_IMAGE_KIND, MULTI_IMAGE_KIND)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one stage of one variant is trained.

    Attributes:
        rates: peak learning rate of each tuned module; a module that is absent is frozen.
        global_batch: samples in one optimizer step, whatever the number of ranks.
        micro_batch: most samples that one rank packs into one forward pass.
        save_every: optimizer steps between two checkpoints.
        warmup: share of the steps over which the rate rises linearly; then a cosine to zero.
        clip: largest norm of the gradient of all tuned parameters together.
    """

    rates: Mapping[str, float]
    global_batch: int = 128
    micro_batch: int = 1
    max_length: int = 32768
    epochs: int = 1
    save_every: int = 100
    warmup: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float = 1.0
    # The published DeepSpeed configuration builds its own optimizer and gives every tuned module
    # this rate.
    reference_rate: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - set(MODULES))
        if unknown or not self.rates:
            raise ValueError(
                f"a recipe tunes some of {', '.join(MODULES)}; found {', '.join(unknown) or 'none'}"
            )


_S1 = {"memaug": 1e-4}
_S3 = {"projector": 1e-4, "memaug": 1e-4, "llm": 2e-5}


def _s2(llm: float) -> dict[str, float]:
    return {"vision": 5e-6, "projector": 1e-4, "memaug": 1e-4, "llm": llm}


_TINY: dict[str, Any] = {
    "global_batch": 8,
    "micro_batch": 8,
    "max_length": 4096,
    "betas": (0.9, 0.95),
    "save_every": 100,
}

RECIPES: dict[tuple[str, int], Recipe] = {
    ("3b", 1): Recipe(_S1, micro_batch=8, reference_rate=1e-4),
    ("3b", 2): Recipe(_s2(2e-5), micro_batch=4, reference_rate=2e-5),
    ("3b", 3): Recipe(_S3, micro_batch=4, reference_rate=2e-5),
    ("7b", 1): Recipe(_S1, micro_batch=4, reference_rate=1e-4),
    ("7b", 2): Recipe(_s2(1e-5), micro_batch=2, reference_rate=1e-5),
    ("7b", 3): Recipe(_S3, global_batch=256, micro_batch=2, reference_rate=2e-5),
    # The demo's variant learns from random weights and few samples: larger steps, many epochs. Its
    # second moment forgets sooner (0.95): the first gradients, when every token is wrong, would
    # keep the steps small for long.
    ("tiny", 1): Recipe({"memaug": 3e-4}, epochs=1, reference_rate=3e-4, **_TINY),
    ("tiny", 2): Recipe(dict.fromkeys(MODULES, 1e-3), epochs=13, reference_rate=1e-3, **_TINY),
    ("tiny", 3): Recipe(dict.fromkeys(MODULES[1:], 1e-3), epochs=2, reference_rate=1e-3, **_TINY),
}


def recipe(variant: str, stage: int) -> Recipe:
    """The recipe of ``stage`` (1, 2, 3) of ``variant``. Raises ValueError, naming the known ones."""
    try:
        return RECIPES[variant, stage]
    except KeyError:
        raise ValueError(
            f"no recipe for variant {variant!r}, stage {stage!r}; variants: {', '.join(VARIANTS)}, "
            "stages: 1, 2, 3"
        ) from None


@dataclass(frozen=True, slots=True, order=True)
class ShardInput:
    """One shard part, or one half of it.

    Attributes:
        kind: one of the six kinds of shards.
        part: index of the part.
        half: None for the whole part; 0 or 1 for the first or second half of its samples (the first
            half of an odd number is the smaller one).
    """

    kind: str
    part: int
    half: int | None = None

    @property
    def folder(self) -> str:
        """The folder's name under ``sharding/``."""
        return f"{self.kind}_part{self.part}"


def stage_inputs(
    stage: int, parts: int = 10, long_parts: Sequence[int] | None = None
) -> tuple[tuple[ShardInput, ...], ...]:
    """Which shard parts feed a stage: one tuple for each of its streams.

    With the published ten parts: stage 1 reads all of ``llava_ov_si_onlyimg``; stage 2 part 0 of
    text, si and mi and parts 0 and 1 of the short videos; stage 3 has a short stream (short videos
    2-9 with text, si, mi 1-4 and the first half of 5) and a long one (all long videos with text,
    si, mi 6-9 and the second half of 5). With another number of parts the same shares are kept: a
    tenth of text, si and mi, a fifth of the short videos go to stage 2 (at least one part of each),
    and the rest of text, si and mi is cut in the middle between the streams of stage 3.

    Args:
        stage: 1, 2 or 3.
        parts: number of parts of the first five kinds.
        long_parts: indices of the parts of long videos, later landings included; ``range(parts)``
            by default. They all belong to the long stream of stage 3.

    Raises:
        ValueError: an unknown stage, or fewer than two parts (stages 2 and 3 share no part).
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; known: 1, 2, 3")
    if parts < 2:
        raise ValueError(
            f"the setting 'parts' is {parts}; stages 2 and 3 read different parts, so at least 2 "
            "are needed"
        )
    if stage == 1:
        return (tuple(ShardInput(IMAGE_KIND, part) for part in range(parts)),)

    image_cut, video_cut = max(1, round(parts / 10)), max(1, round(parts / 5))
    if stage == 2:
        small = [ShardInput(kind, part) for kind in SMALL_KINDS for part in range(image_cut)]
        return ((*small, *(ShardInput(SHORT_VIDEO_KIND, part) for part in range(video_cut))),)

    rest = list(range(image_cut, parts))
    middle, odd = divmod(len(rest), 2)
    short = [ShardInput(SHORT_VIDEO_KIND, part) for part in range(video_cut, parts)]
    long = [
        ShardInput(LONG_VIDEO_KIND, part)
        for part in sorted(range(parts) if long_parts is None else long_parts)
    ]
    for kind in SMALL_KINDS:
        short += [ShardInput(kind, part) for part in rest[:middle]]
        if odd:
            short.append(ShardInput(kind, rest[middle], half=0))
            long.append(ShardInput(kind, rest[middle], half=1))
        long += [ShardInput(kind, part) for part in rest[middle + odd :]]
    return tuple(short), tuple(long)
