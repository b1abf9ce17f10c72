"""The vision tower alone, as feature extraction runs it and in other ways. Used by
`benchmarks.features`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.features.workers.frame_encoder import FrameEncoder, load_encoder
from assets.features.workers.tower import ATTENTION
from model.config import HourLlavaConfig


def tower_rates(encoder: Path, config: HourLlavaConfig, batches: list[int]) -> dict[str, float]:
    """The tower alone as extraction runs it, pictures already on the device."""
    return {f"batch {batch}": tower_rate(encoder, config, batch) for batch in batches}


def tower_variants(encoder: Path, config: HourLlavaConfig, batch: int) -> dict[str, Any]:
    """Other ways to run it."""
    flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return {
        "attention alone, TFLOP/s": attention_rates(config) if torch.cuda.is_available() else {},
        "flash attention": tower_rate(encoder, config, batch, attention=flash),
        "separate gelu": tower_rate(encoder, config, batch, fused_gelu=False),
        "not compiled": tower_rate(encoder, config, batch, compiled=False),
    }


@torch.inference_mode()
def tower_rate(
    encoder: Path,
    config: HourLlavaConfig,
    batch: int,
    attention: list[SDPBackend] = ATTENTION,
    fused_gelu: bool = True,
    compiled: bool = True,
) -> float:
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    module: Any = FrameEncoder(load_encoder(encoder), config.memory.pooled_side, fused_gelu).to(
        device, dtype
    )
    torch.compiler.reset()
    run = torch.compile(module, fullgraph=True, dynamic=False) if cuda and compiled else module
    with sdpa_kernel(attention, set_priority=True):
        frames_per_second = rate(run, batch, config.vision.image_size, device)
    del module, run
    if cuda:
        torch.cuda.empty_cache()
    return frames_per_second


def rate(
    run: Callable[[torch.Tensor], Any], batch: int, side: int, device: str, seconds: float = 4.0
) -> float:
    """Frames a second, over some seconds at working temperature."""
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run(pixels)
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run(pixels)
        wait()
        count += 1
    return batch * count / (time.perf_counter() - started)


def attention_rates(config: HourLlavaConfig) -> dict[str, float]:
    """Kernels on the tower's own shape, and with head dimensions padded to what kernels like."""
    heads, tokens = config.vision.num_heads, config.vision.patches_per_side**2
    true = config.vision.hidden_size // heads
    found = {}
    for dims in (true, 80, 96, 128):
        for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            q = torch.randn((128, tokens, 3, heads, dims), dtype=torch.bfloat16, device="cuda")
            q_BHND, k_BHND, v_BHND = q.permute(2, 0, 3, 1, 4)
            run = partial(F.scaled_dot_product_attention, q_BHND, k_BHND, v_BHND, scale=true**-0.5)
            with sdpa_kernel(kernel):
                try:
                    ms = milliseconds(run)
                except RuntimeError as error:
                    print(f"{kernel.name} at {dims}: {str(error).splitlines()[0]}")
                    continue
            found[f"{kernel.name.lower()} {dims}"] = 4 * 128 * heads * tokens**2 * true / ms / 1e9
    return found


def milliseconds(run: Callable[[], Any], times: int = 20) -> float:
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1000 / times
