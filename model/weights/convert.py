"""Checkpoints of others to ours, and ours to the published form.

`hourllava convert` runs these. From LLaVA-OneVision stage 1 starts: MemAug is new. Of SigLIP and a
language model, everything between the two is new. `publish` writes our tensors under their
published names.

Only safetensors are read. Names and shapes are checked before the first byte is written: a tensor
that is unknown, missing or of another shape stops the conversion and is named. Tensors pass one
shard at a time, and the output appears under its name when it is complete.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.atomic import remove_unfinished, writing_folder
from model.changes import ModelChanges
from model.config import HourLlavaConfig
from model.hf_config import HourLlavaHFConfig
from model.hf_processor import processor_files
from model.initialise import drawn
from model.weights.loading import load_config, load_tokenizer
from model.weights.names import published_config, published_name, shapes
from model.weights.tensors import (
    SHARD_BYTES,
    StoredTensor,
    checkpoint_files,
    stored_tensors,
    write_shards,
)
from model.weights.vision_encoder import siglip_name

logger = logging.getLogger(__name__)

PUBLISHED_ENCODER = "siglip"
HEAD, EMBEDDINGS = "llm.lm_head.weight", "llm.model.embed_tokens.weight"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True, slots=True)
class WeightSource:
    """A checkpoint to read.

    Attributes:
        directory: its folder.
        ours: which of our tensors a name in it stands for; None if it is known but not needed.
            Raises UnknownTensor.
    """

    directory: Path
    ours: Callable[[str], str | None]


class UnknownTensor(KeyError):
    """A name that no part of the model goes by."""


# -- the four conversions ------------------------------------------------------------------------


def convert_released(source: Path, out: Path, config: HourLlavaConfig, **options: Any) -> None:
    """A released Hour-LLaVA checkpoint to ours. Like the others, raises ValueError that names what
    does not fit.
    """
    _assemble(
        out, config, [WeightSource(source, _published(config))], new=(), tokenizer=source, **options
    )


def convert_onevision(
    source: Path, out: Path, config: HourLlavaConfig, *, seed: str = "memaug", **options: Any
) -> None:
    """LLaVA-OneVision weights to ours, where stage 1 starts: MemAug is new, drawn from `seed`."""
    reads = [WeightSource(source, _published(config, without=("memaug.",)))]
    _assemble(out, config, reads, new=("memaug.",), tokenizer=source, seed=seed, **options)


def convert_parts(
    siglip: Path,
    llm: Path,
    out: Path,
    config: HourLlavaConfig,
    *,
    seed: str = "parts",
    **options: Any,
) -> None:
    """A SigLIP and a Qwen2 checkpoint from the hub; projector, newline and MemAug are new, drawn
    from `seed`.
    """
    reads = [WeightSource(siglip, _siglip(config)), WeightSource(llm, _qwen2(config))]
    new = ("projector.", "image_newline", "memaug.")
    _assemble(out, config, reads, new=new, tokenizer=llm, seed=seed, **options)


def publish(source: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """One of our checkpoints under the published names."""
    config = load_config(source).model_config
    if unsaid := ModelChanges.unlike_published(config):
        raise ValueError(
            f"{source}: the published layout has no setting for {', '.join(unsaid)}; a reader "
            "would compute something else with these weights"
        )
    wanted = shapes(config)
    held = _held(WeightSource(source, _own(config)), config, wanted)
    _refuse_differences(config, held, wanted, (), [source])
    with _new_checkpoint(out) as partial:
        tensors = ((published_name(name), held[name].read()) for name in wanted)
        write_shards(partial, tensors, shard_bytes)
        (partial / "config.json").write_text(json.dumps(published_config(config), indent=2) + "\n")
        _copy_tokenizer(source, partial)


def check_own(source: Path, config: HourLlavaConfig) -> None:
    """That one of our checkpoints has all tensors of its configuration and no others.

    Raises:
        ValueError: it names those that are unknown, missing or of another shape.
    """
    wanted = shapes(config)
    held = _held(WeightSource(source, _own(config)), config, wanted)
    _refuse_differences(config, held, wanted, (), [source])


# -- what others call a tensor -------------------------------------------------------------------


def _published(
    config: HourLlavaConfig, without: tuple[str, ...] = ()
) -> Callable[[str], str | None]:
    _refuse_other_encoder(config)
    names = {
        published_name(name): name
        for name in [*shapes(config), HEAD]
        if not name.startswith(without or "-")
    }
    tower = "model.vision_tower.vision_tower."
    return _by_table(
        names, lambda name: name.startswith(tower) and _dropped(name.removeprefix(tower), config)
    )


def _refuse_other_encoder(config: HourLlavaConfig) -> None:
    if config.vision.encoder != PUBLISHED_ENCODER:
        raise ValueError(
            f"{config.variant} has the vision encoder {config.vision.encoder}, which these "
            f"checkpoints do not hold: they hold {PUBLISHED_ENCODER}"
        )


def _siglip(config: HourLlavaConfig) -> Callable[[str], str | None]:
    _refuse_other_encoder(config)
    ours = (name for name in shapes(config) if name.startswith("vision."))
    names = {siglip_name(name.removeprefix("vision.")): name for name in ours}
    other = ("text_model.", "logit_scale", "logit_bias", "vision_model.embeddings.position_ids")
    return _by_table(names, lambda name: name.startswith(other) or _dropped(name, config))


def _qwen2(config: HourLlavaConfig) -> Callable[[str], str | None]:
    names = {
        name.removeprefix("llm."): name
        for name in [*shapes(config), HEAD]
        if name.startswith("llm.")
    }
    return _by_table(names, lambda name: False)


def _own(config: HourLlavaConfig) -> Callable[[str], str | None]:
    return _by_table(
        {f"model.{name}": name for name in [*shapes(config), HEAD]}, lambda name: False
    )


def _by_table(
    names: Mapping[str, str], needless: Callable[[str], bool]
) -> Callable[[str], str | None]:
    def ours(name: str) -> str | None:
        if name in names:
            return names[name]
        if needless(name):
            return None
        raise UnknownTensor(name)

    return ours


def _dropped(name: str, config: HourLlavaConfig) -> bool:
    """Whether a SigLIP tensor belongs to the pooling head or to the layers behind the last one that
    is kept.
    """
    layer = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    return name.startswith("vision_model.head.") or bool(
        layer and int(layer[1]) >= config.vision.num_layers
    )


# -- checking ------------------------------------------------------------------------------------


def _held(
    source: WeightSource, config: HourLlavaConfig, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredTensor]:
    """Where a source holds each of our tensors. Raises ValueError that lists what is unknown or has
    another shape.
    """
    held: dict[str, StoredTensor] = {}
    unknown, misshapen, needless = [], [], 0
    for tensor in _tensors(source.directory):
        name, shape = tensor.name, tensor.shape
        try:
            ours = source.ours(name)
        except UnknownTensor:
            unknown.append(name)
            continue
        if ours is None:
            needless += 1
            continue
        if ours in held:
            raise ValueError(f"{tensor.file}: {name} is already in {held[ours].file}")
        expected = wanted[EMBEDDINGS if ours == HEAD else ours]
        if shape != expected:
            misshapen.append(f"{name} is {list(shape)}, {config.variant} has {list(expected)}")
        held[ours] = tensor
    if unknown or misshapen:
        raise ValueError(
            f"{source.directory}: "
            + "; ".join(_lists(("unknown", unknown), ("misshapen", misshapen)))
        )
    logger.info("%s: %d tensors, and %d that are not needed", source.directory, len(held), needless)
    head = held.pop(HEAD, None) if config.llm.tie_word_embeddings else None
    if head and not torch.equal(head.read(), held[EMBEDDINGS].read()):
        raise ValueError(
            f"{source.directory}: its output head differs from its embeddings, but "
            f"{config.variant} ties them"
        )
    return held


def _both_names(name: str, config: HourLlavaConfig) -> str:
    if config.vision.encoder == PUBLISHED_ENCODER:
        return f"{published_name(name)} (our {name})"
    return name


def _refuse_differences(
    config: HourLlavaConfig,
    held: Mapping[str, StoredTensor],
    wanted: Mapping[str, tuple[int, ...]],
    new: tuple[str, ...],
    sources: Iterable[Path],
) -> None:
    missing = [name for name in wanted if name not in held and not name.startswith(new or "-")]
    if missing:
        missing = [_both_names(name, config) for name in missing]
        raise ValueError(
            f"{', '.join(map(str, sources))}: " + "; ".join(_lists(("missing", missing)))
        )


def _lists(*kinds: tuple[str, list[str]], most: int = 20) -> Iterator[str]:
    for kind, names in kinds:
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            yield f"{len(names)} {kind}: {', '.join(names[:most])}{more}"


def _tensors(directory: Path) -> Iterator[StoredTensor]:
    """Every tensor of a checkpoint, from the files' headers alone."""
    files = checkpoint_files(directory)
    if not files:
        raise ValueError(
            f"{directory}: no *.safetensors in it (pickled checkpoints are not read; convert them "
            "first)"
        )
    return stored_tensors(*files)


def _check_config(directory: Path, config: HourLlavaConfig) -> None:
    """Compare what no tensor shows: heads, rotary base, norms. Without a config.json there is
    nothing to compare.
    """
    path = directory / "config.json"
    written = json.loads(path.read_text()) if path.exists() else {}
    theta = written.get("rope_theta") or (written.get("rope_parameters") or {}).get("rope_theta")
    llm = config.llm
    expected = {
        "num_attention_heads": (written.get("num_attention_heads"), llm.num_heads),
        "num_key_value_heads": (written.get("num_key_value_heads"), llm.num_kv_heads),
        "rms_norm_eps": (written.get("rms_norm_eps"), llm.rms_norm_eps),
        "rope_theta": (theta, llm.rope_theta),
    }
    for name, (given, ours) in expected.items():
        if given is not None and given != ours:
            raise ValueError(f"{path}: {name} is {given}, but variant {config.variant} has {ours}")


# -- writing -------------------------------------------------------------------------------------


def _assemble(
    out: Path,
    config: HourLlavaConfig,
    sources: list[WeightSource],
    *,
    new: tuple[str, ...],
    tokenizer: Path,
    seed: str = "",
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    wanted = shapes(config)
    held: dict[str, StoredTensor] = {}
    for source in sources:
        held |= _held(source, config, wanted)
    _refuse_differences(config, held, wanted, new, [source.directory for source in sources])
    _check_config(sources[-1].directory, config)
    dtype = dtype or held[EMBEDDINGS].read().dtype

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, shape in wanted.items():
            tensor = held[name].read() if name in held else drawn(name, shape, seed)
            yield f"model.{name}", tensor.to(dtype)

    with _new_checkpoint(out) as partial:
        write_shards(partial, tensors(), shard_bytes)
        ids = {}
        if _copy_tokenizer(tokenizer, partial):
            known = load_tokenizer(partial)
            eos, pad = known.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
            ids = {"eos_token_id": eos, "pad_token_id": pad}
            for name, content in processor_files(config).items():
                (partial / name).write_bytes(content)
        HourLlavaHFConfig.of(config, dtype=dtype, **ids).save_pretrained(partial)
    logger.info("%s: %d tensors read, %d new", out, len(held), len(wanted) - len(held))


@contextmanager
def _new_checkpoint(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when it is complete."""
    if out.exists():
        raise ValueError(f"{out} is already there; remove it or choose another name")
    remove_unfinished(out)  # of a conversion that was killed
    with writing_folder(out) as folder:
        yield folder


def _copy_tokenizer(source: Path, out: Path) -> bool:
    """Copy what there is of a tokenizer; says whether there was one."""
    found = [name for name in TOKENIZER_FILES if (source / name).exists()]
    for name in found:
        shutil.copyfile(source / name, out / name)
    return "tokenizer_config.json" in found
