"""What the tensors of Hour-LLaVA are called here and in the published checkpoints, and what shape
each has.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

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
