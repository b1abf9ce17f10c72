"""The paper's ablations as data: which arms there are, and the settings of a study of them.

An arm is the reference with one change. Read the table; `Ablation` only chooses from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from model.changes import ModelChanges
from model.config import PRESETS
from model.configuration import Section
from training.formats.kinds import KINDS, LONG_VIDEO_KIND, SHORT_VIDEO_KIND

REFERENCE = "uniform"
REFERENCE_LONG = 0.75  # 3:1, the published set-up
NOTHING = ModelChanges()
VIDEO_KINDS = (LONG_VIDEO_KIND, SHORT_VIDEO_KIND)
MOST_RUNS = 99  # from 100 partitions on Dagster records no combined version below them


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm.

    Attributes:
        compares: what it is compared in, for the table.
        says: it, in words.
        model: what it changes of the model.
        long: share of the long videos among the rows about videos.
    """

    compares: str
    says: str
    model: ModelChanges = NOTHING
    long: float = REFERENCE_LONG

    @property
    def own_mixture(self) -> bool:
        """Whether it changes how many rows are about long videos."""
        return self.long != REFERENCE_LONG


ARMS: dict[str, Arm] = {
    REFERENCE: Arm("reference", "frames spread evenly, MemAug as it is, all of the memory"),
    "random": Arm("forgetting", "frames at random", ModelChanges("random")),
    "keyframe": Arm("forgetting", "frames least like their neighbours", ModelChanges("keyframe")),
    "question_guided": Arm(
        "forgetting", "frames most like the question", ModelChanges("question_guided")
    ),
    "uniform_no_memaug": Arm(
        "without MemAug", "frames spread evenly", ModelChanges(memaug_blocks=0)
    ),
    "keyframe_no_memaug": Arm(
        "without MemAug", "keyframes", ModelChanges("keyframe", memaug_blocks=0)
    ),
    "question_guided_no_memaug": Arm(
        "without MemAug",
        "frames most like the question",
        ModelChanges("question_guided", memaug_blocks=0),
    ),
    **{
        f"blocks_{count}": Arm(
            "MemAug blocks", f"{count} block{'s' * (count > 1)}", ModelChanges(memaug_blocks=count)
        )
        for count in (1, 2, 4, 8)
    },
    "no_positions": Arm("position", "no rotation in MemAug", ModelChanges(memaug_positions=False)),
    "memory_50": Arm("memory", "every second frame", ModelChanges(memory_scale=0.5)),
    "memory_25": Arm("memory", "every fourth frame", ModelChanges(memory_scale=0.25)),
    "memory_kept": Arm(
        "memory", "under 10 %: only the tokens that stay", ModelChanges(memory_scale=0.0)
    ),
    "long_0": Arm("long : short", "0 : 1", long=0.0),
    "long_25": Arm("long : short", "1 : 3", long=0.25),
    "long_50": Arm("long : short", "1 : 1", long=0.5),
    "long_100": Arm("long : short", "1 : 0", long=1.0),
    "template_seen": Arm(
        "template tokens", "MemAug sees them", ModelChanges(template_tokens="seen")
    ),
}


def differs(arm: Arm, preset: str) -> bool:
    """Whether an arm is another model or mixture than the reference, at this preset's size."""
    config = PRESETS[preset]
    return arm.own_mixture or arm.model.applied(config) != config


def pretrains(arm: Arm, preset: str, start: str) -> bool:
    """Whether an arm trains stage 1 for itself: its MemAug is another one than the one that the
    shared stage 1 has trained.
    """
    config = PRESETS[preset]
    changed = arm.model.applied(config)
    same = (changed.memaug_depth, changed.memaug_positions) == (
        config.memaug_depth,
        config.memaug_positions,
    )
    return start == "stage1" and not same and changed.memaug_depth > 0


class Ablation(Section):
    """A study of the model's own choices: arms that differ from the reference in one thing."""

    arms: list[str] = Field(
        default=[],
        description="names of assets/deployment/ablation.py; empty: all of them that differ from "
        "the reference at the variant's size",
    )
    seeds: int = Field(default=3, ge=1, description="runs of each arm, the same seeds in all arms")
    start: Literal["base_model", "stage1", "stage2"] | None = Field(
        default=None,
        description="the checkpoint that all arms start from; default: stage 1 where the variant "
        "trains it, as published, else the variant's start",
    )
    videos: PositiveInt | None = Field(
        default=None,
        description="rows about videos, long and short ones together (published: 70000); default: "
        "as many as there are for every arm",
    )
    others: dict[str, NonNegativeInt] = Field(
        default={},
        description="rows of the kinds without videos (published: llavavideo_text 20000, "
        "llavavideo_si 30000, llavavideo_mi 10000); default: all of the mixture",
    )
    overrides: dict[str, Any] = Field(
        default={},
        description="fields of training.run_config.RunConfig for every arm, over those of "
        "training.overrides.stage3",
    )

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, arms: list[str]) -> list[str]:
        if unknown := [name for name in arms if name not in ARMS]:
            raise ValueError(f"no arm {', '.join(unknown)}; known: {', '.join(ARMS)}")
        return arms

    @field_validator("others")
    @classmethod
    def _kinds_without_videos(cls, others: Mapping[str, int]) -> Mapping[str, int]:
        known = [name for name in KINDS if name not in VIDEO_KINDS]
        if wrong := [name for name in others if name not in known]:
            raise ValueError(f"{', '.join(wrong)}: kinds without videos are {', '.join(known)}")
        return others

    @field_validator("overrides")
    @classmethod
    def _arms_own_theirs(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"model", "rows", "seed", "vision_start"} & set(overrides)):
            raise ValueError(f"{', '.join(taken)}: an arm sets this itself")
        return overrides

    def chosen(self, preset: str, long_videos_only: bool) -> dict[str, Arm]:
        """The arms of this study by name, the reference first.

        Raises:
            ValueError: an arm changes a mixture of which there is only one part, or there are too
                many runs.
        """
        names = self.arms or [
            name
            for name, arm in ARMS.items()
            if name == REFERENCE or differs(arm, preset)
            if not (long_videos_only and arm.own_mixture)
        ]
        names = list(dict.fromkeys([REFERENCE, *names]))
        if long_videos_only and (mixed := [name for name in names if ARMS[name].own_mixture]):
            raise ValueError(
                f"ablation.arms: {', '.join(mixed)}: there are no short videos to mix with, "
                "because training.long_videos_only is set"
            )
        if len(names) * self.seeds > MOST_RUNS:
            raise ValueError(
                f"ablation: {len(names)} arms with {self.seeds} seeds are more than {MOST_RUNS} "
                "runs; name fewer arms or set fewer seeds"
            )
        return {name: ARMS[name] for name in names}


def run_keys(arms: Mapping[str, Arm], seeds: int) -> list[str]:
    """The partitions: each arm with each of its seeds, `keyframe-2`."""
    return [f"{name}-{seed}" for name in arms for seed in range(1, seeds + 1)]


def of_key(key: str) -> tuple[str, int]:
    """The arm and the seed of a partition."""
    name, _, seed = key.rpartition("-")
    return name, int(seed)
