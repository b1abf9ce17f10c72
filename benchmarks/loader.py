"""The data loader at the mixture of stage 2: short videos in several codecs (128 frames each),
images, several images, text. Needs no GPU; what a GPU waits for is in `benchmarks.stages`.

    python -m benchmarks.loader                           # CPU seconds by kind, and rates
    python -m benchmarks.loader --workers 1 2 4 8 14      # of so many processes
    python -m benchmarks.loader --preset tiny

kinds     CPU seconds of one sample in one thread, by kind and by kind of file, beside the plain
          way: every frame decoded up to the last one that is wanted, Pillow for all resizing
where     what a video's seconds are spent on
workers   the project's loader with so many processes: samples a second once it runs, the share of
          their time in which the processes work, and the rate that one GPU needs at 45 and 60 % MFU
          (model operations of these very samples, 790 TFLOP/s)
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

import model.processor as processing
from benchmarks import stage_data, training_data
from benchmarks.feature_baseline import pillow
from model.config import PRESETS, HourLlavaConfig
from model.inputs import anyres_layout
from model.media.pictures import PictureMaker
from model.media.sampling import training_frame_indices
from model.media.timeline import read_timeline
from model.processor import Processor
from model.weights.loading import load_tokenizer
from training.data.loader import ShardLoader, build_loader
from training.data.sample_dataset import PreparedSample
from training.flops import flops, sizes_of
from training.formats.kinds import SHORT_VIDEO_KIND
from training.formats.sample import decode
from training.rates import CARDS
from training.recipes import recipe
from training.run_config import RunConfig, parse_run

PEAK = CARDS["H200"].products
MFUS = (0.45, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--variant", choices=sorted(PRESETS), default="3b")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten the videos")
    parser.add_argument("--workers", type=int, nargs="+", default=[max(1, cores - 2)])
    parser.add_argument("--no-plain", action="store_true", help="leave the plain way out")
    parser.add_argument("--folder", type=Path, default=Path("data/benchmark"))
    parser.add_argument("--json", type=Path, help="append the rows to this file, too")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    if options.preset:
        options.variant, options.samples, options.scale, options.workers = "tiny", 16, 0.1, [1]
    config = PRESETS[options.variant]
    start = training_data.start_folder(options.folder, config)
    training_data.write_description(start, config)
    videos = options.folder / f"{options.variant}-{config.llm.num_layers}-{options.scale}/videos"
    data = options.folder / f"loader-{options.variant}-{options.scale}-{options.samples}"
    tokenizer = load_tokenizer(start)
    kinds = stage_data.write_stage(
        data, videos, stage_data.STAGE_2, options.samples, tokenizer, options.scale
    )
    run = partial(run_of, options.variant, start, data, videos, kinds, options.samples)
    processor = Processor(config, tokenizer)
    torch.set_num_threads(1)
    for row in rows(run, processor, options):
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(line, flush=True)
        if options.json:
            with open(options.json, "a", encoding="utf-8") as file:
                file.write(line + os.linesep)


def rows(
    run: Callable[[int], RunConfig], processor: Processor, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    loader = build_loader(run(0), processor, 0, 1)
    work, spent = cpu_seconds(loader, processor, plain=not options.no_plain)
    yield from spent
    needed = {f"needed_at_{mfu:g}": PEAK * mfu * len(work) / sum(work) for mfu in MFUS}
    loader.close()
    for workers in options.workers:
        loader = build_loader(run(workers), processor, 0, 1)
        yield {"part": "workers", **rate(loader, options.samples), **needed}


def run_of(
    variant: str,
    start: Path,
    data: Path,
    videos: Path,
    kinds: list[str],
    samples: int,
    workers: int,
) -> RunConfig:
    stream = {
        "name": "mixed",
        "root": str(data / "sharding"),
        "indexes": [f"{kind}_part0/index.json" for kind in kinds],
    }
    return parse_run(
        {
            "variant": variant,
            "stage": 2,
            "start": str(start),
            "out": "",
            "streams": [stream],
            "videos_root": str(videos),
            "global_batch": samples,
            "epochs": 100,
            "workers": workers,
        }
    )


# -- one thread ------------------------------------------------------------------------------------


def cpu_seconds(
    loader: ShardLoader, processor: Processor, plain: bool
) -> tuple[list[float], list[dict[str, Any]]]:
    """Operations of each sample, and the rows about kinds of samples and parts of videos."""
    dataset, config = loader._dataset, processor.config
    ours: dict[str, list[float]] = defaultdict(list)
    others: dict[str, list[float]] = defaultdict(list)
    work: list[float] = []
    whole = 0.0
    with timed_parts() as parts:
        for number in loader.order.rows(0).reshape(-1).tolist():
            sample = decode(dataset.rows.read(number))
            name = sample.video or sample.kind
            began = time.process_time()
            prepared = dataset.prepare(0, number)
            taken = time.process_time() - began
            if not isinstance(prepared, PreparedSample):
                raise RuntimeError(f"{sample.id} is left out: {prepared}")
            ours[name].append(taken)
            whole += taken if sample.video else 0.0
            sizes = sizes_of(prepared.sample, config)
            work.append(flops(sizes, config, recipe(config.variant, 2).rates))
            # A file takes the same time each time, and the plain way long.
            if plain and name not in others:
                began = time.process_time()
                if sample.video:
                    plain_video(dataset._video_path(sample.video), config)
                else:
                    for image in sample.images:
                        plain_image(image, config, tiles=len(sample.images) == 1)
                others[name].append(time.process_time() - began)
    rows: list[dict[str, Any]] = []
    for name, times in sorted(ours.items()):
        row: dict[str, Any] = {"part": "kinds", "what": name, "samples": len(times)}
        row["cpu_s"] = sum(times) / len(times)
        if plain:
            row["plain_cpu_s"] = sum(others[name]) / len(others[name])
        rows.append(row)
    seconds = sum(map(sum, ours.values())) / sum(map(len, ours.values()))
    rows.append({"part": "kinds", "what": "all", "samples": len(work), "cpu_s": seconds})
    videos = sum(len(times) for name, times in ours.items() if name not in _KINDS)
    where = {name: time / whole for name, time in parts.items()}
    where["rest"] = 1 - sum(where.values())
    rows.append({"part": "where", "videos": videos, "cpu_s": whole / max(1, videos), **where})
    return work, rows


_KINDS = set(stage_data.STAGE_2) - {SHORT_VIDEO_KIND}


@contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """CPU seconds of the parts of reading a video; decoding is what is left of the second pass."""
    spent = {"first pass": 0.0, "decoding": 0.0, "colours": 0.0, "resizing": 0.0}
    held = processing.read_timeline, processing.read, PictureMaker.rgb, PictureMaker.__call__

    def clocked(name: str, call: Callable[..., Any], less: tuple[str, ...] = ()) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            before = sum(spent[other] for other in less)
            began = time.process_time()
            found = call(*arguments, **named)
            inside = sum(spent[other] for other in less) - before
            spent[name] += time.process_time() - began - inside
            return found

        return run

    processing.read_timeline = clocked("first pass", held[0])
    processing.read = clocked("decoding", held[1], ("colours", "resizing"))
    PictureMaker.rgb = clocked("colours", held[2])  # type: ignore[method-assign]
    PictureMaker.__call__ = clocked("resizing", held[3], ("colours",))  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        processing.read_timeline, processing.read = held[:2]
        PictureMaker.rgb, PictureMaker.__call__ = held[2:]  # type: ignore[method-assign]


def plain_video(path: str, config: HourLlavaConfig) -> np.ndarray:
    """The same frames, having decoded all up to the last one."""
    chosen = training_frame_indices(read_timeline(path), min_frames=config.memory.min_frames)
    wanted, side = set(chosen.tolist()), config.vision.image_size
    pictures = []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                pictures.append(pillow(frame.to_ndarray(format="rgb24"), side))
            if number == chosen[-1]:
                break
    return np.stack(pictures)


def plain_image(content: bytes, config: HourLlavaConfig, tiles: bool) -> list[np.ndarray]:
    """An image, and its tiles, by Pillow and numpy."""
    side = config.vision.image_size
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    found = [pillow(np.asarray(picture), side)]
    if tiles:
        layout = anyres_layout(picture.size, config)
        padded = Image.new("RGB", layout.resolution)
        scale = min(layout.resolution[0] / picture.width, layout.resolution[1] / picture.height)
        size = round(picture.width * scale), round(picture.height * scale)
        padded.paste(picture.resize(size, Image.Resampling.BICUBIC))
        for row in range(layout.rows):
            for column in range(layout.columns):
                box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
                found.append(pillow(np.asarray(padded.crop(box)), side))
    return found


# -- the loader ------------------------------------------------------------------------------------


def rate(loader: ShardLoader, samples: int) -> dict[str, Any]:
    """Samples a second of a loader that runs, over one epoch after what it prepares ahead."""
    workers = loader.workers
    batches = (batch for _ in range(3) for batch in loader)
    skipped = done = 0
    while skipped < workers.workers * workers.ahead + samples // 4:
        skipped += len(next(batches).samples)
    began, before = time.monotonic(), cpu_of(workers.pids())
    for batch in batches:
        done += len(batch.samples)
        if done >= samples:
            break
    seconds, worked = time.monotonic() - began, cpu_of(workers.pids()) - before
    batches.close()
    loader.close()
    return {
        "workers": workers.workers,
        "ahead": workers.ahead,
        "samples_per_s": done / seconds,
        "cpu_s_per_sample": worked / done,
        "workers_busy": worked / seconds / max(1, workers.workers),
    }


def cpu_of(pids: list[int]) -> float:
    """CPU seconds of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
