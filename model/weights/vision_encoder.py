"""The vision encoder in a folder of its own, under SigLIP's names: what the features step loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from model.config import VisionConfig
from model.vision import VisionEncoder
from model.weights.tensors import read_tensors, write_tensors

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
    """Write `config.json` and `model.safetensors` under SigLIP's own names, in the weights' type.

    Others (transformers) read them, too.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        theirs: getattr(encoder.config, ours) for ours, theirs in _CONFIG_NAMES.items()
    }
    config |= {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        "vision_use_head": False,
        "hidden_act": "gelu_pytorch_tanh",
        "num_channels": 3,
        "attention_dropout": 0.0,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {
        siglip_name(name): tensor.contiguous().cpu()
        for name, tensor in encoder.state_dict().items()
    }
    write_tensors(directory / "model.safetensors", state)


def load_vision_encoder(directory: Path) -> VisionEncoder:
    """The inverse of `save_vision_encoder`, in the file's type, on the CPU.

    Raises:
        ValueError: `config.json` is not SigLIP's, or the tensors do not fit it.
    """
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    if missing := [theirs for theirs in _CONFIG_NAMES.values() if theirs not in config]:
        raise ValueError(
            f"{directory / 'config.json'}: no {', '.join(missing)}; is this a SigLIP vision "
            "encoder?"
        )
    with torch.device("meta"):
        encoder = VisionEncoder(
            VisionConfig(**{ours: config[theirs] for ours, theirs in _CONFIG_NAMES.items()})
        )
    wanted = {siglip_name(name): name for name in encoder.state_dict()}
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
    """The name SigLIP gives to a tensor of `VisionEncoder`."""
    if name.startswith("layers."):
        _, number, module, kind = name.split(".")
        return f"vision_model.encoder.layers.{number}.{_LAYER_NAMES[module]}.{kind}"
    if name.startswith("post_norm_"):
        return f"vision_model.post_layernorm.{name.removeprefix('post_norm_')}"
    return f"vision_model.embeddings.{name}"
