"""What a checkpoint is, by its configuration and the names of its tensors alone: nothing that it
calls itself decides. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from model.config import PRESETS, HourLlavaConfig
from model.weights.tensors import checkpoint_files, stored_tensors

Kind = Literal["LLaVA-OneVision", "released Hour-LLaVA", "own export"]

ACCEPTED = (
    "an export of this project (its config.json has hour_llava), a released Hour-LLaVA checkpoint "
    "(tensors model.vision_resampler.layers.*), or LLaVA-OneVision single-image weights (tensors "
    "model.vision_tower.* and model.mm_projector.*, without a resampler)"
)
NAMED = 5  # tensors that a refusal names


def recognise(folder: Path) -> Kind:
    """What the checkpoint in a folder is.

    Raises:
        ValueError: of no kind that is known; says what was found and what is accepted.
    """
    config = read_config(folder)
    names = [tensor.name for tensor in stored_tensors(*checkpoint_files(folder))]
    if (kind := kind_of(config, names)) is not None:
        return kind
    found = f"tensors {', '.join(names[:NAMED])}" if names else "no *.safetensors file"
    raise ValueError(
        f"{folder}: not a checkpoint to start from. Found {found}; accepted: {ACCEPTED}"
    )


def kind_of(config: Mapping[str, Any], names: Iterable[str]) -> Kind | None:
    """What a checkpoint with this configuration and tensors of these names is; None: of no kind
    that is known.
    """
    if "hour_llava" in config:
        return "own export"
    held = list(names)
    if any(name.startswith("model.vision_resampler.layers.") for name in held):
        return "released Hour-LLaVA"
    if all(
        any(name.startswith(part) for name in held)
        for part in ("model.vision_tower.", "model.mm_projector.")
    ):
        return "LLaVA-OneVision"
    return None


def preset_of(config: Mapping[str, Any]) -> str | None:
    """The preset whose language model a configuration describes, in our form or the published one;
    None where it is none of them, or does not say enough.
    """
    if "hour_llava" in config:
        own = HourLlavaConfig.from_dict(config["hour_llava"])
        return next((name for name in PRESETS if not differences(own, PRESETS[name])), None)
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    given = tuple(config.get(name) for name in sizes)
    for name, preset in PRESETS.items():
        llm = preset.llm
        if given == (llm.hidden_size, llm.num_layers, llm.num_heads, llm.intermediate_size):
            return name
    return None


def differences(config: HourLlavaConfig, wanted: HourLlavaConfig) -> list[str]:
    """The fields in which a model is another one; how long its samples may be is not among them."""
    return [
        f"{field.name} is {getattr(config, field.name)!r}, {wanted.variant} has "
        f"{getattr(wanted, field.name)!r}"
        for field in fields(config)
        if field.name != "max_length" and getattr(config, field.name) != getattr(wanted, field.name)
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder; empty where there is none.

    Raises:
        ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    return parsed_config(path.read_bytes(), str(path)) if path.exists() else {}


def parsed_config(data: bytes, name: str) -> dict[str, Any]:
    """The content of a `config.json`.

    Args:
        name: of the file, for the error.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        written = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(written, dict):
        raise ValueError(f"{name}: expected an object, found {type(written).__name__}")
    return written
