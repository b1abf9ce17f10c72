"""The vision encoder in a folder of its own, what the features step loads: SigLIP under its own
names, so that others read it, too; any other encoder under ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.config import VisionConfig
from model.configuration import parse
from model.vision_encoders import VisionEncoder, build_encoder
from model.weights.tensors import read_tensors, write_tensors

_OURS = "hour_llava_vision"  # in config.json: what HourLlavaConfig.vision holds
_CONFIG_NAMES = {  # our configuration -> SigLIP's
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "layer_norm_eps": "layer_norm_eps",
}


def save_vision_encoder(encoder: VisionEncoder, directory: Path) -> None:
    """Write `config.json` and `model.safetensors`, in the weights' type."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = _written(encoder.config)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    name = _names(encoder.config)
    state = {name(ours): tensor.contiguous().cpu() for ours, tensor in encoder.state_dict().items()}
    write_tensors(directory / "model.safetensors", state)


def is_exported(config: Mapping[str, Any]) -> bool:
    """Whether a folder with this `config.json` was written by `save_vision_encoder`."""
    return _OURS in config or (
        "vision_config" not in config and not config.get("vision_use_head", True)
    )


def _written(config: VisionConfig) -> dict[str, Any]:
    if config.encoder != "siglip":
        return {_OURS: asdict(config)}
    return {theirs: getattr(config, ours) for ours, theirs in _CONFIG_NAMES.items()} | {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        "vision_use_head": False,
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": 3,
        "attention_dropout": 0.0,
    }


def _read(config: Mapping[str, Any], file: Path) -> VisionConfig:
    if _OURS in config:
        return parse(VisionConfig, config[_OURS])
    if missing := [theirs for theirs in _CONFIG_NAMES.values() if theirs not in config]:
        raise ValueError(f"{file}: no {', '.join(missing)}; is this a SigLIP vision encoder?")
    return VisionConfig(**{ours: config[theirs] for ours, theirs in _CONFIG_NAMES.items()})


def _names(config: VisionConfig) -> Callable[[str], str]:
    """From our names to those in the file."""
    return siglip_name if config.encoder == "siglip" else str


def load_vision_encoder(directory: Path) -> VisionEncoder:
    """The inverse of `save_vision_encoder`, in the file's type, on the CPU.

    Raises:
        ValueError: `config.json` is not of a known encoder, or the tensors do not fit it.
    """
    directory = Path(directory)
    file = directory / "config.json"
    config = _read(json.loads(file.read_text()), file)
    with torch.device("meta"):
        encoder = build_encoder(config)
    name = _names(config)
    wanted = {name(ours): ours for ours in encoder.state_dict()}
    state = read_tensors(directory / "model.safetensors")
    if set(state) != set(wanted):
        raise ValueError(
            f"{directory / 'model.safetensors'}: missing {sorted(set(wanted) - set(state))[:5]}, "
            f"unknown {sorted(set(state) - set(wanted))[:5]}"
        )
    try:
        encoder.load_state_dict(
            {wanted[name]: tensor for name, tensor in state.items()}, assign=True
        )
    except RuntimeError as error:
        raise ValueError(
            f"{directory / 'model.safetensors'} does not fit its config.json: {error}"
        ) from error
    return encoder.eval()


_LAYER_NAMES = {
    "attention_norm": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def siglip_name(name: str) -> str:
    """The name SigLIP gives to a tensor of `SiglipEncoder`."""
    if name.startswith("layers."):
        _, number, module, kind = name.split(".")
        return f"vision_model.encoder.layers.{number}.{_LAYER_NAMES[module]}.{kind}"
    if name.startswith("post_norm_"):
        return f"vision_model.post_layernorm.{name.removeprefix('post_norm_')}"
    return f"vision_model.embeddings.{name}"
