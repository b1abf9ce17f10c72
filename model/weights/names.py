"""What the tensors of Hour-LLaVA are called here and in the published checkpoints, and what shape
each has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from model.config import HourLlavaConfig
from model.hour_llava import HourLlava
from model.weights.vision_encoder import siglip_name

_PROJECTOR = {"up": "0", "out": "2"}
_MEMAUG = {
    "self_attention.qkv": "self_attn.Wqkv",
    "self_attention.out": "self_attn.Wo",
    "cross_attention.q": "cross_attn.Wq",
    "cross_attention.kv": "cross_attn.Wkv",
    "cross_attention.out": "cross_attn.Wo",
    "up": "mlp.0",
    "down": "mlp.2",
    "self_norm": "norm1",
    "cross_norm": "norm2",
    "mlp_norm": "norm3",
}


def published_name(name: str) -> str:
    """The published name of one of our tensors (`HourLlava.state_dict()`)."""
    part, _, rest = name.partition(".")
    if part == "vision":
        return f"model.vision_tower.vision_tower.{siglip_name(rest)}"
    if part == "projector":
        module, kind = rest.split(".")
        return f"model.mm_projector.{_PROJECTOR[module]}.{kind}"
    if part == "memaug":
        _, number, rest = rest.split(".", 2)
        module, kind = rest.rsplit(".", 1)
        return f"model.vision_resampler.layers.{number}.{_MEMAUG[module]}.{kind}"
    return (
        rest if part == "llm" else f"model.{name}"
    )  # the language model's own names; image_newline


def shapes(config: HourLlavaConfig) -> Mapping[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this configuration holds, by our names, and its shape. Tied ones
    appear once.
    """
    with torch.device("meta"):
        model = HourLlava(config)
    held = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.llm.tie_word_embeddings:
        del held["llm.lm_head.weight"]
    return MappingProxyType(held)


def published_config(config: HourLlavaConfig) -> dict[str, Any]:
    """The published configuration's own names for what ours says."""
    llm, tile = config.llm, config.vision.image_size
    steps = range(tile, tile * (config.image_grid + 1), tile)
    return {
        "architectures": ["HourLlavaQwenForCausalLM"],
        "hidden_size": llm.hidden_size,
        "num_hidden_layers": llm.num_layers,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "intermediate_size": llm.intermediate_size,
        "vocab_size": llm.vocab_size,
        "rope_theta": llm.rope_theta,
        "rms_norm_eps": llm.rms_norm_eps,
        "tie_word_embeddings": llm.tie_word_embeddings,
        "max_position_embeddings": llm.max_position_embeddings,
        "tokenizer_model_max_length": config.max_length,
        "tokenizer_padding_side": "right",
        "memaug_depth": config.memaug_depth,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": "memaug",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_newline_position": "grid",
        "mm_spatial_pool_mode": "bilinear",
        "image_aspect_ratio": f"anyres_max_{config.anyres_max}",
        "image_grid_pinpoints": [[width, height] for width in steps for height in steps],
    }
