"""Low-rank adapters (LoRA) by peft: put into the model, filled, merged into the export, and kept
beside it in peft's own format.

peft makes the adapters' modules; what trains them is the loop of all runs, because an adapter's
matrices are parameters like any others. peft is imported only for a run that asks for adapters
(extra `lora`).

Names: a weight `a.b.weight` under an adapter is `a.b.base_layer.weight` in the model; its matrices
are `a.b.lora_A.default.weight` [rank, in] and `a.b.lora_B.default.weight` [out, rank].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from model.hour_llava import HourLlava
from model.initialise import drawn
from model.vision_encoders import VisionEncoder
from training.recipes import Lora

ADAPTER_FOLDER = "adapter"
_BASE, _DOWN, _UP = ".base_layer", ".lora_A.default", ".lora_B.default"
# The linear layers of each module, by their names in a `HourLlava`; a vision encoder says its own.
_LAYERS = {
    "projector": r"projector\.(up|out)",
    "memaug": r"memaug\.blocks\.\d+\."
    r"(self_attention\.(qkv|out)|cross_attention\.(q|kv|out)|up|down)",
    "llm": r"llm\.model\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj",
}


def insert_adapters(model: HourLlava, lora: Lora) -> None:
    """Put an adapter beside every linear layer of the modules of `lora`, in place.

    Args:
        model: on the meta device.

    Raises:
        ValueError: peft is not installed, or the vision encoder has no place for adapters.
    """
    if "vision" in lora.modules and not model.vision.linear_layers:
        raise ValueError(
            f"lora: the vision encoder {model.vision.config.encoder} has no linear layers that "
            "adapters could go beside; leave vision out of lora.modules"
        )
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"lora: peft cannot be imported ({error}); install it: pip install 'hour-llava[lora]'"
        ) from error
    inject_adapter_in_model(_peft_config(lora, model.vision), model, low_cpu_mem_usage=True)


def is_adapter(name: str) -> bool:
    """Whether a parameter is one of an adapter's matrices."""
    return _DOWN in name or _UP in name


def plain_name(name: str) -> str:
    """The name of a weight in a model without adapters."""
    return name.replace(_BASE, "")


@torch.no_grad()
def fill_adapters(model: nn.Module, seed: str) -> None:
    """Give the adapters their first values: `lora_A` random, of the spread that peft gives it,
    `lora_B` zero. So the model computes what it did without them.

    Each matrix is drawn from its name and the seed, whatever the number of ranks.
    """
    for name, parameter in model.named_parameters():
        if _UP in name:
            parameter.zero_()
        elif _DOWN in name:
            whole = drawn(name, tuple(parameter.shape), seed, 1 / math.sqrt(3 * parameter.shape[1]))
            if isinstance(parameter, DTensor):
                mesh, local = parameter.device_mesh, parameter.to_local()
                rows = -(-len(whole) // mesh.size())
                first = mesh.get_local_rank() * rows
                local.copy_(whole[first : first + len(local)])
            else:
                parameter.copy_(whole)


def merged(state: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Whole tensors of a model with adapters as those of the model that they make: each weight plus
    its adapter, added in float32; the names are those of a model without adapters.
    """
    plain: dict[str, Tensor] = {}
    for name, weight in state.items():
        if is_adapter(name):
            continue
        layer = name.removesuffix(f"{_BASE}.weight")
        if layer != name:
            down, up = (state[f"{layer}{part}.weight"].float() for part in (_DOWN, _UP))
            weight = (weight.float() + lora.scale * (up @ down)).to(weight.dtype)
        plain[plain_name(name)] = weight
    return plain


def write_adapter(
    folder: Path,
    state: Mapping[str, Tensor],
    lora: Lora,
    tuned: Collection[str],
    encoder: VisionEncoder,
) -> None:
    """Write what was trained as peft does: `PeftModel.from_pretrained` puts it onto the run's
    start.

    Args:
        state: whole tensors of the model with adapters.
        tuned: the run's tuned modules; those without adapters are written whole.
        encoder: the model's vision encoder.
    """
    whole = [f"model.{module}" for module in tuned if module not in lora.modules]
    tensors = {
        f"base_model.model.{name.replace('.default', '')}": tensor
        for name, tensor in state.items()
        if is_adapter(name) or any(name.startswith(f"{module}.") for module in whole)
    }
    config = _peft_config(lora, encoder)
    config.modules_to_save = whole or None
    config.inference_mode = True
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft_config(lora: Lora, encoder: VisionEncoder) -> Any:
    from peft import LoraConfig

    known = _LAYERS | {"vision": rf"vision\.layers\.\d+\.({'|'.join(encoder.linear_layers)})"}
    layers = "|".join(known[module] for module in lora.modules)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=rf"(model\.)?({layers})",
    )
