"""The device that a rank computes on: its name, its free memory, how much of its speed is used."""

from __future__ import annotations

import torch

from training.parallel import Ranks

# Floating point operations a second that bfloat16 matrix products really reach, by a part of the
# device's name.
PEAK_FLOPS = {"H200": 790e12, "H100": 790e12, "A100": 312e12}


def free_memory(ranks: Ranks) -> float | None:
    """Bytes that the fullest device has free; None where there is no device."""
    if ranks.device.type != "cuda":
        return None
    return -ranks.max(-float(torch.cuda.mem_get_info()[0]))[0]


def device_name(ranks: Ranks) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"


def utilisation(ranks: Ranks, work: float, seconds: float) -> dict[str, float]:
    """Peak memory (`peak_gib`) and, where the device is known, model-FLOP utilisation (`mfu`).

    Args:
        work: floating point operations of the model on all ranks in that time.
    """
    if ranks.device.type != "cuda":
        return {}
    found: dict[str, float] = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    if peak is not None:
        found["mfu"] = work / seconds / ranks.world / peak
    return found
