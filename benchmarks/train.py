"""Speed and memory of training, optimizer and data loader included, on generated data. Random
weights.

    python -m benchmarks.train                                     # 3B, stage 3, on one GPU
    torchrun --nproc-per-node=2 -m benchmarks.train --variant 7b   # any number of GPUs
    python -m benchmarks.train --chain 24                          # stages 1, 2, 3, at full width
    python -m benchmarks.train --preset tiny                       # any CPU, to see that it runs

Stage 3 is measured on hour-long samples and on a mixture of long and short ones, each in our way
and in the published way.

Samples, shards and feature files are written into --folder and read by the real loader. A line is
the mean over all steps but the first of each arm. MFU counts the model's own operations
(recomputation does not count) against 790 TFLOP/s, the rate of an 8192^3 bfloat16 product on one
H200; `mfu_datasheet` is against the 989 of its datasheet.

arms: hour       samples about hour-long videos
      cold       the same, their files dropped from the page cache first
      mixed      videos of 3 to 60 minutes among texts, packed
      published  the same samples fed as in the published code: batches padded to their longest
                 sample, logits of all tokens in float32, FlashAttention-2, nothing compiled, a
                 blank image through the model for each text
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import training_data
from benchmarks.steps import measure
from model.config import PRESETS, HourLlavaConfig
from model.weights.loading import load_tokenizer
from training.checkpoint import Checkpoints
from training.data.loader import build_loader
from training.export import export_vision_encoder
from training.formats.kinds import (
    IMAGE_KIND,
    LONG_VIDEO_KIND,
    MULTI_IMAGE_KIND,
    SHORT_VIDEO_KIND,
    TEXT_KIND,
)
from training.loop import Trainer, train
from training.ranks import Ranks, join_ranks, leave_ranks
from training.reporting import Reporter, open_reporter
from training.run_config import RunConfig, parse_run

ARMS = ("hour", "cold", "mixed", "published")
PUBLISHED_BATCH = 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", choices=sorted(PRESETS), default="3b")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--steps", type=int, default=4, help="steps that are timed, after one that is not"
    )
    parser.add_argument(
        "--samples", type=int, default=8, help="samples of one rank in an optimizer step"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shorten the videos")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--micro-tokens", type=int, help="budget of a pack")
    parser.add_argument(
        "--communication",
        action="store_true",
        help="profile one more step: the share of collectives",
    )
    parser.add_argument("--layers", type=int, help="LLM layers, instead of the variant's")
    parser.add_argument(
        "--chain", type=int, default=0, metavar="STEPS", help="train the three stages instead"
    )
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--json", type=Path, help="append the lines to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    if options.preset:
        options.variant, options.scale, options.steps, options.samples, options.no_compile = (
            "tiny",
            0.02,
            1,
            4,
            True,
        )
    with open_reporter() as reporter:
        ranks = join_ranks("auto")
        config = PRESETS[options.variant]
        if options.layers:
            config = replace(config, llm=replace(config.llm, num_layers=options.layers))
        folder = options.folder / f"{options.variant}-{config.llm.num_layers}-{options.scale}"
        (chain if options.chain else compare)(options, config, folder, ranks, reporter)
        leave_ranks()


def compare(
    options: argparse.Namespace,
    config: HourLlavaConfig,
    folder: Path,
    ranks: Ranks,
    reporter: Reporter,
) -> None:
    """One model, and the arms one after another."""
    start = training_data.start_folder(options.folder, config)
    if ranks.local == 0:
        training_data.write_start(start, config, ranks.device)
        tokenizer = load_tokenizer(start)
        patterns = {"hour": training_data.HOUR, "mixed": training_data.MIXED}
        for name, pattern in [
            (n, p) for n, p in patterns.items() if n in map(_data_of, options.arms)
        ]:
            count = 2 * options.samples * ranks.world
            seconds = [int(pattern[i % len(pattern)] * options.scale) for i in range(count)]
            shards = folder / f"{name}-{count}"
            training_data.write_long(shards, folder, seconds, config, tokenizer, ranks.device)
    ranks.barrier()
    torch.cuda.empty_cache()
    trainer: Trainer | None = None
    for arm in options.arms:
        # Another number of ranks needs other shards; all of them name the same feature files.
        shards = folder / f"{_data_of(arm)}-{2 * options.samples * ranks.world}"
        run = parse_run(
            {
                "variant": options.variant,
                "stage": 3,
                "start": str(start),
                "out": str(folder / "out"),
                "streams": _streams(shards, LONG_VIDEO_KIND),
                "features_root": str(folder / "features"),
                "global_batch": options.samples * ranks.world,
                "micro_batch": PUBLISHED_BATCH if arm == "published" else min(4, options.samples),
                "epochs": options.steps + 2,
                "checkpointing": False if options.no_checkpointing else None,
                "compile": not options.no_compile and ranks.device.type == "cuda",
                "micro_tokens": options.micro_tokens,
                "tensorboard": False,
            }
        )
        if trainer is None:
            checkpoints = Checkpoints(folder / "state", 2, ranks)
            began = time.monotonic()
            trainer = Trainer(run, {}, ranks, reporter, build_loader, checkpoints)
            reporter.note(
                f"model, optimizer and loader stand after {time.monotonic() - began:.1f} s"
            )
        else:
            trainer.loader.close()
            trainer.config = run
            trainer.micro_batch, trainer.accumulation = run.batches(ranks.world)
            trainer.loader = build_loader(run, trainer.processor, ranks.rank, ranks.world)
        if arm == "cold":
            training_data.forget_cached(folder / "features")
        row = {
            "arm": arm,
            "variant": options.variant,
            "layers": config.llm.num_layers,
            "gpus": ranks.world,
        }
        row |= measure(
            trainer,
            options.steps,
            published=PUBLISHED_BATCH if arm == "published" else None,
            profiled=options.communication,
        )
        if ranks.first:
            _print(row, options.json)
    if trainer is not None:
        trainer.loader.close()


def chain(
    options: argparse.Namespace,
    config: HourLlavaConfig,
    folder: Path,
    ranks: Ranks,
    reporter: Reporter,
) -> None:
    """Stages 1, 2 and 3, each from the export of the one before, with checkpoint and export; the
    losses must fall.
    """
    vision = replace(config.vision, num_layers=min(4, config.vision.num_layers))
    config = replace(
        config,
        vision=vision,
        memaug_depth=2,
        llm=replace(config.llm, num_layers=options.layers or 4),
    )
    folder = options.folder / f"chain-{options.variant}-{config.llm.num_layers}"
    batch, count = 16, 16 * options.chain
    start = folder / "start"
    if ranks.local == 0:
        training_data.write_start(start, config, ranks.device)
        training_data.write_pictures(folder / "pictures", count, config)
    ranks.barrier()
    kinds = {
        1: [IMAGE_KIND],
        2: [TEXT_KIND, IMAGE_KIND, MULTI_IMAGE_KIND, SHORT_VIDEO_KIND],
        3: [LONG_VIDEO_KIND],
    }
    for stage in (1, 2, 3):
        data = folder / ("seen" if stage == 3 else "pictures")
        if stage == 3 and ranks.local == 0:
            _encode_long_videos(folder, start, count, config, ranks)
        ranks.barrier()
        rates = {"vision": 5e-5, "projector": 5e-4, "memaug": 5e-4, "llm": 2e-4}
        tuned = {1: ("memaug",), 2: tuple(rates), 3: ("projector", "memaug", "llm")}[stage]
        run: RunConfig = parse_run(
            {
                "variant": options.variant,
                "stage": stage,
                "start": str(start),
                "out": str(folder / f"stage{stage}"),
                "streams": _streams(data, *kinds[stage]),
                "features_root": str(data / "features"),
                "videos_root": str(data / "videos"),
                "global_batch": batch,
                "micro_batch": 4,
                "epochs": 1,
                "max_steps": options.chain,
                "rates": {name: rates[name] for name in tuned},
                "save_every": 10_000,
                "tensorboard": False,
                "compile": False,
            }
        )
        began = time.monotonic()
        result = train(run, ranks, reporter, build_loader)
        if ranks.first:
            row = {
                "arm": f"stage {stage}",
                "variant": options.variant,
                "layers": config.llm.num_layers,
            }
            names = ("steps", "samples", "first_loss", "last_loss", "skipped_steps", "dropped")
            row |= {name: result[name] for name in names} | {"seconds": time.monotonic() - began}
            _print(row, options.json)
            shutil.rmtree(folder / f"stage{stage}" / "state")  # gigabytes
        start = folder / f"stage{stage}" / "export"
        torch.cuda.empty_cache()


def _encode_long_videos(
    folder: Path, start: Path, count: int, config: HourLlavaConfig, ranks: Ranks
) -> None:
    from model.weights.vision_encoder import load_vision_encoder

    export_vision_encoder(start, folder / "encoder")
    encoder = load_vision_encoder(folder / "encoder").to(ranks.device)
    training_data.write_seen(folder / "seen", encoder, count, config)


def _data_of(arm: str) -> str:
    return "hour" if arm in ("hour", "cold") else "mixed"


def _streams(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    indexes = [f"{kind}_part0/index.json" for kind in kinds]
    return [{"name": "generated", "root": str(folder / "sharding"), "indexes": indexes}]


def _print(row: dict[str, Any], path: Path | None) -> None:
    shown = {
        key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()
    }
    print(json.dumps(shown), flush=True)
    if path is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(shown) + os.linesep)


if __name__ == "__main__":
    main()
