"""Vision encoders as the features step runs them, SigLIP arranged for throughput, and the loading
of their weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VisionConfig
from model.vision import pool_frames
from model.vision_encoders import VisionEncoder
from model.vision_encoders.siglip import SiglipEncoder, SiglipLayer
from model.weights.tensors import read_tensors
from model.weights.vision_encoder import is_exported, load_vision_encoder, siglip_name


def arrange(encoder: VisionEncoder, pooled_side: int, mlp_multiple: int = 1) -> nn.Module:
    """An encoder with pooling behind it: uint8 [B, S, S, 3] to bfloat16 [B, P, C].

    Args:
        encoder: whose weights are taken, in their type.
        pooled_side: P = pooled_side**2.
        mlp_multiple: see `FrameEncoder`.
    """
    if isinstance(encoder, SiglipEncoder):
        return FrameEncoder(encoder, pooled_side, mlp_multiple=mlp_multiple)
    return PlainFrameEncoder(encoder, pooled_side)


class PlainFrameEncoder(nn.Module):
    """Any encoder as it is."""

    def __init__(self, encoder: VisionEncoder, pooled_side: int) -> None:
        super().__init__()
        self.encoder, self.pooled_side = encoder, pooled_side

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """uint8 [B, S, S, 3] to bfloat16 [B, P, C]."""
        x_BNC = self.encoder(pixels_BSS3.permute(0, 3, 1, 2))
        return pool_frames(x_BNC.float(), self.pooled_side).to(torch.bfloat16)


class FrameEncoder(nn.Module):
    """SigLIP with `model.vision.encode_frames` arranged for throughput: the same result up to
    rounding.

    It takes pictures as they lie in the frame buffer, and computes fewer and larger matrix
    products: one for a layer's queries, keys and values together.

    Args:
        encoder: whose weights are taken, in their type.
        pooled_side: P = pooled_side**2.
        fused_gelu: on a GPU, let the matrix product apply GELU to what it just computed, instead of
            another pass over memory.
        mlp_multiple: the inner width of the MLP is filled up with zeros to a multiple of this,
            which changes no result.
    """

    def __init__(
        self,
        encoder: SiglipEncoder,
        pooled_side: int,
        fused_gelu: bool = True,
        mlp_multiple: int = 1,
    ) -> None:
        super().__init__()
        self.config, self.pooled_side, self.fused_gelu = encoder.config, pooled_side, fused_gelu
        self.patch_bias = encoder.patch_embedding.bias
        self.positions = encoder.position_embedding.weight
        # A patch's pixels in the order row, column, colour, as they lie in the picture: so patches
        # need no transposition, and the convolution over them is one matrix product.
        self.patch_weight = nn.Parameter(
            encoder.patch_embedding.weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        )
        self.layers = encoder.layers
        layers = self._layers()
        for layer in layers:
            _widen_mlp(layer, mlp_multiple)
        self.qkv_weights = nn.ParameterList(
            torch.cat([x.q.weight, x.k.weight, x.v.weight]) for x in layers
        )
        self.qkv_biases = nn.ParameterList(
            torch.cat([x.q.bias, x.k.bias, x.v.bias]) for x in layers
        )

    def forward(self, pixels_BSS3: Tensor) -> Tensor:
        """Encode and pool pictures.

        Args:
            pixels_BSS3: uint8 [B, S, S, 3].

        Returns:
            bfloat16 [B, P, C].
        """
        patches_BNp = self._patches(pixels_BSS3).to(self.patch_weight.dtype)
        x_BNC = F.linear(patches_BNp, self.patch_weight, self.patch_bias) + self.positions
        for layer, weight, bias in zip(
            self._layers(), self.qkv_weights, self.qkv_biases, strict=True
        ):
            qkv_BN3C = F.linear(layer.attention_norm(x_BNC), weight, bias)
            qkv_BN3HD = qkv_BN3C.unflatten(-1, (3, self.config.num_heads, -1))
            q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4)
            attended_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
            x_BNC = x_BNC + layer.out(attended_BHND.transpose(1, 2).flatten(2))
            x_BNC = x_BNC + layer.down(self._up(layer, layer.mlp_norm(x_BNC)))
        return pool_frames(x_BNC.float(), self.pooled_side).to(torch.bfloat16)

    def _patches(self, pixels_BSS3: Tensor) -> Tensor:
        """Pixels of each patch, from -1 to 1: float32 [B, N, patch * patch * 3]. Rows and columns
        that fill no patch are left out.
        """
        side, patch = self.config.patches_per_side, self.config.patch_size
        pixels = pixels_BSS3[:, : side * patch, : side * patch]
        pixels = pixels.unflatten(2, (side, patch)).unflatten(1, (side, patch))
        return pixels.transpose(2, 3).flatten(1, 2).flatten(2).float() / 127.5 - 1

    def _layers(self) -> list[SiglipLayer]:
        return cast(list[SiglipLayer], list(self.layers))

    def _up(self, layer: SiglipLayer, x_BNC: Tensor) -> Tensor:
        """The first half of a layer's MLP: a matrix product and GELU."""
        if not (self.fused_gelu and x_BNC.is_cuda):
            return F.gelu(layer.up(x_BNC), approximate="tanh")
        # cuBLASLt's GELU epilogue is the tanh approximation, as SigLIP's is.
        flat = torch._addmm_activation(
            layer.up.bias, x_BNC.flatten(0, 1), layer.up.weight.t(), use_gelu=True
        )
        return flat.unflatten(0, x_BNC.shape[:2])


def _widen_mlp(layer: SiglipLayer, multiple: int) -> None:
    """Add inner units that are always zero: GELU of zero is zero."""
    more = -layer.up.out_features % multiple
    if more:
        layer.up.weight = nn.Parameter(F.pad(layer.up.weight, (0, 0, 0, more)))
        layer.up.bias = nn.Parameter(F.pad(layer.up.bias, (0, more)))
        layer.down.weight = nn.Parameter(F.pad(layer.down.weight, (0, more)))


def load_encoder(folder: Path) -> VisionEncoder:
    """A vision encoder of ours, or any SigLIP checkpoint. Of a full one, the last layer and the
    heads are left out: LLaVA-OneVision takes the output of the layer before the last one.

    Args:
        folder: with `config.json` and safetensors.

    Raises:
        ValueError: the files are not SigLIP's.
    """
    config = json.loads((folder / "config.json").read_text())
    if is_exported(config):
        return load_vision_encoder(folder)
    vision = {**_SIGLIP_DEFAULTS, **config.get("vision_config", config)}
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= read_tensors(file)
    with torch.device("meta"):
        encoder = SiglipEncoder(
            VisionConfig(
                vision["image_size"],
                vision["patch_size"],
                vision["hidden_size"],
                vision["intermediate_size"],
                vision["num_hidden_layers"] - 1,
                vision["num_attention_heads"],
                vision["layer_norm_eps"],
            )
        )
    names = {name: siglip_name(name) for name in encoder.state_dict()}
    if missing := sorted(set(names.values()) - set(state)):
        raise ValueError(f"{folder}: not a SigLIP checkpoint, it lacks {', '.join(missing[:3])}")
    try:
        encoder.load_state_dict(
            {ours: state[theirs] for ours, theirs in names.items()}, assign=True
        )
    except RuntimeError as error:
        raise ValueError(f"{folder}: its tensors do not fit its config.json: {error}") from error
    return encoder.eval()


_SIGLIP_DEFAULTS = {  # of transformers' SiglipVisionConfig, which config.json leaves out
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
