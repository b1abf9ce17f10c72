"""Time and memory of the model on one hour-long sample: a step without optimizer, and generation.
Random weights.

    python -m benchmarks.model --variants 3b 7b --modes eager compiled checkpointed --generate 64
    python -m benchmarks.model --preset tiny         a quick look that it runs, on any CPU

Prints one line for each variant and mode, and one for each of the model's parts; `--json` also
writes them to a file. Model FLOP: those of the forward pass, times three; what is recomputed does
not count. MFU is against 790 TFLOP/s, the rate of an 8192^3 bfloat16 matrix product on one H200,
and `mfu_datasheet` against the datasheet's 989.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import PRESETS, HourLlavaConfig
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.hour_llava import HourLlava
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.packing import plan_sample
from training.parallel import compile_blocks, recompute, reset_buffers
from training.rates import CARDS

H200 = CARDS["H200"]
MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "checkpointed": {"recomputed": ("llm", "projector")},
    "compiled+checkpointed": {"compiled": True, "recomputed": ("llm", "projector")},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=sorted(PRESETS), default=["3b", "7b"])
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=["eager", "compiled", "checkpointed"]
    )
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument(
        "--prompt", type=int, default=144, help="text tokens that are not supervised"
    )
    parser.add_argument("--answer", type=int, default=256, help="text tokens that are")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--generate",
        type=int,
        default=0,
        metavar="TOKENS",
        help="also prefill and generate so many tokens",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--profile", type=Path, help="folder for a table of the kernels of one step of each mode"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--preset", choices=["tiny"], help="the tiny variant, few frames and steps, on the CPU"
    )
    options = parser.parse_args()
    if options.preset == "tiny":
        options.variants, options.modes, options.device = ["tiny"], ["eager", "checkpointed"], "cpu"
        options.frames, options.warmup, options.steps, options.generate = 40, 1, 2, 8
    torch.set_float32_matmul_precision("high")
    rows: list[dict[str, Any]] = []
    for variant in options.variants:
        for mode in options.modes:
            model = random_model(PRESETS[variant], options.device)
            sample = hour_sample(model.model.config, options)
            if MODES[mode].get("compiled"):
                compile_blocks(model.model)
            recompute(model.model, *MODES[mode].get("recomputed", ()))
            rows.append(
                {
                    "variant": variant,
                    "mode": mode,
                    **train_steps(model.model, sample, options, f"{variant}-{mode}"),
                }
            )
            show(rows[-1])
            if options.generate and mode == "eager":
                rows.append(
                    {"variant": variant, "mode": "generation", **generation(model, sample, options)}
                )
                show(rows[-1])
            del model, sample
            torch._dynamo.reset()
            gc.collect()  # compiled and wrapped forwards refer to their modules in circles
            if options.device == "cuda":
                torch.cuda.empty_cache()
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")


def random_model(config: HourLlavaConfig, device: str) -> HourLlavaForCausalLM:
    """Never on the CPU on its way: built without memory, filled on the device in bfloat16 (float32
    on a CPU).
    """
    with torch.device("meta"):
        model = HourLlavaForCausalLM(
            HourLlavaHFConfig.of(config, eos_token_id=None, pad_token_id=0)
        )
    nn.Module.to(model, torch.float32 if device == "cpu" else torch.bfloat16).to_empty(
        device=device
    )
    model.tie_weights()
    reset_buffers(model.model, device)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.fill_(1) if "norm" in name and name.endswith("weight") else parameter.normal_(
                std=0.02
            )
    return model.train()


def hour_sample(config: HourLlavaConfig, options: argparse.Namespace) -> SampleInputs:
    generator = torch.Generator().manual_seed(0)
    prompt, answer = options.prompt, options.answer
    ids = torch.randint(0, config.llm.vocab_size, (prompt + 1 + answer,), generator=generator)
    labels = torch.where(torch.arange(len(ids)) > prompt, ids, IGNORE_INDEX)
    ids[16] = IMAGE_TOKEN_INDEX
    shape = (options.frames, config.memory.frame_tokens, config.vision.hidden_size)
    features = torch.randn(shape, generator=generator, dtype=torch.bfloat16).to(options.device)
    return SampleInputs("hour", ids, labels, [Visual("features", features=features)], seed=0)


# -- training step -------------------------------------------------------------------------------


def train_steps(
    model: HourLlava, sample: SampleInputs, options: argparse.Namespace, name: str
) -> dict[str, Any]:
    cuda = options.device == "cuda"

    def step() -> None:
        model.zero_grad(set_to_none=True)
        output = model([sample], forgetting="random")
        (output.loss_sum / output.supervised).backward()

    start = time.perf_counter()
    for _ in range(options.warmup):
        step()
    synchronise(cuda)
    warmup = time.perf_counter() - start
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [timed(step, cuda) for _ in range(options.steps)]
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    with parts_timed(model, cuda) as parts:
        step()
    seconds = parts()
    if options.profile and cuda:
        profile(step, options.profile / f"{name}.txt")
    flops = model_flops(model.config, sample)
    total, median = 3 * sum(flops.values()), statistics.median(times)
    return {
        "seconds": round(median, 4),
        "fastest": round(min(times), 4),
        "peak_gib": round(peak, 1),
        "model_tflop": round(total / 1e12, 1),
        "mfu": round(total / median / H200.products, 3),
        "mfu_datasheet": round(total / median / H200.stated, 3),
        "warmup_seconds": round(warmup, 1),
        "parts_ms": {part: round(1000 * value, 1) for part, value in seconds.items()},
        "parts_tflop": {part: round(value / 1e12, 2) for part, value in flops.items()},
    }


def model_flops(config: HourLlavaConfig, sample: SampleInputs) -> dict[str, float]:
    """FLOP of the forward pass, by part; two for a multiplication and an addition, causal attention
    by half.
    """
    llm, width, vision = config.llm, config.llm.hidden_size, config.vision.hidden_size
    plan = plan_sample(sample, config, "uniform")
    assert plan.layout is not None
    assert sample.visuals[0].features is not None
    features = (
        max(len(sample.visuals[0].features), config.memory.min_frames) * config.memory.frame_tokens
    )
    memory, queries, length = (
        len(plan.layout.memory_positions_N),
        len(plan.query_sources_M),
        plan.length,
    )
    supervised = int((plan.labels_S[1:] != IGNORE_INDEX).sum())
    kv = 2 * llm.num_kv_heads * llm.head_dim
    linear = queries * (width * (width + kv) + 3 * width * width + 8 * width * width)
    attention = 2 * queries * width * (queries + memory)
    layer = width * (width + kv) + width * width + 3 * width * llm.intermediate_size
    return {
        "projector": 2 * features * width * (vision + width),
        "memaug": 2 * config.memaug_depth * (linear + memory * width * kv + attention),
        "llm": 2 * llm.num_layers * (length * layer + length * length * width),
        "head": 2 * supervised * width * llm.vocab_size,
    }


@contextmanager
def parts_timed(model: HourLlava, cuda: bool) -> Iterator[Callable[[], dict[str, float]]]:
    """Marks when data enters and leaves a part, forward and backward. What no part claims is
    "rest".
    """
    marks: dict[str, list[Any]] = defaultdict(list)

    def mark(key: str) -> None:
        if cuda:
            marks[key].append(torch.cuda.Event(enable_timing=True))
            marks[key][-1].record()
        else:
            marks[key].append(time.perf_counter())

    def mark_gradient(tensor: Any, key: str) -> None:
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            tensor.register_hook(lambda _gradient: mark(key))

    def watch(module: nn.Module, part: str) -> list[Any]:
        def enter(_module: nn.Module, arguments: tuple, keywords: dict) -> None:
            mark(f"{part} forward")
            for tensor in [*arguments, *keywords.values()]:
                mark_gradient(tensor, f"{part} backward end")

        def leave(_module: nn.Module, _arguments: tuple, output: Any) -> None:
            mark(f"{part} forward end")
            mark_gradient(
                output if isinstance(output, Tensor) else output.last_hidden_state,
                f"{part} backward",
            )

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]

    hooks = [
        hook
        for part, module in (
            ("projector", model.projector),
            ("memaug", model.memaug),
            ("llm", model.llm.model),
        )
        for hook in watch(module, part)
    ]

    def seconds() -> dict[str, float]:
        synchronise(cuda)

        def between(start: Any, end: Any) -> float:
            return start.elapsed_time(end) / 1000 if cuda else end - start

        def span(key: str) -> float:
            ends = (
                marks[f"{key} end"] or marks["step end"]
            )  # features need no gradient: the projector's runs to the end
            return max(between(marks[key][0], end) for end in ends)

        found = {
            key: span(key) for key in list(marks) if not key.endswith(" end") and key != "step"
        }
        return {
            **found,
            "rest": between(marks["step"][0], marks["step end"][0]) - sum(found.values()),
        }

    mark("step")
    yield seconds
    mark("step end")
    for hook in hooks:
        hook.remove()


def profile(step: Callable[[], None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        step()
        torch.cuda.synchronize()
    table = recorded.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=100
    )
    path.write_text(table)


# -- generation ----------------------------------------------------------------------------------


@torch.no_grad()
def generation(
    model: HourLlavaForCausalLM, sample: SampleInputs, options: argparse.Namespace
) -> dict[str, Any]:
    cuda, tokens = options.device == "cuda", options.generate
    model.eval()

    def generate(count: int) -> Tensor:
        return model.generate(
            samples=sample, max_new_tokens=count, do_sample=False, eos_token_id=None
        )

    generate(2)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    prefill = min(timed(lambda: generate(1), cuda) for _ in range(3))
    total = min(timed(lambda: generate(tokens), cuda) for _ in range(3))
    model.train()
    return {
        "seconds": round(total, 3),
        "prefill_seconds": round(prefill, 3),
        "ms_per_token": round(1000 * (total - prefill) / max(1, tokens - 1), 1),
        "tokens": tokens,
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else float("nan"),
    }


def timed(run: Callable[[], Any], cuda: bool) -> float:
    synchronise(cuda)
    start = time.perf_counter()
    run()
    synchronise(cuda)
    return time.perf_counter() - start


def synchronise(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def show(row: dict[str, Any]) -> None:
    line = " ".join(f"{key}={value}" for key, value in row.items() if not isinstance(value, dict))
    print(
        line,
        *(f"  {key}: {value}" for key, value in row.items() if isinstance(value, dict)),
        sep="\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
