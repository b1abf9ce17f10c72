"""The device that a rank computes on: its name, its free memory, how much of its speed is used."""

from __future__ import annotations

import math
import os

import torch

from training.host_memory import free_memory_of_host
from training.ranks import Ranks
from training.rates import card_called


def free_memory(ranks: Ranks) -> float | None:
    """Bytes that the fullest device has free for a process that may be held to a share of it; None
    where there is no device.
    """
    if ranks.device.type != "cuda":
        return None
    free, whole = torch.cuda.mem_get_info()
    share = torch.cuda.get_per_process_memory_fraction() * whole - torch.cuda.memory_reserved()
    return -ranks.max(-float(min(free, share)))[0]


def free_host_memory(ranks: Ranks) -> float | None:
    """Bytes of the host's memory that one of its ranks may take, on the fullest host. None where
    the kernel does not say.
    """
    free = free_memory_of_host()
    least = -ranks.max(-(math.inf if free is None else free) / _ranks_here())[0]
    return least if math.isfinite(least) else None


def share_host_cores(ranks: Ranks) -> None:
    """Let the host's part of the work take this rank's share of the cores: torchrun leaves each
    rank one thread. Nothing where the ranks compute on the host anyway.
    """
    if ranks.device.type == "cuda":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _ranks_here()))


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_name(ranks: Ranks) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"


def utilisation(ranks: Ranks, work: float, seconds: float) -> dict[str, float]:
    """Peak memory (`peak_gib`), how often the allocator had to give memory back to get other memory
    (`memory_retries`, each of which takes a pause) and, where the device is known, model-FLOP
    utilisation: by the rate that products reach (`mfu`) and by the datasheet's (`mfu_datasheet`).

    Args:
        work: floating point operations of the model on all ranks in that time.
    """
    if ranks.device.type != "cuda":
        return {}
    found: dict[str, float] = {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "memory_retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
    }
    card = card_called(torch.cuda.get_device_name())
    if card is not None:
        rate = work / seconds / ranks.world
        found |= {"mfu": rate / card.products, "mfu_datasheet": rate / card.stated}
    return found
