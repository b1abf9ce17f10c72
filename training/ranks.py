"""Ranks: which one this process is, and how they meet.

Where a rank may wait for a disk or a store, the ranks meet by `together`, which keeps no collective
open. Everywhere else they compute alike, and a collective waits for `COLLECTIVE_TIMEOUT`.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from training.formats.machine_faults import MachineFault, machine_fault

log = logging.getLogger(__name__)

T = TypeVar("T")

ASK_EVERY_S = 0.5
SAY_EVERY_S = 600.0
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of them.

    Attributes:
        rank, world, local: its number, how many there are, its number on this machine.
        device: where it computes.
        host: process group of all ranks for small facts on the host.
        prefetchers, writers: others of the same kind, for the threads that prefetch data and write
            checkpoints.
    """

    rank: int
    world: int
    local: int
    device: torch.device
    host: dist.ProcessGroup
    prefetchers: dist.ProcessGroup
    writers: dist.ProcessGroup

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in float64."""
        return reduced(values, dist.ReduceOp.SUM, self.host)

    def max(self, *values: float) -> list[float]:
        """Maxima over all ranks."""
        return reduced(values, dist.ReduceOp.MAX, self.host)

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order; plain values only."""
        return gather(value, self.host)

    def barrier(self) -> None:
        self.max(0.0)

    def together(self, work: Callable[[], T], limit_s: float = math.inf) -> T:
        """`work` of every rank; see the function of that name."""
        return together(work, self.host, limit_s)


def together(
    work: Callable[[], T],
    group: dist.ProcessGroup | None = None,
    limit_s: float = math.inf,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """`work` of every rank, however long the slowest one takes: the ranks go on telling each other
    that they live, so no collective is open for longer than `ASK_EVERY_S`. If it fails on one of
    them, all raise here.

    Args:
        group: all ranks; None for the default group.
        limit_s: work that hangs for so long is given up.
        progress: a number that rises while work does not hang.

    Raises:
        MachineFault: the machine of a rank is at fault, or its work hung; on all ranks alike.
        Exception: what it raised here, or the same sentence where it raised on another rank.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    # A thread of its own: a rank whose disk hangs must still be able to end.
    threading.Thread(target=run, name="together", daemon=True).start()
    reached, since = progress(), time.monotonic()
    began = said = since
    running, failed = 1.0, 0.0
    while running and not failed:
        wait([future], timeout=ASK_EVERY_S)
        done, now = future.done(), time.monotonic()
        if progress() != reached:
            reached, since = progress(), now
        error = future.exception() if done else None
        if not done and now - since >= limit_s:
            error = MachineFault(
                f"reading gave nothing for {limit_s:g} s; does a file system or store hang?"
            )
        if not done and now - said >= SAY_EVERY_S:
            said = now
            log.warning("rank %d is still at it after %.0f s", dist.get_rank(), now - began)
        running, failed = reduced((not done, error is not None), dist.ReduceOp.MAX, group)
    if not failed:
        return future.result()
    own = None if error is None else _kind_and_sentence(error)
    kind, sentence = min(found for found in gather(own, group) if found is not None)
    if own is not None and own[0] == kind and _KINDS[kind] is not MachineFault:
        assert error is not None
        raise error
    raise _KINDS[kind](sentence) from error


# What one rank's error is on the others. Where several raise, the first of these counts, since only
# after faults of machines alone can all ranks go on to a checkpoint.
_KINDS = (ValueError, RuntimeError, MachineFault)


def _kind_and_sentence(error: BaseException) -> tuple[int, str]:
    if isinstance(error, ValueError):
        return 0, str(error)
    if (fault := machine_fault(error)) is not None:
        return 2, fault
    return 1, f"{type(error).__name__}: {error}"


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """`value` of every rank of a group, in rank order; plain values only."""
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def gather_results(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """What `work` gives on every rank, done `together`."""
    return gather(together(work, group), group)


def reduced(
    values: tuple[float, ...],
    operation: dist.ReduceOp.RedOpType,
    group: dist.ProcessGroup | None,
) -> list[float]:
    """`values` of all ranks of a group in one, each by itself; on the host, in float64."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, op=operation, group=group)
    return [float(value) for value in tensor]


def join_ranks(device: str) -> Ranks:
    """Join the ranks that torchrun started, or be the only one. `device`: auto, cpu or cuda.

    Call it before anything uses CUDA: it also says how memory is taken there.

    Raises:
        ValueError: CUDA was asked for and there is none, or more ranks than GPUs were started on
            this machine.
    """
    # Packs differ in length; without this their blocks would fragment the device's memory.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
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
        prefetchers=_group(COLLECTIVE_TIMEOUT),
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
