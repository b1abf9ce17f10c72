"""The settings' variants: each a name with a preset and a start, and what the graph needs for them.

The full recipe is a variant that starts where stage 1 does. One that starts from a later checkpoint
needs nothing that comes before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from model.config import PRESETS, VARIANTS
from model.configuration import Section
from model.weights.released import RELEASED
from training.formats.kinds import KINDS, LLAVA_KINDS, MIXED_KINDS
from training.recipes import STAGES, stage_inputs

if TYPE_CHECKING:
    PresetName = str
else:  # a type checker cannot read names out of a table
    PresetName = Literal[tuple(PRESETS)]

VARIANT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
HUB_NAME = r"[\w.-]+/[\w.-]+"
LAST_STAGE = max(STAGES)


class Start(Section):
    """A checkpoint that training starts from: LLaVA-OneVision, a released Hour-LLaVA, or one's own
    export.
    """

    repo: str | None = Field(
        default=None, pattern=HUB_NAME, description="namespace/name on the hub"
    )
    revision: str = Field(default="main", description="branch, tag or commit of the repo")
    folder: Path | None = Field(default=None, description="a folder instead")
    stage: int | None = Field(
        default=None,
        ge=0,
        le=LAST_STAGE,
        description="the stage that it has finished: 0 LLaVA-OneVision, 1 image pretraining, 2 "
        "adaptation, 3 tuning; may be left out for released checkpoints",
    )

    @model_validator(mode="after")
    def _one_place(self) -> Start:
        if (self.repo is None) == (self.folder is None):
            raise ValueError("give either repo or folder")
        if self.finished is None:
            known = ", ".join(sorted(RELEASED))
            raise ValueError(
                "say which stage the checkpoint has finished: stage: 0 (LLaVA-OneVision), 1, 2 or "
                f"3; it is only known of {known}"
            )
        return self

    @property
    def finished(self) -> int | None:
        """The stage that the checkpoint has finished, where that is known."""
        if self.stage is not None:
            return self.stage
        known = RELEASED.get(self.repo or "")
        return known.stage if known else None


class Variant(Section):
    """One model that is trained.

    Attributes:
        preset: its size.
        start: None: where the published recipe starts.
    """

    preset: PresetName
    start: Start | None = None

    @property
    def fits_cpu(self) -> bool:
        """Whether its preset is small enough for a CPU."""
        return VARIANTS[self.preset].start is None

    @property
    def first_stage(self) -> int:
        """The first stage that is trained; a tuned checkpoint is tuned again."""
        finished = 0 if self.start is None else self.start.finished or 0
        return min(finished + 1, LAST_STAGE)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages that are trained, in order."""
        return tuple(stage for stage in STAGES if stage >= self.first_stage)

    @property
    def facts(self) -> dict[str, Any] | None:
        """The start as records keep it; None where it is the recipe's own."""
        return None if self.start is None else self.start.model_dump(mode="json", exclude_none=True)


def named(variants: Any) -> Any:
    """The settings' `variants` by name: a list of presets stands for variants of those names."""
    if isinstance(variants, list):
        return {name: {"preset": name} for name in variants}
    return variants


def refuse_names(variants: Mapping[str, Variant]) -> None:
    """Raise ValueError where there is no name, or one that cannot be a partition's."""
    if not variants:
        raise ValueError("name at least one variant, for example [3b]")
    if wrong := [name for name in variants if not re.fullmatch(VARIANT_NAME, name)]:
        raise ValueError(
            f"{', '.join(map(repr, wrong))}: a variant's name has letters, digits, '.', '_' and "
            "'-', and begins with a letter or digit: it is the name of a folder and of partitions"
        )


def one_of(variants: Mapping[str, Variant], name: str | None) -> str:
    """The variant of a name, or the only one where no name is given.

    Raises:
        ValueError: there is no such variant, or it is not said which.
    """
    names = ", ".join(variants)
    if name is None and len(variants) > 1:
        raise ValueError(f"say which: --variant, one of {names}")
    chosen = next(iter(variants)) if name is None else name
    if chosen not in variants:
        raise ValueError(f"no variant {chosen!r}; the settings have {names}")
    return chosen


def trained(variants: Mapping[str, Variant], stage: int) -> list[str]:
    """The variants that train a stage."""
    return [name for name, variant in variants.items() if stage in variant.stages]


def start_of(variant: Variant) -> Start | None:
    """Where the training of a variant begins; None where the project builds it from a seed."""
    published = VARIANTS[variant.preset].start
    if variant.start is None and published is not None:
        return Start(repo=published, stage=0)
    return variant.start


def previous(variant: Variant, stage: int) -> str:
    """The asset that a stage of a variant starts from."""
    return "base_model" if stage == variant.first_stage else f"stage{stage - 1}"


def checkpoints_of(variant: Variant) -> tuple[str, ...]:
    """The assets that hold a variant's checkpoints: its start, then its stages."""
    return ("base_model", *(f"stage{stage}" for stage in variant.stages))


def encoder_from(variant: Variant) -> str:
    """The asset whose checkpoint holds the vision encoder that a variant's features are made with:
    stage 2 tunes it, and a later start brings its own.
    """
    return "stage2" if 2 in variant.stages else "base_model"


def llava_kinds(variants: Mapping[str, Variant], long_videos_only: bool) -> tuple[str, ...]:
    """The kinds of shards of the LLaVA collections that anything is trained on."""
    read = {
        item.kind
        for stage, row in STAGES.items()
        if trained(variants, stage) and not row.reads_long_videos
        for stream in stage_inputs(stage, long_parts=())
        for item in stream
    }
    if not long_videos_only:
        read |= set(MIXED_KINDS)
    return tuple(kind for kind in LLAVA_KINDS if kind in read)


def collections_of(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The assets that hold the annotation files of kinds of shards, each once."""
    return tuple(dict.fromkeys(KINDS[kind].collection for kind in kinds))
