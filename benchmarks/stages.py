"""Rates of the training stages at full size on generated data, each beside the published way over
the same samples in the same process. Random weights, optimizer and data loader included.

    python -m benchmarks.stages                                     # 3B, stages 1 and 2, one GPU
    python -m benchmarks.stages --cases 3-long 3-short --ours
    torchrun --nproc-per-node=2 -m benchmarks.stages --variant 7b
    python -m benchmarks.stages --cases 2 --ours --profile profile.txt    # where a step's time goes
    python -m benchmarks.stages --preset tiny                       # any CPU, to see that it runs

cases: 1        images cut into tiles; MemAug alone is tuned
       2        short videos (128 frames through the vision encoder), images, texts; all is tuned
       3-long   features of videos of 3 to 60 minutes, and texts
       3-short  short videos, images and texts; the vision encoder is frozen
       3-kept   the same, short videos as kept features

A row is the mean over the steps of one whole epoch, after `--warm` steps (one in the published way,
which compiles nothing). Both ways take the same samples in the same order.
MFU counts the model's own operations (recomputation does not count), against 790 TFLOP/s, the rate
of an 8192^3 bfloat16 product on one H200, and against the datasheet's 989.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import stage_data, training_data
from benchmarks.profiling import Profile
from benchmarks.steps import measure
from benchmarks.usage import Usage
from model.config import PRESETS, HourLlavaConfig
from model.weights.loading import load_tokenizer
from training.checkpoint import Checkpoints
from training.data.loader import build_loader
from training.data.worker_pool import workers_of
from training.loop import Trainer
from training.ranks import Ranks, join_ranks, leave_ranks
from training.reporting import Reporter, open_reporter
from training.run_config import parse_run


@dataclass(frozen=True, slots=True)
class Case:
    """A stage, or a stream of one.

    Attributes:
        shares: of kinds of samples; None: long videos and texts.
        samples: of one GPU in an optimizer step.
        published: samples in a batch of the published way.
        kept: whether short videos are read as features.
    """

    stage: int
    shares: dict[str, int] | None
    samples: int
    published: int
    kept: bool = False


CASES = {
    "1": Case(1, stage_data.STAGE_1, 64, 8),
    "2": Case(2, stage_data.STAGE_2, 16, 2),
    "3-long": Case(3, None, 8, 2),
    "3-short": Case(3, stage_data.SHORT_STREAM, 32, 2),
    "3-kept": Case(3, stage_data.SHORT_STREAM, 32, 2, kept=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=sorted(PRESETS), default="3b")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["1", "2"])
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--warm", type=int, default=4, help="steps before them")
    parser.add_argument("--samples", type=int, help="of one GPU in a step, instead of the case's")
    parser.add_argument("--scale", type=float, default=1.0, help="shorten the videos")
    parser.add_argument("--workers", type=int, help="of the loader, instead of the run's default")
    parser.add_argument("--ours", action="store_true", help="leave the published way out")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--layers", type=int, help="LLM layers, instead of the variant's")
    parser.add_argument(
        "--profile", type=Path, help="write a profile of one more step of each case to this file"
    )
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--json", type=Path, help="append the rows to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    if options.preset:
        options.variant, options.scale, options.steps, options.warm = "tiny", 0.05, 1, 1
        options.samples, options.no_compile = options.samples or 4, True
    with open_reporter() as reporter:
        ranks = join_ranks("auto")
        config = PRESETS[options.variant]
        if options.layers:
            config = replace(config, llm=replace(config.llm, num_layers=options.layers))
        for name in options.cases:
            run_case(name, options, config, ranks, reporter)
        leave_ranks()


def run_case(
    name: str,
    options: argparse.Namespace,
    config: HourLlavaConfig,
    ranks: Ranks,
    reporter: Reporter,
) -> None:
    """Both ways of one case, one after another over one model."""
    case = CASES[name]
    samples = options.samples or case.samples
    count = options.steps * samples * ranks.world
    timed = -(-options.warm // options.steps)  # number of the epoch whose steps count
    folder = options.folder / f"{options.variant}-{config.llm.num_layers}-{options.scale}"
    data = folder / f"case-{name}-{count}"
    start = training_data.start_folder(options.folder, config)
    if ranks.local == 0:
        training_data.write_start(start, config, ranks.device)
        write_data(case, start, folder, data, count, options.scale, config, ranks)
    ranks.barrier()
    torch.cuda.empty_cache()
    kinds = sorted(path.name.removesuffix("_part0") for path in (data / "sharding").iterdir())
    values: dict[str, Any] = {
        "variant": options.variant,
        "stage": case.stage,
        "start": str(start),
        "out": str(folder / "out"),
        "streams": [
            {
                "name": name,
                "root": str(data / "sharding"),
                "indexes": [f"{kind}_part0/index.json" for kind in kinds],
            }
        ],
        "features_root": str(folder / "features"),
        "videos_root": str(folder / "videos"),
        "global_batch": samples * ranks.world,
        "epochs": timed + 2,  # one more step may follow, for a profile
        "compile": not options.no_compile and ranks.device.type == "cuda",
        "tensorboard": False,
    }
    if case.kept:
        values["short_video_features_root"] = str(folder / "short_features")
    if options.workers is not None:
        values["workers"] = options.workers
    began = time.monotonic()
    checkpoints = Checkpoints(folder / "state", 2, ranks)
    trainer = Trainer(parse_run(values), {}, ranks, reporter, build_loader, checkpoints)
    reporter.note(
        f"case {name}: model, optimizer and loader stand {time.monotonic() - began:.1f} s"
    )
    trainer.loader.load_state_dict({"epoch": 0, "step": -options.warm % options.steps})
    took = time.monotonic()
    profile = (
        Profile(options.profile, f"case {name}, {options.variant}") if options.profile else None
    )
    with Usage() as usage:
        row = measure(trainer, options.steps, warm=options.warm, then=profile)
    row |= {
        "host_cores": usage.cores(row["s_per_step"] * options.steps),
        "workers": workers_of(trainer.config.workers),
        "whole_s": time.monotonic() - took,
    }
    _print({"case": name, "way": "ours"} | _heading(options, config, ranks) | row, ranks, options)
    if not options.ours:
        trainer.loader.close()
        trainer.config = parse_run({**values, "micro_batch": min(case.published, samples)})
        trainer.micro_batch, trainer.accumulation = trainer.config.batches(ranks.world)
        trainer.loader = build_loader(trainer.config, trainer.processor, ranks.rank, ranks.world)
        trainer.loader.load_state_dict({"epoch": timed - 1, "step": options.steps - 1})
        row = measure(trainer, options.steps, published=case.published)
        way = {"case": name, "way": "published"}
        _print(way | _heading(options, config, ranks) | row, ranks, options)
    trainer.loader.close()
    del trainer
    torch._dynamo.reset()
    gc.collect()  # compiled and wrapped forwards refer to their modules in circles
    torch.cuda.empty_cache()


def write_data(
    case: Case,
    start: Path,
    folder: Path,
    data: Path,
    count: int,
    scale: float,
    config: HourLlavaConfig,
    ranks: Ranks,
) -> None:
    """Shards below `data`; feature files and videos below `folder`, which cases share."""
    tokenizer = load_tokenizer(start)
    if case.shares is not None:
        stage_data.write_stage(data, folder / "videos", case.shares, count, tokenizer, scale)
        if case.kept:
            stage_data.write_kept(
                folder / "short_features", folder / "videos", scale, config, ranks.device
            )
        return
    pattern = training_data.MIXED
    seconds = [int(pattern[i % len(pattern)] * scale) for i in range(count)]
    training_data.write_long(data, folder, seconds, config, tokenizer, ranks.device)


def _heading(options: argparse.Namespace, config: HourLlavaConfig, ranks: Ranks) -> dict[str, Any]:
    return {"variant": options.variant, "layers": config.llm.num_layers, "gpus": ranks.world}


def _print(row: dict[str, Any], ranks: Ranks, options: argparse.Namespace) -> None:
    if not ranks.first:
        return
    shown = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()
    }
    print(json.dumps(shown), flush=True)
    if options.json is not None:
        with open(options.json, "a", encoding="utf-8") as file:
            file.write(json.dumps(shown) + os.linesep)


if __name__ == "__main__":
    main()
