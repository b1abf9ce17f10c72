"""What a run starts from: the model of a checkpoint folder, and its weights into the sharded model.

Every rank reads its own rows of the weights and nothing else. The files are mapped, so the ranks of
one machine share what they read, and none ever holds a whole model on its host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from model.changes import ModelChanges
from model.config import VARIANTS
from model.hf import HourLlavaForCausalLM
from model.initialise import drawn
from model.processor import Processor
from model.weights.loading import load_config, load_tokenizer
from model.weights.tensors import StoredTensor, checkpoint_files, stored_tensors
from model.weights.vision_encoder import load_vision_encoder
from training.adapters import insert_adapters, is_adapter, plain_name
from training.run_config import RunConfig

MEMAUG = "model.memaug."  # what the names of its tensors begin with


def model_and_processor(run: RunConfig) -> tuple[HourLlavaForCausalLM, Processor, bool]:
    """The model of a run's start, still empty, its processor, and whether activations are to be
    recomputed.

    Raises:
        ValueError: the start holds no checkpoint, or one of another variant.
    """
    start = Path(run.start)
    wrapper = empty_model(start, run.model)
    config = wrapper.config.model_config
    if config.variant != run.variant:
        raise ValueError(
            f"start: {start} holds variant {config.variant!r}, but the run is of variant "
            f"{run.variant!r}"
        )
    if config.memaug_depth == 0 and "memaug" in run.modules:
        raise ValueError(
            f"start: {start} has no MemAug, and the run tunes it; set model: {{memaug_blocks: 0}}, "
            "or as many blocks as it is to have"
        )
    if run.lora is not None:
        insert_adapters(wrapper.model, run.lora)
    tokenizer = load_tokenizer(start)
    config = replace(config, max_length=min(config.max_length, run.recipe.max_length))
    cuda = torch.cuda.is_available() if run.device == "auto" else run.device == "cuda"
    checkpointing = (
        (cuda and not VARIANTS[run.variant].is_demo)
        if run.checkpointing is None
        else run.checkpointing
    )
    return wrapper, Processor(config, tokenizer), checkpointing


def empty_model(start: Path, changes: ModelChanges | None = None) -> HourLlavaForCausalLM:
    """The model of a checkpoint folder without its weights, on the meta device.

    Args:
        changes: of its configuration, for this run and its export.

    Raises:
        ValueError: the folder holds no checkpoint.
    """
    if not (start / "config.json").exists():
        raise ValueError(
            f"start: {start} holds no checkpoint (no config.json); make what comes before this "
            "stage first"
        )
    config = load_config(start)
    if changes is not None:
        config.hour_llava = changes.applied(config.model_config).to_dict()
    with torch.device("meta"):
        return HourLlavaForCausalLM(config)


@torch.no_grad()
def load_weights(wrapper: HourLlavaForCausalLM, start: Path, seed: str = "") -> None:
    """Fill parameters and stored buffers from the folder's safetensors files, whatever the stored
    type. Adapters are in none of them and stay as they are.

    A MemAug of another number of blocks than the start's is drawn from `seed`, all of it.

    Raises:
        ValueError: missing, unknown or differently shaped tensors; it names the file and some of
            them.
    """
    targets: dict[str, Tensor] = {
        plain_name(name): tensor
        for name, tensor in wrapper.state_dict(keep_vars=True).items()
        if not is_adapter(name)
    }
    aliases: dict[int, set[str]] = {}
    for name, target in targets.items():
        aliases.setdefault(id(target), set()).add(name)
    before = load_config(start).model_config.memaug_depth
    new = MEMAUG if before != wrapper.config.model_config.memaug_depth else None
    missing = set(targets)
    if new is not None:
        for name in [name for name in targets if name.startswith(new)]:
            missing.remove(name)
            whole = drawn(name.removeprefix("model."), tuple(targets[name].shape), seed)
            _fill_rows(targets[name], partial(_rows, whole))
    files = checkpoint_files(start)
    if not files:
        raise ValueError(f"start: {start} holds no *.safetensors file; other formats are not read")
    for stored in stored_tensors(*files):
        if new is not None and stored.name.startswith(new):
            continue
        if stored.name not in targets:
            raise ValueError(
                f"{stored.file}: unknown tensor {stored.name!r}; is this a checkpoint of another "
                "model?"
            )
        target = targets[stored.name]
        _fill(target, stored)
        missing -= aliases[id(target)]
    if missing:
        names = sorted(missing)
        raise ValueError(
            f"start: {start} lacks {len(names)} tensors: "
            f"{', '.join(names[:5])}{' ...' * (len(names) > 5)}"
        )


@torch.no_grad()
def load_vision(wrapper: HourLlavaForCausalLM, folder: Path) -> None:
    """Fill the vision encoder from a folder of its own, in place of the start's.

    Raises:
        ValueError: it is none, or of another shape than the model's.
    """
    encoder = load_vision_encoder(folder)
    if encoder.config != wrapper.model.config.vision:
        raise ValueError(f"vision_start: {folder} holds an encoder of another shape than the model")
    own = wrapper.model.vision.state_dict(keep_vars=True)
    for name, whole in encoder.state_dict().items():
        _fill_rows(own[name], partial(_rows, whole))


def _fill(target: Tensor, stored: StoredTensor) -> None:
    """Copy a stored tensor, or this rank's rows of it, into `target`."""
    if stored.shape != tuple(target.shape):
        raise ValueError(
            f"{stored.file}: {stored.name} has shape {list(stored.shape)}, the model's "
            f"configuration says {list(target.shape)}"
        )
    if not isinstance(target, DTensor):
        target.copy_(stored.read())
        return
    _fill_rows(target, stored.rows)


def _rows(whole: Tensor, first: int, last: int) -> Tensor:
    return whole[first:last]


def _fill_rows(target: Tensor, rows_of: Callable[[int, int], Tensor]) -> None:
    """Copy this rank's rows of a tensor, all of them where it is not sharded, into `target`."""
    if not isinstance(target, DTensor):
        target.copy_(rows_of(0, len(target)))
        return
    assert target.placements == (Shard(0),), f"unexpected placement {target.placements}"
    mesh, local = target.device_mesh, target.to_local()
    rows = -(-len(target) // mesh.size())  # of every rank but the last ones
    first = min(mesh.get_local_rank() * rows, len(target))
    assert len(local) == min(rows, len(target) - first)
    if len(local):
        local.copy_(rows_of(first, first + len(local)))
