"""Vision encoders: pictures to [B, P, C], the features that projector and MemAug read.

An encoder is one file of this folder, and its name is the file's. It holds an `ENCODER`, a subclass
of `VisionEncoder`; `vision.encoder` of a model's configuration names it. Nothing else knows which
encoders there are.

Shapes: B images, S picture size in pixels, P patches (row by row), C vision width.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.config import VISION_ENCODERS, VisionConfig
from model.packages import PackagedFile


@dataclass(frozen=True, slots=True)
class PictureCost:
    """What one picture costs. A multiplication with its addition counts as two operations.

    Attributes:
        first: operations of what has nothing to train below it: no gradient passes through.
        linear: operations of the other matrix products and convolutions.
        attention: operations of products of two activations.
        passing: numbers in memory at most at a time, where no gradient is kept.
        inputs: numbers that enter each of the layers.
        kept: numbers that each of the layers keeps for its backward pass; `kept_compiled`: where
            it is compiled, and keeps its input and the results of products and attention only.
        backward: numbers that a layer's backward pass has besides, at most.
        kept_outside: numbers that are kept before and behind the layers.
    """

    first: float
    linear: float
    attention: float
    passing: int
    inputs: tuple[int, ...]
    kept: tuple[int, ...]
    kept_compiled: tuple[int, ...]
    backward: int
    kept_outside: int = 0


class VisionEncoder(nn.Module, ABC):
    """Pixels to patch features. They are stored under a hash of the weights: what these do not show
    is fixed in the encoder's file.

    Attributes:
        config: its sizes. P is `config.patches`, C is `config.hidden_size`.
        layers: its repeated blocks, which are compiled and recomputed one by one: modules of
            transformers' `GradientCheckpointingLayer`.
        alike: whether one graph serves all of them.
        linear_layers: names of the linear layers in each of the blocks; adapters go beside them.
        package: holds pretrained weights. None: they come with a checkpoint.
    """

    layers: nn.ModuleList
    alike: ClassVar[bool] = True
    linear_layers: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[PackagedFile | None] = None

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S], uint8 or as `normalise` gives them, to [B, P, C].

        Also takes pictures of a single patch: a rank without any picture runs one, so that all
        ranks run the same modules.
        """

    @staticmethod
    def pretrained() -> dict[str, Tensor]:
        """The weights of `package` by our names, float32.

        Raises:
            ValueError: the package is not installed (says how to install it), or there is none.
        """
        raise ValueError("no package holds the weights of this vision encoder")

    @staticmethod
    @abstractmethod
    def cost(config: VisionConfig) -> PictureCost:
        """What a picture of the configured size costs."""


def find_encoder(name: str) -> type[VisionEncoder]:
    """The encoder of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in VISION_ENCODERS:
        raise ValueError(f"unknown vision encoder {name!r}; known: {', '.join(VISION_ENCODERS)}")
    encoder: type[VisionEncoder] = import_module(f"{__name__}.{name}").ENCODER
    return encoder


def build_encoder(config: VisionConfig) -> VisionEncoder:
    """The encoder that a configuration names; its weights are arbitrary until they are loaded.

    Raises:
        ValueError: the encoder does not come in these sizes.
    """
    return find_encoder(config.encoder)(config)


def picture_cost(config: VisionConfig) -> PictureCost:
    """What a picture costs the encoder that a configuration names."""
    return find_encoder(config.encoder).cost(config)


@functools.cache
def parameter_count(config: VisionConfig) -> int:
    """Number of parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_encoder(config).parameters())


@functools.cache
def linear_sides(config: VisionConfig) -> int:
    """Inputs and outputs together of all layers that adapters go beside."""
    with torch.device("meta"):
        encoder = build_encoder(config)
    linear = [
        layer.get_parameter(f"{name}.weight")
        for layer in encoder.layers
        for name in encoder.linear_layers
    ]
    return sum(sum(weight.shape) for weight in linear)


def normalise(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 u becomes u / 127.5 - 1; floating-point pixels are taken as normalised already."""
    return (
        (pixels.float() / 127.5 - 1).to(dtype) if pixels.dtype == torch.uint8 else pixels.to(dtype)
    )
