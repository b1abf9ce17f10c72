"""The training stages as data: what is tuned, at which rate, in which batches, and which shard
parts feed it.

Read the tables; `recipe` and `stage_inputs` only look things up. No torch here: the asset graph
reads this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as checked_dataclass

from model.config import VARIANTS
from training.formats.kinds import Group, kinds_of

# Every parameter of the model belongs to exactly one of these. `llm` includes embeddings, head and
# image_newline.
MODULES = ("vision", "projector", "memaug", "llm")


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class Lora:
    """Some of the tuned modules get low-rank adapters beside their linear layers, and keep their
    own weights. The other tuned modules are trained whole. Needs peft, the extra `lora`.

    Attributes:
        rank: of each adapter.
        alpha: an adapter counts by alpha / rank.
        rate: peak learning rate of the adapters.
        modules: those with adapters. Embeddings, norms and `image_newline` of the language model
            stay as they are.
    """

    rank: PositiveInt = 64
    alpha: PositiveInt = 128
    rate: PositiveFloat = 1e-4
    modules: tuple[str, ...] = Field(default=("llm",), min_length=1)

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.modules) - set(MODULES)):
            raise ValueError(
                f"adapters go into some of {', '.join(MODULES)}; found {', '.join(unknown)}"
            )

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one stage of one variant is trained.

    Attributes:
        rates: peak learning rate of each tuned module; a module that is absent is frozen.
        global_batch: samples in one optimizer step, whatever the number of ranks.
        micro_batch: most samples that one rank packs into one forward pass.
        max_length: tokens of the longest sample that is read; longer ones are left out.
        epochs: how often every sample is read.
        save_every: optimizer steps between two checkpoints.
        warmup: share of the steps over which the rate rises linearly; then a cosine to zero.
        betas, weight_decay: of AdamW.
        clip: largest norm of the gradient of all tuned parameters together.
        reference_rate: the rate that the published DeepSpeed configuration gives every tuned
            module, because it builds its own optimizer.
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
    reference_rate: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - set(MODULES))
        if unknown or not self.rates:
            raise ValueError(
                f"a recipe tunes some of {', '.join(MODULES)}; found {', '.join(unknown) or 'none'}"
            )


@dataclass(frozen=True, slots=True, order=True)
class ShardInput:
    """One shard part, or one half of it.

    Attributes:
        kind: name of a kind of shards.
        part: index of the part.
        half: None for the whole part; 0 or 1 for the first or second half of its samples (the first
            half of an odd number is the smaller one).
    """

    kind: str
    part: int
    half: int | None = None

    @property
    def folder(self) -> str:
        """The folder's name under `sharding/`."""
        return f"{self.kind}_part{self.part}"


# The parts that a stage reads of a kind, as (part, half) of the parts that there are; see
# `ShardInput`.
Share = Callable[[Sequence[int]], list[tuple[int, int | None]]]


def every_part(parts: Sequence[int]) -> list[tuple[int, int | None]]:
    """Every part."""
    return [(part, None) for part in parts]


def first(one_in: int) -> Share:
    """The first parts: one in `one_in` of them, at least one."""
    return lambda parts: every_part(parts[: _cut(parts, one_in)])


def rest(one_in: int) -> Share:
    """All parts but the `first` ones."""
    return lambda parts: every_part(parts[_cut(parts, one_in) :])


def first_half_of_rest(one_in: int) -> Share:
    """The `rest` up to its middle, which may lie inside of a part."""

    def share(parts: Sequence[int]) -> list[tuple[int, int | None]]:
        left = parts[_cut(parts, one_in) :]
        middle, odd = divmod(len(left), 2)
        return every_part(left[:middle]) + ([(left[middle], 0)] if odd else [])

    return share


def second_half_of_rest(one_in: int) -> Share:
    """The `rest` from its middle on."""

    def share(parts: Sequence[int]) -> list[tuple[int, int | None]]:
        left = parts[_cut(parts, one_in) :]
        middle, odd = divmod(len(left), 2)
        return ([(left[middle], 1)] if odd else []) + every_part(left[middle + odd :])

    return share


def _cut(parts: Sequence[int], one_in: int) -> int:
    return max(1, round(len(parts) / one_in))


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        title: of its asset, for the UI.
        recipe: the published one of the 3b variant; `DEVIATIONS` says where others differ.
        streams: name -> what the stream reads of each group of kinds, in this order. Every batch
            comes from one stream.
        longest_frames: of a video, at one frame a second; memory is planned for it.
    """

    title: str
    recipe: Recipe
    streams: Mapping[str, Mapping[Group, Share]]
    longest_frames: int

    @property
    def reads_long_videos(self) -> bool:
        """Long videos are read as features. New parts of them land at any time, so such a stage
        reads its shards through the mixture, which lists all parts.
        """
        return any("long videos" in groups for groups in self.streams.values())


# With the published ten parts: stage 1 reads all of `llava_ov_si_onlyimg`; stage 2 part 0 of text,
# si and mi and parts 0 and 1 of the short videos; stage 3 has a short stream (short videos 2-9 with
# text, si, mi 1-4 and the first half of 5) and a long one (all long videos with text, si, mi 6-9
# and the second half of 5). With another number of parts the same shares are kept.
STAGES: dict[int, Stage] = {
    1: Stage(
        "Stage 1, image-language pretraining: MemAug learns on single images.",
        Recipe({"memaug": 1e-4}, micro_batch=8, reference_rate=1e-4),
        streams={"images": {"pretraining": every_part}},
        longest_frames=600,
    ),
    2: Stage(
        "Stage 2, video-language adaptation: everything is tuned on images, text and short videos.",
        Recipe(
            {"vision": 5e-6, "projector": 1e-4, "memaug": 1e-4, "llm": 2e-5},
            micro_batch=4,
            reference_rate=2e-5,
        ),
        streams={"mixed": {"images and text": first(10), "short videos": first(5)}},
        longest_frames=600,
    ),
    3: Stage(
        "Stage 3, video instruction tuning: projector, MemAug and LLM learn on hour-long videos "
        "through their features.",
        Recipe(
            {"projector": 1e-4, "memaug": 1e-4, "llm": 2e-5}, micro_batch=4, reference_rate=2e-5
        ),
        streams={
            "short": {"short videos": rest(5), "images and text": first_half_of_rest(10)},
            "long": {"long videos": every_part, "images and text": second_half_of_rest(10)},
        },
        longest_frames=3600,
    ),
}

_TINY: dict[str, Any] = {
    "global_batch": 8,
    "micro_batch": 8,
    "max_length": 4096,
    "betas": (0.9, 0.95),
}
_SMALL: dict[str, Any] = {"global_batch": 16, "micro_batch": 8, "max_length": 8192}
_ADAPTATION_7B = {"vision": 5e-6, "projector": 1e-4, "memaug": 1e-4, "llm": 1e-5}

# Where a variant is trained otherwise than `Stage.recipe` says, by stage. A variant without an
# entry is trained as it says.
DEVIATIONS: dict[str, dict[int, dict[str, Any]]] = {
    # The demo's variant learns from random weights and few samples: larger steps, many epochs. Its
    # second moment forgets sooner (0.95): the first gradients, when every token is wrong, would
    # keep the steps small for long.
    "tiny": {
        1: {"rates": {"memaug": 3e-4}, "reference_rate": 3e-4, **_TINY},
        2: {"rates": dict.fromkeys(MODULES, 1e-3), "epochs": 13, "reference_rate": 1e-3, **_TINY},
        3: {
            "rates": dict.fromkeys(MODULES[1:], 1e-3),
            "epochs": 2,
            "reference_rate": 1e-3,
            **_TINY,
        },
    },
    # Projector and MemAug are new, so the projector learns from the first stage on. The rates are
    # those of small language models, for the few samples of the demo's corpus.
    "small": {
        1: {
            "rates": {"projector": 1e-3, "memaug": 3e-4},
            "epochs": 2,
            "reference_rate": 3e-4,
            **_SMALL,
        },
        2: {
            "rates": {"vision": 1e-4, "projector": 1e-3, "memaug": 3e-4, "llm": 2e-4},
            "epochs": 10,
            "reference_rate": 2e-4,
            **_SMALL,
        },
        3: {
            "rates": {"projector": 3e-4, "memaug": 3e-4, "llm": 2e-4},
            "epochs": 2,
            "reference_rate": 2e-4,
            **_SMALL,
        },
    },
    "7b": {
        1: {"micro_batch": 4},
        2: {"rates": _ADAPTATION_7B, "micro_batch": 2, "reference_rate": 1e-5},
        3: {"global_batch": 256, "micro_batch": 2},
    },
}

RECIPES: dict[tuple[str, int], Recipe] = {
    (variant, stage): replace(row.recipe, **DEVIATIONS.get(variant, {}).get(stage, {}))
    for variant in VARIANTS
    for stage, row in STAGES.items()
}


def recipe(variant: str, stage: int) -> Recipe:
    """The recipe of a stage of a variant. Raises ValueError, naming the known ones."""
    try:
        return RECIPES[variant, stage]
    except KeyError:
        raise ValueError(
            f"no recipe for variant {variant!r}, stage {stage!r}; variants: {', '.join(VARIANTS)}, "
            f"stages: {', '.join(map(str, STAGES))}"
        ) from None


def stage_inputs(
    stage: int, parts: int = 10, long_parts: Sequence[int] | None = None
) -> tuple[tuple[ShardInput, ...], ...]:
    """Which shard parts feed a stage: one tuple for each of its streams.

    Args:
        stage: a key of `STAGES`.
        parts: number of parts of the kinds of the LLaVA collections.
        long_parts: indices of the parts of long videos, later landings included; `range(parts)`
            by default. They all belong to the long stream of stage 3.

    Raises:
        ValueError: an unknown stage, or fewer than two parts (stages 2 and 3 share no part).
    """
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; known: {', '.join(map(str, STAGES))}")
    if parts < 2:
        raise ValueError(
            f"the setting 'parts' is {parts}; stages 2 and 3 read different parts, so at least 2 "
            "are needed"
        )
    indices = range(parts)
    long = indices if long_parts is None else sorted(long_parts)
    return tuple(
        tuple(
            ShardInput(kind, part, half)
            for group, share in groups.items()
            for kind in kinds_of(group)
            for part, half in share(long if group == "long videos" else indices)
        )
        for groups in STAGES[stage].streams.values()
    )
