"""The vision tower alone, as feature extraction runs it and in other ways. Used by
`benchmarks.features`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.features.workers.frame_encoder import FrameEncoder, load_encoder
from assets.features.workers.tower import ATTENTION, MLP_MULTIPLE
from model.config import HourLlavaConfig
from model.vision import pool_frames
from model.vision_encoders.siglip import SiglipEncoder


def tower_rates(encoder: Path, config: HourLlavaConfig, batches: list[int]) -> dict[str, float]:
    """The tower alone as extraction runs it, pictures already on the device."""
    return {f"batch {batch}": tower_rate(encoder, config, batch) for batch in batches}


def tower_variants(
    encoder: Path, config: HourLlavaConfig, batch: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Other ways to run it: their names, and how to measure them, in frames a second mostly."""
    rate = partial(tower_rate, encoder, config, batch)
    yield f"tower as extraction runs it, batch {batch}", rate
    yield "tower, MLP not padded", partial(rate, mlp_multiple=1)
    yield "tower, compiled", partial(rate, how="compiled")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9):
        yield "tower, FP8 products, compiled", partial(rate, how="compiled", fp8=True)
        yield "features' relative error", partial(feature_errors, encoder, config)
    yield f"tower, batch {2 * batch}", partial(tower_rate, encoder, config, 2 * batch)
    flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    yield "tower, flash attention", partial(rate, attention=flash)
    yield "tower, separate gelu", partial(rate, fused_gelu=False)
    if torch.cuda.is_available():
        yield "attention alone, TFLOP/s", partial(attention_rates, config)


class Fp8Linear(nn.Module):
    """A linear layer whose product is of 8-bit floats (e4m3), with a scale for each row of either
    side, computed anew for activations.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.scale = _scaled(linear.weight.detach())
        self.weight, self.bias = weight, linear.bias
        self.out_features = linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat, scale = _scaled(x.flatten(0, -2))
        y = torch._scaled_mm(
            flat,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return y.unflatten(0, x.shape[:-1])


def _scaled(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


class Fp8Encoder(FrameEncoder):
    """The tower with its products in FP8, attention's own excepted."""

    def use_fp8(self) -> Fp8Encoder:
        self.qkv = nn.ModuleList()
        for layer, weight, bias in zip(
            self._layers(), self.qkv_weights, self.qkv_biases, strict=True
        ):
            joined = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            joined.weight, joined.bias = nn.Parameter(weight), nn.Parameter(bias)
            self.qkv.append(Fp8Linear(joined))
            for name in ("out", "up", "down"):
                setattr(layer, name, Fp8Linear(getattr(layer, name)))
        return self

    def forward(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        patches_BNp = self._patches(pixels_BSS3).to(self.patch_weight.dtype)
        x_BNC = F.linear(patches_BNp, self.patch_weight, self.patch_bias) + self.positions
        for layer, qkv in zip(self._layers(), self.qkv, strict=True):
            qkv_BN3C = qkv(layer.attention_norm(x_BNC))
            qkv_BN3HD = qkv_BN3C.unflatten(-1, (3, self.config.num_heads, -1))
            q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4)
            attended_BHND = F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND)
            x_BNC = x_BNC + layer.out(attended_BHND.transpose(1, 2).flatten(2))
            inner = F.gelu(layer.up(layer.mlp_norm(x_BNC)), approximate="tanh")
            x_BNC = x_BNC + layer.down(inner)
        return pool_frames(x_BNC.float(), self.pooled_side).to(torch.bfloat16)


@torch.inference_mode()
def _siglip(folder: Path) -> SiglipEncoder:
    encoder = load_encoder(folder)
    assert isinstance(encoder, SiglipEncoder)  # make_encoder wrote it
    return encoder


def feature_errors(encoder: Path, config: HourLlavaConfig, pictures: int = 16) -> dict[str, float]:
    """How far features in bf16 and with FP8 products are from those in float32, relative to these
    (root of the summed squares).
    """
    side, pooled = config.vision.image_size, config.memory.pooled_side
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (pictures, side, side, 3), dtype=torch.uint8, generator=generator
    )
    pixels = pixels.cuda()
    exact = FrameEncoder(_siglip(encoder), pooled).cuda().float()(pixels).float()
    found = {}
    for name, module in (
        ("bf16", FrameEncoder(_siglip(encoder), pooled).to("cuda", torch.bfloat16)),
        ("fp8", Fp8Encoder(_siglip(encoder), pooled).to("cuda", torch.bfloat16).use_fp8()),
    ):
        found[name] = float((module(pixels).float() - exact).norm() / exact.norm())
    return found


@torch.inference_mode()
def tower_rate(
    encoder: Path,
    config: HourLlavaConfig,
    batch: int,
    attention: list[SDPBackend] = ATTENTION,
    fused_gelu: bool = True,
    how: Literal["graph", "compiled"] = "graph",
    mlp_multiple: int = MLP_MULTIPLE,
    fp8: bool = False,
) -> float:
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    made = Fp8Encoder if fp8 else FrameEncoder
    module: Any = made(_siglip(encoder), config.memory.pooled_side, fused_gelu, mlp_multiple).to(
        device, dtype
    )
    if fp8:
        module.use_fp8()
    side = config.vision.image_size
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    run: Callable[[], Any] = partial(module, pixels)
    with sdpa_kernel(attention, set_priority=True):
        if cuda and how == "compiled":
            torch.compiler.reset()
            run = partial(torch.compile(module, fullgraph=True, dynamic=False), pixels)
        elif cuda:
            run()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                module(pixels)
            run = graph.replay
        frames_per_second = batch * rate(run, device)
    del module, run
    if cuda:
        torch.cuda.empty_cache()
    return frames_per_second


def rate(run: Callable[[], Any], device: str, seconds: float = 4.0) -> float:
    """Times a second, over some seconds at working temperature."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run()
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run()
        wait()
        count += 1
    return count / (time.perf_counter() - started)


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
