"""A starting point out of pretrained parts that installed packages hold: a language model and a
vision encoder. What lies between them is new.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from model.config import HourLlavaConfig
from model.hf_config import HourLlavaHFConfig
from model.hf_processor import processor_files
from model.initialise import drawn
from model.vision_encoders import find_encoder
from model.weights.loading import load_tokenizer
from model.weights.names import shapes
from model.weights.smollm2 import END, PACKAGE, PADDING, read_smollm2, write_smollm2_tokenizer
from model.weights.tensors import SHARD_BYTES, write_shards

NEW = ("projector.", "image_newline", "memaug.")


def build_packaged(out: Path, config: HourLlavaConfig, seed: str) -> None:
    """Write a checkpoint that `from_pretrained` loads, in float32. The same seed gives the same
    bytes.

    Args:
        seed: what projector, newline and MemAug are drawn from.

    Raises:
        ValueError: a package is missing (says how to install it), or holds other weights than the
            configuration asks for.
    """
    held = read_smollm2(config.llm) | _vision(config)
    wanted = shapes(config)
    for name, shape in wanted.items():
        if name.startswith(NEW):
            held[name] = drawn(name, shape, seed)
    found = {name: tuple(tensor.shape) for name, tensor in held.items()}
    if other := sorted(set(found.items()) ^ set(wanted.items())):
        raise ValueError(
            f"{config.variant}: the packages' tensors differ from its configuration: {other[:5]}"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_shards(out, ((f"model.{name}", held[name]) for name in wanted), SHARD_BYTES)
    write_smollm2_tokenizer(out, config.max_length)
    for file, content in processor_files(config).items():
        (out / file).write_bytes(content)
    eos, pad = load_tokenizer(out).convert_tokens_to_ids([END, PADDING])
    described = HourLlavaHFConfig.of(config, dtype="float32", eos_token_id=eos, pad_token_id=pad)
    described.save_pretrained(out)


def origins_of(config: HourLlavaConfig) -> dict[str, str]:
    """The packages that the parts are from, with their versions, for lineage."""
    packages = (PACKAGE, find_encoder(config.vision.encoder).package)
    return {package.origin: package.version for package in packages if package is not None}


def _vision(config: HourLlavaConfig) -> dict[str, Tensor]:
    read = find_encoder(config.vision.encoder).pretrained
    return {f"vision.{name}": tensor for name, tensor in read().items()}
