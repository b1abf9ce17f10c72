"""Loading from a checkpoint's folder, which comes from strangers: the one place that calls
`from_pretrained`.

Nothing in a folder is run, whatever it asks for, and nothing but the folder is read. Three ways of
transformers to do otherwise are shut:

- left unsaid, `trust_remote_code` makes transformers ask at the terminal whether to run the code;
- version 4.57 runs `custom_generate/generate.py` of any local folder when it loads a model;
- an `adapter_config.json` makes it load another folder, or a repository of the hub, instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig

_CLOSED: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
# What makes transformers run a file of the folder, or read another one.
_REFUSED = ("custom_generate", "adapter_config.json")


def load_config(folder: Path) -> HourLlavaHFConfig:
    """The configuration of a checkpoint of ours.

    Raises:
        ValueError: the folder wants code to be run, or holds no such configuration.
    """
    _check(folder)
    config: HourLlavaHFConfig = HourLlavaHFConfig.from_pretrained(folder, **_CLOSED)
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of any checkpoint.

    Raises:
        ValueError: the folder holds none, or one that is code of its own.
    """
    _check(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_CLOSED)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder}: transformers knows no tokenizer that this is, and code of a checkpoint is "
            f"never run: {error}"
        ) from error
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype | str) -> HourLlavaForCausalLM:
    """A checkpoint of ours, on the CPU.

    Args:
        dtype: of the weights; "auto" takes theirs.

    Raises:
        ValueError: the folder wants code to be run.
        OSError: it holds no whole checkpoint in safetensors files.
    """
    return load_model_and_faults(folder, dtype)[0]


def load_model_and_faults(
    folder: Path, dtype: torch.dtype | str
) -> tuple[HourLlavaForCausalLM, dict[str, Any]]:
    """The same, with what transformers says of its tensors: `missing_keys` and the like."""
    _check(folder)
    loaded: tuple[HourLlavaForCausalLM, dict[str, Any]] = HourLlavaForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_CLOSED
    )
    return loaded


def load_image_text_model(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Any model that transformers knows as one of images and text, and its processor.

    Raises:
        ValueError: the folder wants code to be run, or holds none.
        OSError: it holds none in safetensors files.
    """
    _check(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, **_CLOSED
    )
    return model, AutoProcessor.from_pretrained(folder, **_CLOSED)


def _check(folder: Path) -> None:
    for name in _REFUSED:
        if (Path(folder) / name).exists():
            raise ValueError(
                f"{folder} holds {name}, which makes transformers run code or load another "
                "checkpoint; remove it if you trust the rest"
            )
