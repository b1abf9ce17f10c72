"""What fits cards of other sizes, measured on one: training steps of stage 3 with this process's
memory capped, beside the memory plan's estimate.

    python -m benchmarks.memory_table                          every row for one GPU
    python -m benchmarks.memory_table --rows 3b-24 3b-24-plain
    torchrun --standalone --nproc-per-node=2 -m benchmarks.memory_table --row 7b-2x141
    python -m benchmarks.memory_table --plans                  what would be chosen; needs no GPU
    python -m benchmarks.memory_table --preset tiny            any CPU, to see that it runs

Models of full shapes with random weights, drawn on the device; generated samples about videos of an
hour (or four), read by the real loader. Each row is a process of its own, so that one that fails
does not stop the others; rows that end in -plain run uncapped and with no saving, and the losses of
the row they belong to are compared with theirs. Samples have about as many tokens as the plan makes
room for. A capped process may take 0.6 GiB less than the
card has, which is what a CUDA context takes there.

Columns: the plan, its estimate, the highest that the allocator gave out and had reserved, the
estimate's error against the former, seconds a step, samples a second, model-FLOP utilisation
against the measured rate of a matrix product (790 TFLOP/s on an H200) and against the data sheet's
989, and the largest difference of a step's loss from the plain way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import training.loop as loop
from benchmarks import training_data
from benchmarks.steps import measure
from model.config import PRESETS
from model.hf import HourLlavaForCausalLM
from model.weights.loading import load_tokenizer
from training.adapters import is_adapter, plain_name
from training.checkpoint import Checkpoints
from training.data.loader import build_loader
from training.formats.hashing import seed_of
from training.formats.kinds import LONG_VIDEO_KIND
from training.memory_plan import plan_memory
from training.ranks import Ranks, join_ranks, leave_ranks
from training.rates import GIB
from training.reporting import Reporter
from training.run_config import RunConfig, parse_run

CONTEXT_GIB = 0.6
ROW_TIMEOUT_S = 300
PROMPT, ANSWER = 640, 256  # tokens of a sample's text; the template adds about 100
PLAIN = {
    "chunks": False,
    "memaug": False,
    "layers": 0,
    "inputs_on_host": False,
    "gathered_again": False,
    "optimizer_on_host": False,
    "parameters_on_host": False,
}


@dataclass(frozen=True)
class Row:
    """A measurement.

    Attributes:
        card: GiB that the process may take; None: all that there are.
        fields: of the run.
        plain: the row whose losses these should be.
        frames: of a video.
        samples: of one rank in a step.
    """

    variant: str
    card: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    plain: str | None = None
    frames: int = 3600
    samples: int = 4


_LORA: dict[str, Any] = {"lora": {}}
# Without recomputation, one of the longest samples that stage 3 takes would not fit.
_PLAIN: dict[str, Any] = {"savings": PLAIN, "max_length": 9728}
_FOUR_HOURS = {"frames": 14_400, "samples": 2}
ROWS = {
    "3b-24": Row("3b", 24, _LORA, "3b-24-plain"),
    "3b-24-plain": Row("3b", None, _LORA | _PLAIN),
    "3b-48": Row("3b", 48, {}, "3b-plain"),
    "3b-80": Row("3b", 80, {}, "3b-plain"),
    "3b-80-offload": Row("3b", 80, {"savings": {"parameters_on_host": True}}, "3b-plain"),
    "3b-plain": Row("3b", None, _PLAIN),
    "7b-80": Row("7b", 80, _LORA, "7b-80-plain"),
    "7b-80-plain": Row("7b", None, _LORA | _PLAIN),
    "3b-141-4h": Row("3b", None, {}, "3b-141-4h-plain", **_FOUR_HOURS),  # type: ignore[arg-type]
    "3b-141-4h-plain": Row("3b", None, _PLAIN, **_FOUR_HOURS),  # type: ignore[arg-type]
}
FOR_TWO = {
    "7b-2x141": Row("7b"),
    "3b-2x24": Row("3b", 24, _LORA),
}
_ON_HOST = {"inputs_on_host": True, "chunks": True, "memaug": True, "layers": 1}
TINY = {
    "tiny": Row(
        "tiny", None, {"savings": _ON_HOST | {"optimizer_on_host": True}}, "tiny-plain", 60
    ),
    "tiny-plain": Row("tiny", None, _PLAIN, frames=60),
    "tiny-lora": Row("tiny", None, _LORA | {"savings": {"parameters_on_host": True}}, frames=60),
}
ALL = ROWS | FOR_TWO | TINY


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=sorted(ALL), help="default: all for one GPU")
    parser.add_argument("--row", choices=sorted(ALL), help="measure this one in this process")
    parser.add_argument(
        "--steps", type=int, default=2, help="that are timed, after one that is not"
    )
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--plans", action="store_true", help="only say what the plans are")
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark/memory"))
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    if options.plans:
        print(plans(), flush=True)
        return
    if options.row:
        measure_here(ALL[options.row], options)
        return
    if options.preset:
        options.steps, options.no_compile = 1, True
    rows: dict[str, dict[str, Any]] = {}
    for name in options.rows or (TINY if options.preset else ROWS):
        rows[name] = {"row": name, **measure_apart(name, options)}
        compare(rows)
        print(json.dumps(rows[name]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    print(table(rows), flush=True)


def measure_apart(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row, by a process of its own; what it said last where it failed."""
    command = [sys.executable, "-m", "benchmarks.memory_table", "--row", name]
    command += ["--steps", str(options.steps), "--folder", str(options.folder)]
    command += ["--no-compile"] if options.no_compile else []
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ROW_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {ROW_TIMEOUT_S} s"}
    wall = round(time.monotonic() - began, 1)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["?"]
        raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        return {"error": (raised or lines)[-1][:600], "wall_s": wall}
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": wall}


def measure_here(row: Row, options: argparse.Namespace) -> None:
    """Print one row's measurement as JSON."""
    ranks = join_ranks("auto")
    cuda = ranks.device.type == "cuda"
    if cuda and row.card is not None:
        whole = torch.cuda.get_device_properties(ranks.device).total_memory
        torch.cuda.set_per_process_memory_fraction((row.card - CONTEXT_GIB) * GIB / whole)
    run = prepare_run(row, ranks, options)
    loop.load_weights = fill_randomly  # nothing is downloaded, nothing is read
    checkpoints = Checkpoints(options.folder / "state", 2, ranks)
    trainer = loop.Trainer(run, {}, ranks, Reporter(), build_loader, checkpoints)
    found = measure(trainer, options.steps)
    trainer.loader.close()
    estimated = trainer.memory.needed.total / GIB
    result: dict[str, Any] = {
        "card": row.card,
        "gpus": ranks.world,
        "plan": str(trainer.memory),
        "estimated_gib": estimated,
        **{n: found[n] for n in ("s_per_step", "samples_per_s", "tokens_per_s", "losses")},
    }
    if cuda:
        peak = found["peak_gib"]
        result |= {
            "peak_gib": peak,
            "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
            "estimate_off": estimated / peak - 1,
            "mfu": found["mfu"],
            "mfu_datasheet": found["mfu_datasheet"],
        }
    if ranks.first:
        print(json.dumps(result), flush=True)
    leave_ranks()


def prepare_run(row: Row, ranks: Ranks, options: argparse.Namespace) -> RunConfig:
    """Write what the row reads, unless it is there, and say how it trains."""
    config = PRESETS[row.variant]
    start = options.folder / f"{row.variant}-start"
    data = options.folder / f"{config.vision.hidden_size}-{row.frames}-{row.samples * ranks.world}"
    if ranks.local == 0:
        training_data.write_description(start, config)
        tokenizer = load_tokenizer(start)
        seconds = [row.frames] * (row.samples * ranks.world)
        training_data.write_long(
            data, data, seconds, config, tokenizer, ranks.device, PROMPT, ANSWER
        )
    ranks.barrier()
    if ranks.device.type == "cuda":
        torch.cuda.empty_cache()
    stream = {
        "name": "long",
        "root": str(data / "sharding"),
        "indexes": [f"{LONG_VIDEO_KIND}_part0/index.json"],
    }
    return parse_run(
        {
            "variant": row.variant,
            "stage": 3,
            "start": str(start),
            "out": str(options.folder / "out"),
            "streams": [stream],
            "features_root": str(data / "features"),
            "global_batch": row.samples * ranks.world,
            "micro_batch": min(4, row.samples),
            "epochs": options.steps + 2,
            "longest_frames": row.frames,
            "compile": not options.no_compile and ranks.device.type == "cuda",
            "tensorboard": False,
            **row.fields,
        }
    )


@torch.no_grad()
def fill_randomly(wrapper: HourLlavaForCausalLM, start: Path, seed: str = "") -> None:
    """N(0, 0.02), norms 1, biases 0, drawn on the device by a seed of each name."""
    rank = int(os.environ.get("RANK", "0"))
    device = (
        torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    )
    for name, parameter in wrapper.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        if is_adapter(name):
            continue
        if name.endswith("bias"):
            local.zero_()
        elif "norm" in name:
            local.fill_(1)
        else:
            generator = torch.Generator(device).manual_seed(seed_of(plain_name(name), rank))
            half = {"dtype": torch.bfloat16, "device": device}
            drawn = torch.randn(local.shape, generator=generator, **half)  # type: ignore[call-overload]
            local.copy_(0.02 * drawn)


def plans() -> str:
    """What the memory plan chooses for each row, on cards that have nothing else to hold, with the
    published global batch.
    """
    lines = ["| row | card | GiB | of the host | slower | |", "|---" * 6 + "|"]
    for name, row in (ROWS | FOR_TWO).items():
        if name.endswith("-plain"):
            continue
        stream = {"name": "any", "root": "", "indexes": ["index.json"]}
        run = parse_run(
            {
                "variant": row.variant,
                "stage": 3,
                "start": "",
                "out": "",
                "streams": [stream],
                "longest_frames": row.frames,
                **row.fields,
            }
        )
        world, card = 2 if name in FOR_TWO else 1, row.card or 139.6
        available = (card - CONTEXT_GIB) * GIB
        plan = plan_memory(run, PRESETS[row.variant], world, available, checkpointing=True)
        done = str(plan).partition("; ")[2].partition("; that costs")[0]
        lines.append(
            f"| {name} | {world} x {card:.0f} GiB | {plan.needed.total / GIB:.1f} | "
            f"{plan.needed.host / GIB:.1f} | {plan.slower:.0%} | {done} |"
        )
    return "\n".join(lines)


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """Note how far a row's losses are from those of its plain way, where both are there."""
    for name, row in rows.items():
        other = rows.get(ALL[name].plain or "", {})
        if "losses" in row and "losses" in other:
            pairs = zip(row["losses"], other["losses"], strict=True)
            row["loss_off"] = max(abs(a - b) / abs(b) for a, b in pairs)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    columns = {
        "estimated_gib": "{:.1f}",
        "peak_gib": "{:.1f}",
        "reserved_gib": "{:.1f}",
        "estimate_off": "{:+.1%}",
        "s_per_step": "{:.2f}",
        "samples_per_s": "{:.3f}",
        "mfu": "{:.1%}",
        "mfu_datasheet": "{:.1%}",
        "loss_off": "{:.1e}",
    }
    lines = [f"| row | {' | '.join(columns)} | plan |", "|---" * (len(columns) + 2) + "|"]
    for name, row in rows.items():
        cells = [text.format(row[n]) if n in row else "" for n, text in columns.items()]
        said = row.get("error") or row.get("plan", "").partition("; ")[2]
        lines.append(f"| {name} | {' | '.join(cells)} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
