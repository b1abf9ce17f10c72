"""The vision encoder (SigLIP without its last layer, final norm and pooling head), pooling, and the
projector.

Shapes: B images, T frames, S picture size in pixels, P patches (row by row), C vision width, D
language model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model.attention import attention
from model.config import VisionConfig

# Frames that pass through the encoder at once when no gradient is kept: bounds memory, changes no
# result.
CHUNK = 128


class VisionEncoder(nn.Module):
    """Pixels to patch features: the hidden state after the last kept layer, not normalised."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        # Weights of the norm behind the dropped layer: never used, carried so that a checkpoint can
        # be converted back.
        self.register_buffer("post_norm_weight", torch.ones(config.hidden_size))
        self.register_buffer("post_norm_bias", torch.zeros(config.hidden_size))

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """[B, 3, S, S], uint8 or normalised, to [B, P, C].

        A picture smaller than the configured size, down to a single patch, uses the first position
        embeddings.
        """
        weight = self.patch_embedding.weight
        x_BPC = (
            self.patch_embedding(normalise(pixels_B3SS, weight.dtype)).flatten(2).transpose(1, 2)
        )
        # Contiguous as every layer's output is, so that one compiled graph serves all layers.
        x_BPC = (x_BPC + self.position_embedding.weight[: x_BPC.shape[1]]).contiguous()
        for layer in self.layers:
            x_BPC = layer(x_BPC)
        return x_BPC


class VisionLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer, tanh-approximated GELU."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)

    def forward(self, x_BPC: Tensor) -> Tensor:
        y_BPC = self.attention_norm(x_BPC)
        q, k, v = (
            linear(y_BPC).unflatten(-1, (self.heads, -1)) for linear in (self.q, self.k, self.v)
        )
        x_BPC = x_BPC + self.out(attention(q, k, v).flatten(2))
        return x_BPC + self.down(F.gelu(self.up(self.mlp_norm(x_BPC)), approximate="tanh"))


class Projector(nn.Module):
    """Vision features [..., C] to language model embeddings [..., D]."""

    def __init__(self, vision_width: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(vision_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x_C: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x_C)))


def normalise(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 u becomes u / 127.5 - 1; floating-point pixels are taken as normalised already."""
    return (
        (pixels.float() / 127.5 - 1).to(dtype) if pixels.dtype == torch.uint8 else pixels.to(dtype)
    )


def pool_frames(x_TPC: Tensor, side: int) -> Tensor:
    """Shrink each frame's square patch grid to side x side: [T, P, C] -> [T, side * side, C],
    bilinear.
    """
    patches = round(x_TPC.shape[1] ** 0.5)
    x_TCHW = x_TPC.transpose(1, 2).unflatten(-1, (patches, patches))
    return (
        F.interpolate(x_TCHW, (side, side), mode="bilinear", align_corners=False)
        .flatten(2)
        .transpose(1, 2)
    )


@torch.no_grad()
def encode_frames(encoder: VisionEncoder, pixels_T3SS: Tensor, side: int) -> Tensor:
    """What a feature file holds: frames [T, 3, S, S], on any device, to pooled features [T, side *
    side, C] on its own.

    At most `CHUNK` frames are on the encoder's device at a time.
    """
    device = encoder.patch_embedding.weight.device
    chunks = (chunk.to(device, non_blocking=True) for chunk in pixels_T3SS.split(CHUNK))
    return torch.cat([pool_frames(encoder(chunk), side) for chunk in chunks])
