"""Training and feature extraction on 1, 2, 4 and 8 GPUs of one machine, and a checkpoint taken to
fewer of them.

    python -m benchmarks.scaling                      3B and 7B, on as many GPUs as there are
    python -m benchmarks.scaling --counts 1 2 --variants 3b --only training
    python -m benchmarks.scaling --preset tiny        CPU ranks over gloo: a quick look that it runs

Efficiency is the rate of n GPUs over n times the rate of the fewest measured. Every measurement is
a process (or torchrun) of its own on a prefix of the machine's GPUs. The work per GPU stays the
same: the global batch grows with the ranks. Extraction gets the same videos on all counts and one
host's cores to decode them, with the video engines of its GPUs where PyNvVideoCodec is installed;
`settled` is its rate without the start and the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from assets.deployment.settings import Features
from assets.features.decoder_pool import choose_backends
from benchmarks import training_data
from benchmarks.feature_baseline import make_encoder, make_videos
from benchmarks.features import end_to_end
from model.config import PRESETS
from model.weights.loading import load_tokenizer
from training.formats.kinds import LONG_VIDEO_KIND

MEASURES = ("training", "extraction", "resume")
STEPS, TAKEN_OVER_AFTER = 4, 2  # of the run that is resumed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts", type=int, nargs="+", help="numbers of GPUs (default: 1, 2, 4, 8 as there are)"
    )
    parser.add_argument("--variants", nargs="+", choices=sorted(PRESETS), default=["3b", "7b"])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--steps", type=int, default=4, help="training steps that are timed")
    parser.add_argument(
        "--minutes",
        type=float,
        default=15,
        help="length of the videos whose features are extracted",
    )
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--out", type=Path, help="append the rows to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    parser.add_argument("--extract", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.extract:
        print(json.dumps(extract_here(options.minutes, tiny=bool(options.preset))), flush=True)
        return
    if options.preset:
        options.variants, options.steps, options.minutes = ["tiny"], 1, 0.2
    gpus = torch.cuda.device_count()
    options.counts = options.counts or [n for n in (1, 2, 4, 8) if n <= (gpus or 2)]
    if gpus and max(options.counts) > gpus:
        parser.error(f"--counts asks for {max(options.counts)} GPUs, this machine has {gpus}")
    rows: list[dict[str, Any]] = []
    for row in measure(options):
        rows.append(row)
        line = json.dumps(
            {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in row.items()
            }
        )
        print(line, flush=True)
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    print(table(rows), flush=True)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows, one after another."""
    for variant in options.variants if "training" in options.only else ():
        yield from with_efficiency([], (train_on(n, variant, options) for n in options.counts))
    if "extraction" in options.only:
        # On a CPU the encoder is one process whatever the count.
        counts = options.counts if torch.cuda.is_available() else [1]
        yield from with_efficiency([], (extract_on(n, options) for n in counts))
    if "resume" in options.only and len(options.counts) > 1:
        many = max(options.counts)
        yield resume(options.variants[0], many, 2 if many > 2 else 1, options)


def with_efficiency(
    seen: list[dict[str, Any]], rows: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Each row with its rate per GPU over that of the first."""
    for row in rows:
        seen.append(row)
        first = seen[0]
        yield {**row, "efficiency": row["rate"] / row["gpus"] / (first["rate"] / first["gpus"])}


def train_on(count: int, variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Stage-3 steps over hour-long samples, the real loop and loader."""
    tiny = (
        ["--preset", "tiny"]
        if options.preset
        else ["--variant", variant, "--steps", str(options.steps)]
    )
    # 7B holds its optimizer's state and an hour of activations only where several GPUs share the
    # state.
    samples = ["--samples", "8" if variant == "3b" else "4"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        arguments = [
            "--arms",
            "hour",
            "--communication",
            "--folder",
            str(options.folder),
            "--json",
            str(path),
        ]
        torchrun(count, "benchmarks.train", [*arguments, *tiny, *samples])
        row = json.loads(path.read_text())
    names = (
        "mfu",
        "mfu_datasheet",
        "s_per_step",
        "data_wait",
        "peak_gib",
        "communication",
        "exposed",
    )
    return {
        "what": f"train {variant}",
        "gpus": count,
        "rate": row["samples_per_s"],
        **{n: row[n] for n in names if n in row},
    }


def extract_on(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """From video files to feature files on the first `count` GPUs, with all of the host's cores
    decoding.
    """
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--extract",
        "--minutes",
        str(options.minutes),
    ]
    command += ["--preset", "tiny"] if options.preset else []
    visible = (
        {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count)))}
        if torch.cuda.is_available()
        else {}
    )
    done = subprocess.run(
        command, env={**os.environ, **visible}, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return {"what": "extract", "gpus": count, **found}


def extract_here(minutes: float, tiny: bool) -> dict[str, Any]:
    config = PRESETS["tiny" if tiny else "7b"]
    workers = max(1, (os.cpu_count() or 1) - 2)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = make_videos(root, 2 if tiny else 4 * workers, minutes)
        encoder = make_encoder(root / "encoder", config)
        settings = Features(decode_workers=workers)
        backends = choose_backends(settings, torch.cuda.device_count(), print)
        found = end_to_end(root, videos, encoder, config, backends, 16 if tiny else 512)
    names = (
        "settled",
        "gpu_busy",
        "encoder_while_busy",
        "decoders_busy",
        "nvdec_share",
        "buffer_filled",
        "cpu_cores_used",
        "decoders",
        "seconds",
        "start_up_s",
    )
    return {
        "rate": found["frames_per_second"],
        "peak_gib": found["gpu_memory_gib"],
        **{n: found[n] for n in names},
    }


def resume(variant: str, many: int, few: int, options: argparse.Namespace) -> dict[str, Any]:
    """A run of `many` ranks, taken over in its middle by `few`; compares their losses from
    there on.
    """
    folder = options.folder / f"resume-{variant}"
    shutil.rmtree(folder, ignore_errors=True)
    config = PRESETS[variant]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training_data.write_start(folder / "start", config, device)
    tokenizer = load_tokenizer(folder / "start")
    batch = 2 * many
    seconds = [120 if options.preset else 600] * batch
    training_data.write_long(folder, folder, seconds, config, tokenizer, device)
    stream = {
        "name": "generated",
        "root": str(folder / "sharding"),
        "indexes": [f"{LONG_VIDEO_KIND}_part0/index.json"],
    }
    run = {
        "variant": variant,
        "stage": 3,
        "start": str(folder / "start"),
        "out": str(folder / "out"),
        "streams": [stream],
        "features_root": str(folder / "features"),
        "global_batch": batch,
        "micro_batch": 2,
        "epochs": STEPS,
        "max_steps": STEPS,
        "save_every": TAKEN_OVER_AFTER,
        "tensorboard": False,
        "compile": False,
    }
    straight = losses(many, run, folder / "run.json")
    # The same run as if it had been stopped after its first checkpoint.
    (folder / "out" / "result.json").unlink()
    shutil.rmtree(folder / "out" / "state" / f"step-{STEPS}")
    resumed = losses(few, run, folder / "run.json")
    shutil.rmtree(folder)
    apart = max(abs(a - b) / abs(a) for a, b in zip(straight, resumed, strict=True))
    return {
        "what": f"resume {variant}",
        "gpus": many,
        "on": few,
        "losses": straight,
        "largest_difference": apart,
    }


def losses(count: int, run: dict[str, Any], path: Path) -> list[float]:
    path.write_text(json.dumps(run))
    torchrun(count, "training.train", [str(path)])
    return [
        json.loads(line)["loss"]
        for line in (Path(run["out"]) / "metrics.jsonl").read_text().splitlines()
    ]


def torchrun(count: int, module: str, arguments: list[str]) -> None:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={count}",
    ]
    subprocess.run([*launcher, "-m", module, *arguments], check=True, stdout=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    """The rates as Markdown."""
    shares = (
        "efficiency",
        "mfu",
        "mfu_datasheet",
        "communication",
        "exposed",
        "data_wait",
        "gpu_busy",
        "decoders_busy",
    )
    lines = [
        "| | GPUs | rate/s | " + " | ".join(shares) + " | peak GiB |",
        "|---" * (len(shares) + 4) + "|",
    ]
    for row in rows:
        if "rate" in row:
            cells = [f"{100 * row[name]:.1f} %" if name in row else "" for name in shares]
            lines.append(
                f"| {row['what']} | {row['gpus']} | {row['rate']:.3f} | {' | '.join(cells)} | "
                f"{row['peak_gib']:.1f} |"
            )
        else:
            lines.append(
                f"\n{row['what']}: {row['gpus']} ranks, then {row['on']}: losses differ by at most "
                f"{row['largest_difference']:.1e} of their value"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
