"""Ranks, and how one model is laid over them: FSDP2, one precision policy, blocks compiled and
recomputed in place.

One path for every machine: a single process is a mesh of one rank. Parameters and optimizer state
are float32 shards; on CUDA each unit computes in bfloat16 from a gathered copy and reduces its
gradients in float32.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from model.hour_llava import HourLlava

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of them.

    Attributes:
        rank, world, local: its number, how many there are, its number on this machine.
        device: where it computes.
        host: process group of all ranks for small facts on the host.
        feeders, writers: others of the same kind, for the threads that prepare data and write
            checkpoints.
    """

    rank: int
    world: int
    local: int
    device: torch.device
    host: dist.ProcessGroup
    feeders: dist.ProcessGroup
    writers: dist.ProcessGroup

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, *values: float) -> list[float]:
        """Maxima over all ranks."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, value: object) -> list[object]:
        """``value`` of every rank, in rank order; JSON-like values only."""
        found: list[object] = [None] * self.world
        dist.all_gather_object(found, value, group=self.host)
        return found

    def barrier(self) -> None:
        self.max(0.0)

    def _reduce(self, values: tuple[float, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation, group=self.host)
        return [float(value) for value in tensor]


def join_ranks(device: str) -> Ranks:
    """Join the ranks that torchrun started, or be the only one. ``device``: auto, cpu or cuda.

    Raises:
        ValueError: CUDA was asked for and there is none, or more ranks than GPUs were started on
            this machine.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda:
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"rank {local} of this machine has no GPU of its own: {torch.cuda.device_count()} "
                "found; start one process for each GPU, or set device to 'cpu'"
            )
        torch.cuda.set_device(local)
    chosen = torch.device("cuda", local) if cuda else torch.device("cpu")
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Ranks(
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        local=local,
        device=chosen,
        host=_group(COLLECTIVE_TIMEOUT),
        feeders=_group(COLLECTIVE_TIMEOUT),
        writers=_group(timedelta(hours=2)),
    )


def _group(timeout: timedelta) -> dist.ProcessGroup:
    """A group of all ranks for values on the host."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def leave_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@dataclass(slots=True)
class Recomputation:
    """Whether the language model's layers form their activations anew in the backward pass: decided
    for each pass.
    """

    wanted: bool = True

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self.wanted or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # Nothing is random inside: the generators' state need not be kept.
            return checkpoint(
                forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
            )

        return run


def prepare(
    model: HourLlava, ranks: Ranks, *, compiled: bool, checkpointing: bool
) -> Recomputation:
    """Recompute, compile, shard and allocate ``model`` in place, in that order; its weights are
    filled in afterwards.

    The model comes from the meta device, its frozen modules frozen already.

    Each of ``model.units`` is gathered for its own pass; the rest (embeddings, final norm, head,
    projector, newline) stays gathered from its first use to the end of the backward pass.

    Args:
        compiled: compile each repeated block.
        checkpointing: recompute activations of vision encoder and projector, and of the language
            model as the returned switch says, pass by pass.
    """
    # MemAug keeps its activations: recomputing its cross-attention costs far more than the memory
    # is worth.
    model.optimise(
        checkpoint_parts=("vision", "projector") if checkpointing else (), compile_blocks=compiled
    )
    recomputation = Recomputation(checkpointing)
    for layer in model.llm.model.layers:
        layer.forward = recomputation.around(layer.forward)
    half = ranks.device.type == "cuda"
    if half:
        _narrow_frozen(model)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shards",))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    # A frozen vision encoder is small and not every pass uses it, so each rank holds all of it.
    whole = [model.vision] if not _trained(model.vision) else []
    for unit in model.units:
        if unit not in whole:
            # One rank has nothing to gain from giving gathered parameters back. The vision encoder
            # stays gathered for a pass, however many batches of frames a rank encodes in it.
            reshard = ranks.world > 1 and unit is not model.vision
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    ignored = {parameter for unit in whole for parameter in unit.parameters()}
    fully_shard(
        model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=ignored
    )

    model.to_empty(device=ranks.device)
    model.reset_buffers(ranks.device)
    if model.config.llm.tie_word_embeddings:  # allocating parted them
        model.llm.lm_head.weight = model.llm.model.embed_tokens.weight
    return recomputation


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _narrow_frozen(model: HourLlava) -> None:
    """Keep frozen units in bfloat16, in which they compute: float32 copies of them would change
    nothing.

    A unit has one type, so the shared rest is narrowed only when all of it is frozen.
    """
    inside = {id(parameter) for unit in model.units for parameter in unit.parameters()}
    rest = nn.ParameterList(
        parameter for parameter in model.parameters() if id(parameter) not in inside
    )
    for unit in [*model.units, rest]:
        if not _trained(unit):
            for parameter in unit.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
