"""Where the time of one step goes on this rank's device: by kind of kernel, and the longest
operations.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.communication import length, union

ROWS = 40
# What a kernel's name holds -> what it is. The first that fits counts.
KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("collectives", ("nccl",)),
    ("copies", ("memcpy", "memset", "direct_copy")),
    ("attention", ("flash", "fmha", "sdpa", "cudnn_generated")),
    ("products", ("gemm", "cutlass", "xmma", "nvjet", "cublas", "sm90", "conv")),
    ("optimizer", ("multi_tensor", "fused_adam")),
    ("compiled pointwise and norms", ("triton",)),
    ("gathers and scatters", ("index", "gather", "scatter", "embedding", "sort")),
    ("other pointwise", ("elementwise", "vectorized", "catarray", "reduce")),
)


class Profile:
    """Takes one step under torch's profiler and appends what it saw to a text file."""

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title

    def __call__(self, step: Callable[[], object]) -> None:
        cuda = torch.cuda.is_available()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as seen:
            step()
            if cuda:
                torch.cuda.synchronize()
        lines = [f"== {self.title}"]
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            seen.export_chrome_trace(str(trace))
            lines += summary(json.loads(trace.read_text())["traceEvents"])
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        lines.append(
            seen.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=90)
        )
        lines.append(
            seen.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=ROWS // 2, max_name_column_width=60
            )
        )
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def summary(events: Iterable[dict[str, Any]]) -> list[str]:
    """Lines: how much of the step the device was busy, and its time by kind of kernel."""
    kernels = [
        (str(e["name"]).lower(), float(e["ts"]), float(e["ts"]) + float(e["dur"]))
        for e in events
        if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") and "dur" in e
    ]
    busy = union((start, end) for _, start, end in kernels)
    if not busy:
        return ["no kernels on a device"]
    whole = busy[-1][1] - busy[0][0]
    sums: dict[str, float] = {}
    for name, start, end in kernels:
        sums[kind_of(name)] = sums.get(kind_of(name), 0.0) + end - start
    lines = [
        f"{whole / 1e6:.3f} s from the first to the last kernel, busy {length(busy) / whole:.1%}"
    ]
    for kind, time in sorted(sums.items(), key=lambda item: -item[1]):
        lines.append(f"{time / whole:7.1%}  {kind}")
    return lines


def kind_of(name: str) -> str:
    """The kind of a kernel, by its name in small letters."""
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "others")
