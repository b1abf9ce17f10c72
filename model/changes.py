"""What a training run may choose otherwise than the checkpoint that it starts from: the settings of
a model that the paper's ablations change. No torch here: the asset graph writes it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass

from model.config import PRESETS, HourLlavaConfig, TemplateTokens


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class ModelChanges:
    """Settings in place of the start's; None: as there.

    Attributes:
        temporal_forgetting: which frames stay: uniform, random, keyframe or question_guided, or
            another file of model/frame_rules.
        memory_scale: share of a video's memory that MemAug looks up: 1, 1/2, 1/4, ... or 0 for the
            tokens that stay alone.
        memaug_blocks: how many MemAug has; with another number than the start it is new, drawn from
            the run's seed. 0: no MemAug.
        memaug_positions: whether MemAug rotates by positions.
        template_tokens: whether MemAug sees the chat template's tokens.
    """

    temporal_forgetting: str | None = None
    memory_scale: float | None = None
    memaug_blocks: NonNegativeInt | None = None
    memaug_positions: bool | None = None
    template_tokens: TemplateTokens | None = None

    def __post_init__(self) -> None:
        self.applied(PRESETS["tiny"])  # names a value that no model can have

    def applied(self, config: HourLlavaConfig) -> HourLlavaConfig:
        """The configuration with these changes."""
        memory = replace(
            config.memory,
            **_given(temporal_forgetting=self.temporal_forgetting, scale=self.memory_scale),
        )
        others = _given(
            memaug_depth=self.memaug_blocks,
            memaug_positions=self.memaug_positions,
            template_tokens=self.template_tokens,
        )
        return replace(config, memory=memory, **others)

    @staticmethod
    def unlike_published(config: HourLlavaConfig) -> list[str]:
        """Settings of a model that the published system computes otherwise, and has no name for."""
        published = {
            "vision.encoder": config.vision.encoder == "siglip",
            "temporal_forgetting": config.memory.temporal_forgetting == "uniform",
            "memory_scale": config.memory.scale == 1,
            "memaug_positions": config.memaug_positions,
            "template_tokens": config.template_tokens == "hidden",
        }
        return [name for name, same in published.items() if not same]

    @property
    def of_memaug(self) -> bool:
        """Whether MemAug itself is another one, so that stage 1 would have trained it otherwise."""
        return self.memaug_blocks is not None or self.memaug_positions is not None


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
