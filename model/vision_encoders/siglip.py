"""SigLIP without its last layer, final norm and pooling head.

Shapes: B images, S picture size in pixels, P patches (row by row), C vision width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model.attention import attention
from model.config import VisionConfig
from model.vision_encoders import PictureCost, VisionEncoder, normalise


class SiglipEncoder(VisionEncoder):
    """Pixels to patch features: the hidden state after the last kept layer, not normalised."""

    linear_layers = ("q", "k", "v", "out", "up", "down")

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            3, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Embedding(config.patches_per_side**2, config.hidden_size)
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.num_layers))
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

    @staticmethod
    def cost(config: VisionConfig) -> PictureCost:
        """Of the patch embedding, and of layers that are all alike."""
        c, inner = config.hidden_size, config.intermediate_size
        patches, layers = config.patches, config.num_layers
        return PictureCost(
            first=2 * patches * 3 * config.patch_size**2 * c,
            linear=2 * patches * layers * (4 * c * c + 2 * c * inner),
            attention=4 * patches * patches * c * layers,
            passing=patches * 8 * c,
            inputs=(patches * c,) * layers,
            kept=(patches * (8 * c + 2 * inner),) * layers,
            kept_compiled=(patches * (6 * c + inner),) * layers,
            backward=patches * (5 * c + 3 * inner),
        )


class SiglipLayer(GradientCheckpointingLayer):
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


ENCODER = SiglipEncoder
