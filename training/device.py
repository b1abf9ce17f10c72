"""The device that a rank computes on: what it is called, what it can do, how much of that is used."""

from __future__ import annotations

import torch

from training.parallel import Ranks

PEAK_FLOPS = {
    "H200": 790e12,
    "H100": 790e12,
    "A100": 312e12,
}  # what bfloat16 matrix products really reach


def free_memory(ranks: Ranks) -> float | None:
    """Bytes that the fullest device has free; None where there is no device."""
    if ranks.device.type != "cuda":
        return None
    return -ranks.max(-float(torch.cuda.mem_get_info()[0]))[0]


def device_name(ranks: Ranks) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name() if ranks.device.type == "cuda" else "CPU"


def hardware(ranks: Ranks, work: float, seconds: float) -> dict[str, float]:
    """Utilisation and peak memory, where the device is known."""
    if ranks.device.type != "cuda":
        return {}
    found: dict[str, float] = {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    if peak is not None:
        found["mfu"] = work / seconds / ranks.world / peak
    return found
