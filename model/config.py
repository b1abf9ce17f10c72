"""What a Hour-LLaVA model is, as plain data: no torch here, so that anything may import it.

`VARIANTS` is the table of the model's sizes. `to_dict` gives what a checkpoint's config.json holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from model.configuration import parse

KNOWN_ONLY = ConfigDict(extra="forbid")  # an unknown key is an error


def _files(folder: str) -> tuple[str, ...]:
    """Names of what a folder beside this file holds. Read without an import, which needs torch."""
    found = (path.stem for path in (Path(__file__).parent / folder).glob("*.py"))
    return tuple(sorted(name for name in found if name != "__init__"))


FRAME_RULES = _files("frame_rules")  # the ways of forgetting frames
VISION_ENCODERS = _files("vision_encoders")
TemplateTokens = Literal["hidden", "seen"]


def frame_step(memory_scale: float) -> int:
    """Of how many frames MemAug looks one up; 0: only the tokens that stay as queries.

    Raises:
        ValueError: the scale is neither 0 nor 1, 1/2, 1/3, ...
    """
    step = round(1 / memory_scale) if 1e-9 < memory_scale <= 1 else 0
    # Written as a decimal fraction, a third is not quite one.
    if memory_scale != 0 and (not step or abs(memory_scale * step - 1) > 5e-3):
        raise ValueError(f"memory_scale is {memory_scale}; it must be 1, 1/2, 1/3, ... or 0")
    return step


@dataclass(frozen=True, slots=True, config=KNOWN_ONLY)
class VisionConfig:
    """SigLIP-so400m by default, of which `num_layers` layers are kept: its last one is never
    computed.

    `encoder` names a file of model/vision_encoders. A patch is what becomes one token of
    `hidden_size` numbers: `patch_size` is its side in pixels. An encoder that comes in one form
    takes no other sizes than its own.
    """

    image_size: int = 384
    patch_size: int = 14
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_layers: int = 26
    num_heads: int = 16
    layer_norm_eps: float = 1e-6
    encoder: str = "siglip"

    def __post_init__(self) -> None:
        if self.encoder not in VISION_ENCODERS:
            raise ValueError(
                f"vision.encoder is {self.encoder!r}; known: {', '.join(VISION_ENCODERS)}"
            )

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one picture: as many tokens it has before pooling."""
        return self.patches_per_side**2


@dataclass(frozen=True, slots=True, config=KNOWN_ONLY)
class LLMConfig:
    """A Qwen2 / Qwen2.5 language model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 32768

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def kv_width(self) -> int:
        """Numbers in the keys and values of one token, of one layer."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, config=KNOWN_ONLY)
class MemoryConfig:
    """The memory of a video and what forgetting keeps of it as queries.

    A frame is pooled to `pooled_side`^2 tokens; fewer than `min_frames` frames are repeated up to
    that many. Forgetting keeps `temporal_ratio` of the frames, at most `max_query_frames`, and
    `spatial_ratio` of each one's tokens. `temporal_forgetting` names the rule by which frames stay,
    a file of model/frame_rules. `scale` is the share of a video's frames that MemAug looks up; 0:
    only the tokens that stay, see `model.memory.looked_up`.
    """

    pooled_side: int = 8
    min_frames: int = 128
    max_query_frames: int = 512
    temporal_ratio: float = 0.25
    spatial_ratio: float = 0.25
    temporal_forgetting: str = "uniform"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.temporal_forgetting not in FRAME_RULES:
            raise ValueError(
                f"memory.temporal_forgetting is {self.temporal_forgetting!r}; known: "
                f"{', '.join(FRAME_RULES)}"
            )
        frame_step(self.scale)
        for name in ("temporal_ratio", "spatial_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"memory.{name} is {getattr(self, name)}; it must lie in (0, 1]")
        if self.stride**2 * self.spatial_ratio != 1:
            raise ValueError(
                f"memory.spatial_ratio is {self.spatial_ratio}; uniform forgetting keeps every "
                "n-th row and column, so it must be 1, 1/4, 1/9, 1/16, ..."
            )

    @property
    def stride(self) -> int:
        """Uniform forgetting keeps every `stride`-th row and column."""
        return round(math.sqrt(1 / self.spatial_ratio))

    def keeping(self, frames: int) -> MemoryConfig:
        """The same with so many frames that stay, or all where there are fewer.

        Raises:
            ValueError: not even one.
        """
        if frames < 1:
            raise ValueError(f"kept_frames is {frames}; at least one frame stays")
        return replace(self, temporal_ratio=1.0, max_query_frames=frames)

    @property
    def frame_tokens(self) -> int:
        """Tokens of one pooled frame, without its newline."""
        return self.pooled_side**2


@dataclass(frozen=True, slots=True, config=KNOWN_ONLY)
class HourLlavaConfig:
    """A whole model. `variant` names it and decides which feature files belong to it.

    `memaug_depth` counts the blocks of MemAug; without any, the tokens that stay go to the language
    model as they are. `memaug_positions`: whether MemAug rotates by positions. `template_tokens`:
    whether MemAug sees those of the chat template, see `model.inputs.with_template_tokens`.
    """

    variant: str
    vision: VisionConfig
    llm: LLMConfig
    memory: MemoryConfig = MemoryConfig()
    memaug_depth: int = 4
    memaug_positions: bool = True
    template_tokens: TemplateTokens = "hidden"
    max_length: int = 32768  # LLM tokens of one sample, visual ones included
    image_grid: int = 6  # an anyres image is cut into at most image_grid x image_grid tiles
    # The map of an anyres image is shrunk to about this many tiles' worth of tokens
    # ("anyres_max_9" in the published configuration).
    anyres_max: int = 9
    # Longer pixel videos run through the vision encoder without gradient, as the published system
    # does. None: never.
    vision_gradient_frames: int | None = 128

    def __post_init__(self) -> None:
        if self.memaug_depth < 0:
            raise ValueError(f"memaug_depth is {self.memaug_depth}; it cannot be below 0")
        if self.llm.hidden_size % self.llm.num_heads or self.llm.num_heads % self.llm.num_kv_heads:
            raise ValueError(
                f"llm: {self.llm.num_heads} heads must divide the width {self.llm.hidden_size} "
                f"and be a multiple of the {self.llm.num_kv_heads} key-value heads"
            )
        if self.llm.head_dim % 4:
            raise ValueError(
                f"llm: head dimension {self.llm.head_dim} must be a multiple of 4 (half of it is "
                "rotated)"
            )
        if self.max_length > self.llm.max_position_embeddings:
            raise ValueError(
                f"max_length {self.max_length} is above llm.max_position_embeddings "
                f"{self.llm.max_position_embeddings}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dictionaries of numbers and strings, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HourLlavaConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown or missing, or a value does not fit; it is named.
        """
        try:
            return parse(cls, dict(values))
        except ValueError as error:
            raise ValueError(f"model configuration: {error}") from error


@dataclass(frozen=True, slots=True)
class Variant:
    """One size of the model.

    Attributes:
        config: its numbers.
        start: repository on the hub with the LLaVA-OneVision weights that stage 1 starts from.
        packaged: whether it starts from pretrained parts that installed packages hold. Without
            either, the project builds its weights from a seed, for demos and tests on a CPU.
    """

    config: HourLlavaConfig
    start: str | None = None
    packaged: bool = False

    @property
    def is_demo(self) -> bool:
        """Whether it is small enough to be trained on any CPU, and made for that."""
        return self.start is None and not self.packaged


# A new variant is an entry here. It is trained by the recipes of training/recipes.py.
VARIANTS: dict[str, Variant] = {
    # With every mechanism of the large ones: grouped queries, tied embeddings, pooling.
    "tiny": Variant(
        HourLlavaConfig(
            variant="tiny",
            vision=VisionConfig(
                112, 14, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4
            ),
            llm=LLMConfig(
                128,
                2,
                4,
                2,
                256,
                vocab_size=512,
                tie_word_embeddings=True,
                max_position_embeddings=4096,
            ),
            memory=MemoryConfig(pooled_side=4, min_frames=16),
            memaug_depth=2,
            max_length=4096,
        )
    ),
    # Pretrained parts out of two packages, for one GPU and for patient CPUs.
    "small": Variant(
        HourLlavaConfig(  # on SmolLM2-135M-Instruct
            variant="small",
            vision=VisionConfig(
                224,
                32,
                hidden_size=1280,
                intermediate_size=1152,
                num_layers=16,
                num_heads=1,
                layer_norm_eps=1e-3,
                encoder="efficientnet_lite0",
            ),
            llm=LLMConfig(
                576,
                30,
                9,
                3,
                1536,
                vocab_size=49152,
                rope_theta=100_000.0,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
                max_position_embeddings=8192,
            ),
            # Of the encoder's 7 x 7 places.
            memory=MemoryConfig(pooled_side=4, min_frames=16),
            max_length=8192,
        ),
        packaged=True,
    ),
    "3b": Variant(
        HourLlavaConfig(  # on Qwen2.5-3B
            variant="3b",
            vision=VisionConfig(),
            llm=LLMConfig(2048, 36, 16, 2, 11008, vocab_size=151936, tie_word_embeddings=True),
        ),
        start="jylins/llava-onevision-qwen25-3b-si",
    ),
    "7b": Variant(
        HourLlavaConfig(  # on Qwen2-7B
            variant="7b",
            vision=VisionConfig(),
            llm=LLMConfig(3584, 28, 28, 4, 18944, vocab_size=152064),
        ),
        start="lmms-lab/llava-onevision-qwen2-7b-si",
    ),
}
PRESETS: dict[str, HourLlavaConfig] = {name: row.config for name, row in VARIANTS.items()}
