"""How a trained model may be asked, beside the question: what forgetting keeps, and what MemAug
looks up and sees. The published ablations vary these.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

from model.config import HourLlavaConfig, TemplateTokens, frame_step

TEMPLATE_TOKENS: tuple[str, ...] = get_args(TemplateTokens)
OF_VIDEOS = ("memory_scale", "kept_frames")
MOST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class AskOptions:
    """As the checkpoint was trained, where nothing is said.

    Attributes:
        memory_scale: share of a video's memory that MemAug looks up, see `frame_step`.
        kept_frames: how many of a video's frames stay as queries.
        template_tokens: whether MemAug sees the chat template's tokens: `hidden` or `seen`.
        forgetting_seed: draws the tokens that stay; None takes every n-th, and nothing is drawn.

    Raises:
        ValueError: one of them has no meaning; it is named.
    """

    memory_scale: float | None = None
    kept_frames: int | None = None
    template_tokens: str | None = None
    forgetting_seed: int | None = None

    def __post_init__(self) -> None:
        if self.memory_scale is not None:
            frame_step(self.memory_scale)
        if self.template_tokens not in (None, *TEMPLATE_TOKENS):
            raise ValueError(
                f"template_tokens is {self.template_tokens!r}; known: {', '.join(TEMPLATE_TOKENS)}"
            )
        if self.kept_frames is not None and self.kept_frames < 1:
            raise ValueError(f"kept_frames is {self.kept_frames}; at least one frame stays")
        if self.forgetting_seed is not None and not 0 <= self.forgetting_seed <= MOST_SEED:
            raise ValueError(
                f"forgetting_seed is {self.forgetting_seed}; it must be from 0 to 2^63 - 1"
            )

    @property
    def forgetting(self) -> str:
        """The rule of model/forgetting.py."""
        return "uniform" if self.forgetting_seed is None else "random"

    def given(self) -> dict[str, object]:
        """Those that are said, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def looks_at_frames(self, config: HourLlavaConfig) -> bool:
        """Whether MemAug looks whole frames up, so that one can ask at which."""
        scale = config.memory.scale if self.memory_scale is None else self.memory_scale
        return config.memaug_depth > 0 and scale > 0

    def check_visuals(self, video: bool, images: bool) -> None:
        """Raise ValueError where an option has nothing to act on."""
        given = self.given()
        if not video and (idle := [name for name in OF_VIDEOS if name in given]):
            raise ValueError(f"{', '.join(idle)}: there is no video")
        if not video and not images and given:
            raise ValueError(f"{', '.join(given)}: there is neither a video nor an image")
