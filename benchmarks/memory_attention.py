"""What the band of `hourllava serve` costs: MemAug's attention over the frames of an hour, beside
the pass that an answer needs anyway. Random weights.

    python -m benchmarks.memory_attention --variants 3b 7b
    python -m benchmarks.memory_attention --preset tiny      a quick look that it runs, on any CPU

Prints a line for each variant and number of queries: seconds of everything before the language
model (`prepare`), seconds of the attention, which holds one such pass, and the most memory of the
device beyond weights and the video's memory.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model.config import PRESETS
from model.hour_llava import HourLlava
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.memory_attention import MOST_QUERIES, memory_attention
from training.parallel import reset_buffers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=sorted(PRESETS), default=["3b", "7b"])
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=["tiny"], help="few frames, on the CPU")
    options = parser.parse_args()
    if options.preset == "tiny":
        options.variants, options.frames, options.device = ["tiny"], 60, "cpu"
    for variant in options.variants:
        for row in measure(variant, options.frames, torch.device(options.device)):
            print(json.dumps(row), flush=True)


@torch.inference_mode()
def measure(variant: str, frames: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each number of queries."""
    config = PRESETS[variant]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device("meta"):
        model = HourLlava(config).to(dtype)
    model = model.to_empty(device=device).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    reset_buffers(model, device)
    ids = torch.tensor([5, IMAGE_TOKEN_INDEX, *range(6, 150)])
    shape = (frames, config.memory.frame_tokens, config.vision.hidden_size)
    visual = Visual("features", features=torch.randn(shape, dtype=dtype))
    sample = SampleInputs("hour", ids, torch.full_like(ids, IGNORE_INDEX), [visual])
    memory_ND = model.remember(visual)
    rows = []
    for most in (64, MOST_QUERIES, None):
        prepared = _timed(
            lambda: model.prepare([sample], forgetting="uniform", memory_ND=memory_ND), device
        )
        looked = _timed(lambda most=most: _look(model, sample, memory_ND, most), device)  # type: ignore[misc]
        rows.append(
            {
                "variant": variant,
                "frames": frames,
                "queries": most or "all",
                "prepare_s": round(prepared[0], 3),
                "attention_s": round(looked[0], 3),
                "attention_gib": round(looked[1] / 2**30, 2),
            }
        )
    return rows


def _look(model: HourLlava, sample: SampleInputs, memory_ND: Tensor, most: int | None) -> Tensor:
    return memory_attention(model, sample, memory_ND, most=most)


def _timed(call: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds of a second call, and the bytes that it took beyond what was there."""
    call()
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, started = torch.cuda.memory_allocated(), time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    main()
