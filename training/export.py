"""What leaves a run: a checkpoint folder that `from_pretrained` loads, and the tuned vision encoder
by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.hf import HourLlavaForCausalLM
from model.hf_processor import processor_files
from model.vision_encoders import build_encoder
from model.weights.loading import load_config
from model.weights.tensors import checkpoint_files, stored_tensors
from model.weights.vision_encoder import save_vision_encoder
from training.adapters import ADAPTER_FOLDER, is_adapter, merged, write_adapter
from training.formats.storage import Storage
from training.ranks import Ranks
from training.run_config import RunConfig
from training.run_folder import EXPORT_NAME

# What the tokenizer needs; weights, configuration and processor are written anew.
_COMPANIONS = (
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def companions_of(start: Path) -> dict[str, bytes]:
    """Files of the start that the export takes over, by name. Read when the run starts: the folder
    may be gone when it ends.

    Raises:
        ValueError: there is no tokenizer among them.
    """
    found = {
        file.name: file.read_bytes() for pattern in _COMPANIONS for file in start.glob(pattern)
    }
    if not any(name in found for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise ValueError(
            f"start: {start} holds no tokenizer (no tokenizer.json or vocab.json); make what comes "
            "before this stage again"
        )
    return found


def publish_export(
    run: RunConfig, wrapper: HourLlavaForCausalLM, ranks: Ranks, companions: Mapping[str, bytes]
) -> str:
    """Write `export` from the sharded model into the run's folder; every rank takes part, rank 0
    writes, and the others wait as long as it takes.

    Weights are bfloat16 where the run computed in it, float32 otherwise. The folder appears by one
    rename. Adapters are merged into the weights, and kept in `export/adapter`.

    Args:
        companions: files that come along, by name; those of rank 0 are written.

    Returns:
        The folder's name below the run's.
    """
    dtype = torch.bfloat16 if ranks.device.type == "cuda" else torch.float32
    state = _whole_state(wrapper, ranks, dtype)

    def write() -> None:
        if not ranks.first:
            return
        with Storage(run.out).writing_folder(EXPORT_NAME) as folder:
            wrapper.config.dtype = dtype
            plain = state if run.lora is None else merged(state, run.lora)
            wrapper.save_pretrained(folder, state_dict=plain, safe_serialization=True)
            if run.lora is not None:
                write_adapter(
                    folder / ADAPTER_FOLDER, state, run.lora, run.modules, wrapper.model.vision
                )
            described = processor_files(wrapper.config.model_config)
            for name, content in {**companions, **described}.items():
                (folder / name).write_bytes(content)

    ranks.together(write)
    return EXPORT_NAME


def export_vision_encoder(export: Path, out: Path) -> None:
    """Write the vision encoder of an exported checkpoint into a folder of its own, for the features
    step.

    Args:
        export: folder that `from_pretrained` loads; only the encoder's tensors are read.
        out: folder that will hold the encoder's `config.json` and `model.safetensors`.

    Raises:
        ValueError: the checkpoint lacks part of an encoder.
    """
    encoder = build_encoder(load_config(export).model_config.vision)
    prefix = "model.vision."
    tensors = {
        stored.name.removeprefix(prefix): stored.read()
        for stored in stored_tensors(*checkpoint_files(export))
        if stored.name.startswith(prefix)
    }
    missing = sorted(set(encoder.state_dict()) ^ set(tensors))
    if missing:
        raise ValueError(
            f"{export}: missing or unknown tensors of the vision encoder: {', '.join(missing[:5])}"
        )
    encoder.load_state_dict(tensors, assign=True)
    out.mkdir(parents=True, exist_ok=True)
    save_vision_encoder(encoder, out)


def _whole_state(
    wrapper: HourLlavaForCausalLM, ranks: Ranks, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Whole tensors on the host of rank 0, gathered one at a time; an empty dictionary on the other
    ranks.

    A tensor that stands under two names (tied embeddings) is one tensor there, too.
    """
    state: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, value in wrapper.state_dict(keep_vars=True).items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if ranks.first:
            if id(value) not in copies:
                # Adapters are small, and merged in float32.
                kept = whole.dtype if is_adapter(name) or not whole.is_floating_point() else dtype
                copies[id(value)] = whole.detach().to("cpu", kept).contiguous()
            state[name] = copies[id(value)]
    return state
