"""How much of a step the GPU spends in collectives, and how much of that nothing else hides."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Interval = tuple[float, float]


def communication(step: Callable[[], object]) -> dict[str, float]:
    """Run `step` under the profiler; shares of its time on this rank's GPU, empty without one.

    `communication` is the time in which any NCCL kernel ran, `exposed` that in which nothing
    else did: what a faster network could save at most. The profiler slows a step down, so its time
    is not that of the timed ones.
    """
    if not torch.cuda.is_available():
        step()
        return {}
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return shares(events)


def shares(events: Iterable[dict]) -> dict[str, float]:
    """The two shares from a Chrome trace's events; kernels alone count, not the annotations around
    them.
    """
    kernels = [
        (str(e["name"]), float(e["ts"]), float(e["ts"]) + float(e["dur"]))
        for e in events
        if _is_kernel(e)
    ]
    collectives = union((start, end) for name, start, end in kernels if name.startswith("nccl"))
    others = union((start, end) for name, start, end in kernels if not name.startswith("nccl"))
    everything = union([*collectives, *others])
    if not everything:
        return {}
    whole = everything[-1][1] - everything[0][0]
    return {
        "communication": length(collectives) / whole,
        "exposed": (length(everything) - length(others)) / whole,
    }


def _is_kernel(event: dict) -> bool:
    return event.get("cat") == "kernel" and "dur" in event


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Disjoint intervals in order that cover the same points."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
