"""How one model is laid over the ranks: FSDP2, one precision policy, blocks compiled and
recomputed in place.

One path for every machine: a single process is a mesh of one rank. Parameters and optimizer state
are float32 shards; on CUDA each unit computes in bfloat16 from a gathered copy and reduces its
gradients in float32.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model.hour_llava import HourLlava
from training.lockstep import keep_in_step
from training.ranks import Ranks

log = logging.getLogger(__name__)

T = TypeVar("T")

MEMORY_CHUNK = 512  # frames whose memory is formed at a time


@dataclass(frozen=True, slots=True)
class Savings:
    """Memory that is saved at the price of time. None of it changes what is computed.

    Attributes:
        chunks: the projector and the memory are formed a chunk of frames at a time, and again in
            the backward pass; the vision encoder recomputes its activations.
        memaug: MemAug's blocks recompute theirs, cross-attention included.
        inputs_on_host: what a recomputed layer of the language model starts from waits on the host.
        gathered_again: a single rank gives its bfloat16 copy of a unit back after the unit's pass,
            as several ranks always do.
        optimizer_on_host: moments lie on the host, and the host takes the step.
        parameters_on_host: so do float32 parameters and gradients; a unit's come to the device for
            its pass.
    """

    chunks: bool = False
    memaug: bool = False
    inputs_on_host: bool = False
    gathered_again: bool = False
    optimizer_on_host: bool = False
    parameters_on_host: bool = False


def prepare(
    model: HourLlava, ranks: Ranks, *, compiled: bool, savings: Savings | None = None
) -> Switches:
    """Compile, recompute, keep in step, shard and allocate `model` in place, in that order; its
    weights are filled in afterwards.

    The model comes from the meta device, its frozen modules frozen already. Each of its `units` is
    gathered for its own pass; the rest (embeddings, final norm, head, projector, newline) stays
    gathered from its first use to the end of the backward pass.

    Args:
        compiled: compile each repeated block.
        savings: what is given for memory; nothing by default.

    Returns:
        Switches that say, pass by pass, how many layers recompute their activations: none of the
        language model's at first, and of the vision encoder's all, or none without `chunks`.
    """
    savings = savings or Savings()
    if compiled:
        compile_blocks(model)
    vision = recompute(model, "vision")
    if savings.chunks:
        model.memory_chunk = MEMORY_CHUNK
    else:
        vision.layers = 0
    if savings.memaug:
        recompute(model, "memaug")
    llm = recompute(model, "llm", inputs_on_host=savings.inputs_on_host)
    llm.layers = 0
    keep_in_step(model)
    half = ranks.device.type == "cuda"
    if half:
        _narrow_frozen(model)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shards",))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    ignored = _whole_on_each_rank(model, ranks.world)
    shard = functools.partial(
        fully_shard,
        mesh=mesh,
        mp_policy=policy,
        ignored_params=ignored,
        offload_policy=CPUOffloadPolicy(pin_memory=half)
        if savings.parameters_on_host
        else OffloadPolicy(),
    )
    for unit in units(model):
        if not ignored.issuperset(unit.parameters()):
            # The vision encoder stays gathered for a pass, however many batches of frames a rank
            # encodes in it.
            reshard = ranks.world > 1 or savings.gathered_again or savings.parameters_on_host
            shard(unit, reshard_after_forward=reshard and unit is not model.vision)
    shard(model, reshard_after_forward=False)
    _allocate(model, ranks.device, on_host=savings.parameters_on_host)
    if model.config.llm.tie_word_embeddings:  # allocating parted them
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    return Switches(llm, vision)


def keep_gradients(model: HourLlava, ranks: Ranks, *, until_next: bool) -> None:
    """Say what the next pass, forward and backward, leaves behind on every rank.

    Args:
        until_next: the bfloat16 copies that were gathered, and its gradients, summed in float32
            where they arise, for one more pass that adds its own. False: parameters and gradients
            are sharded again, as the optimizer and checkpoints want them.
    """
    assert isinstance(model, FSDPModule)
    if ranks.world > 1:
        for unit in units(model):
            if unit is not model.vision and isinstance(unit, FSDPModule):
                unit.set_reshard_after_forward(not until_next, recurse=False)
    model.set_requires_gradient_sync(not until_next)
    model.set_reshard_after_backward(not until_next)
    model.set_is_last_backward(not until_next)


def units(model: HourLlava) -> list[nn.Module]:
    """Modules to shard one by one, in the order in which they run.

    The others (embeddings, head, final norm, projector, newline) are used outside any of these
    modules' forward and belong to the root.
    """
    return [model.vision, *model.memaug.blocks, *model.llm.model.layers]


def blocks(model: HourLlava) -> dict[str, list[nn.Module]]:
    """The repeated blocks of each part, which are compiled and recomputed one by one."""
    return {
        "vision": [*model.vision.layers],
        "projector": [model.projector],
        "memaug": [*model.memaug.blocks],
        "llm": [*model.llm.model.layers],
    }


def _allocate(model: HourLlava, device: torch.device, on_host: bool) -> None:
    """Give every parameter and buffer its memory: on the device, or sharded parameters on the
    host.
    """
    model.to_empty(device="cpu" if on_host else device)
    if on_host:
        for parameter in model.parameters():
            if not isinstance(parameter, DTensor):
                parameter.data = torch.empty_like(parameter, device=device)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=device))
    reset_buffers(model, device)


def reset_buffers(model: HourLlava, device: torch.device | str) -> None:
    """Compute what no checkpoint holds (the language model's rotary table). For a model built on
    the meta device, after `to_empty(device=device)`.
    """
    llm = model.llm.model
    llm.rotary_emb = type(llm.rotary_emb)(model.llm.config).to(device)


# -- recomputing and compiling blocks. Call before sharding; parameters keep their names. ----------


@dataclass(slots=True)
class Recomputation:
    """How many blocks, the first ones, compute their activations again in the backward pass instead
    of keeping them. It may change from pass to pass.

    Attributes:
        layers: so many of each part's blocks.
        inputs_on_host: what these start from waits on the host.
    """

    layers: int = sys.maxsize
    inputs_on_host: bool = False

    def around(self, forward: Callable[..., Any], number: int) -> Callable[..., Any]:
        """`forward` of a part's block of that number, as the fields say."""
        return _Recomputed(self, forward, number)

    def saving(self) -> AbstractContextManager[Any]:
        """In which a block's inputs are kept for the backward pass."""
        if not self.inputs_on_host:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())


@dataclass(frozen=True, slots=True)
class Switches:
    """Of the language model's layers, and of the vision encoder's."""

    llm: Recomputation
    vision: Recomputation


# Objects rather than functions inside functions: a deep copy of a model takes them along, so that
# its blocks run its own weights.


@dataclass(slots=True)
class _Recomputed:
    switch: Recomputation
    forward: Callable[..., Any]
    number: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.number >= self.switch.layers or not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        with self.switch.saving():
            # Nothing is random inside: the generators' state need not be kept.
            return checkpoint(
                self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )


def recompute(model: HourLlava, *parts: str, inputs_on_host: bool = False) -> Recomputation:
    """Let the blocks of some parts (see `blocks`) recompute their activations, as the returned
    switch says; all of them at first. Blocks are to be compiled before.

    Raises:
        ValueError: a part that the model does not have.
    """
    known = blocks(model)
    if unknown := set(parts) - set(known):
        raise ValueError(f"cannot checkpoint {sorted(unknown)}; known parts: {list(known)}")
    recomputation = Recomputation(inputs_on_host=inputs_on_host)
    for part in parts:
        for number, block in enumerate(known[part]):
            block.forward = recomputation.around(block.forward, number)
    return recomputation


def compile_blocks(model: HourLlava) -> None:
    """Compile the repeated blocks, each by itself; attention kernels stay outside.

    A kind of block is compiled for the first lengths that it sees, and once more for any lengths
    when they vary. A vision encoder whose blocks are all different stays as it is: TorchDynamo
    makes few graphs of one function.
    """
    for part, modules in blocks(model).items():
        if part == "vision" and not model.vision.alike:
            continue
        for module in modules:
            # The language model's blocks take [1, S, D], the others rows [R, D] or pictures.
            varying = 1 if part == "llm" else 0
            module.forward = _Compiled(module, varying, products_only=part == "vision")


# What a compiled layer of the vision encoder keeps: results of products and of attention. Norms and
# the activation are made again from them, which costs a kernel that runs in any case little.
_PRODUCTS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


class _Compiled:
    """The module's forward, compiled unless its input's dimension `varying` has size one.

    TorchDynamo takes a size of one for a fact and would make graphs of their own for what is hardly
    any work: the dummy token of a rank that has nothing to do, a lone picture.

    Args:
        products_only: keep nothing for the backward pass but the input and `_PRODUCTS`.
    """

    def __init__(self, module: nn.Module, varying: int, products_only: bool) -> None:
        self.module, self.varying, self.products_only = module, varying, products_only
        # Without transformers' decorators: they are one function around layers and attention alike,
        # and the number of graphs a function may have is limited.
        self.forward = types.MethodType(inspect.unwrap(type(module).forward), module)
        self.graph = torch.compile(self._keeping_products if products_only else self.forward)

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self.graph if x.shape[self.varying] > 1 else self.forward)(x, *args, **kwargs)

    def _keeping_products(self, x: torch.Tensor) -> Any:
        # Only a graph gives the products up where the whole layer is recomputed. Without one (the
        # compiler is switched off) they would be held beside everything else.
        if not torch.is_grad_enabled() or not torch.compiler.is_compiling():
            return self.forward(x)
        kept = functools.partial(create_selective_checkpoint_contexts, _PRODUCTS)
        return checkpoint(
            self.forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=kept
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Compiled:
        return _Compiled(copy.deepcopy(self.module, memo), self.varying, self.products_only)


def _whole_on_each_rank(model: HourLlava, world: int) -> set[nn.Parameter]:
    """Frozen parameters that are not sharded: all of them on a single rank, which would only copy
    them, and else those of the vision encoder, which is small and not used by every pass.
    """
    if world > 1 and any(parameter.requires_grad for parameter in model.vision.parameters()):
        return set()
    held = model if world == 1 else model.vision
    return {parameter for parameter in held.parameters() if not parameter.requires_grad}


def _narrow_frozen(model: HourLlava) -> None:
    """Keep frozen parameters in bfloat16, in which they compute: float32 copies of them would
    change nothing.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
