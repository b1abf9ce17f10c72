"""Grouping, shards and the loader, each beside a straightforward script that does the same work the
usual way.

    python -m benchmarks.shards grouping --rows 3300000
    python -m benchmarks.shards images --rows 2000
    python -m benchmarks.shards loader --workers 2
    python -m benchmarks.shards features --seconds 3600
    python -m benchmarks.shards locality
    python -m benchmarks.shards --preset tiny          # all of them, small, in under a minute

Every measurement runs in a process of its own, so that its peak memory is its own. Results are JSON
lines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from assets.deployment.settings import Annotations, Settings, Shards
from benchmarks.locality import locality_ours, locality_plain
from training.formats.kinds import SINGLE_IMAGE_KIND
from training.formats.storage import Storage

ROWS_PER_VIDEO = 118  # 3.3 million rows about 28,000 videos
DURATION_S = 1000.0
DISTINCT_IMAGES = 2000
LLAVA_ANNOTATION = "sharegpt4v-coco-50k.json"


# --- grouping
# -----------------------------------------------------------------------------------------------


def make_rows(folder: Path, rows: int) -> None:
    """Question-answer rows of about 500 bytes, in random video order, as Parquet and as one JSON
    array.
    """
    rng = np.random.default_rng(0)
    words = np.array([f"word{number}" for number in range(5000)])
    videos = max(3, rows // ROWS_PER_VIDEO)
    writer = None
    with open(folder / "rows.json", "w") as plain:
        plain.write("[")
        for start in range(0, rows, 50_000):
            size = min(50_000, rows - start)
            video = rng.integers(0, videos, size)
            text = [" ".join(row) for row in words[rng.integers(0, 5000, (size, 60))]]
            columns = {
                "part": np.zeros(size, np.int32),
                "video": [f"panda/v{number:06d}" for number in video],
                "question_id": [f"q{start + number}" for number in range(size)],
                "question": [line[:130] for line in text],
                "answer": [line[130:] for line in text],
                "question_type": ["oe"] * size,
                "url": [f"https://www.youtube.com/watch?v={number:011d}" for number in video],
            }
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(
                folder / "annotations.parquet", table.schema, compression="zstd"
            )
            writer.write_table(table)
            for number, row in enumerate(table.drop_columns(["part"]).to_pylist()):
                plain.write(("," if start or number else "") + "\n" + json.dumps(row))
        plain.write("\n]\n")
    assert writer is not None
    writer.close()


def grouping_ours(folder: Path, rows: int) -> dict[str, Any]:
    from assets.conversations.grouping import group_rows

    videos = {
        f"panda/v{number:06d}": DURATION_S for number in range(max(3, rows // ROWS_PER_VIDEO))
    }
    report = group_rows(
        Storage(str(folder)), "annotations.parquet", 0, videos, seed="bench", turns=5, log=_quiet
    )
    return report.counts


def grouping_plain(folder: Path, rows: int) -> dict[str, Any]:
    """Everything in memory, the json module, the global random generator."""
    with open(folder / "rows.json") as file:
        data = json.load(file)
    groups = defaultdict(list)
    for row in data:
        if row["question"].strip() and row["answer"].strip():
            groups[row["video"]].append(row)
    samples = []
    for video, found in groups.items():
        random.shuffle(found)
        for number, start in enumerate(range(0, len(found), 5)):
            turns: list[dict[str, str]] = []
            for row in found[start : start + 5]:
                turns.append(
                    {"from": "human", "value": ("" if turns else "<image>\n") + row["question"]}
                )
                turns.append({"from": "gpt", "value": row["answer"]})
            samples.append({"id": f"{video}_{number}", "video": video, "conversations": turns})
    with open(folder / "plain.json", "w") as file:
        json.dump(samples, file)
    return {"samples": len(samples)}


# --- image shards
# -----------------------------------------------------------------------------------------------


def make_images(folder: Path, rows: int, scale: int = 4) -> None:
    """Photographs as far as compressibility goes: `scale` times 160 x 120 and larger, one in ten
    a PNG.

    Rows beyond the first `DISTINCT_IMAGES` have links to these as their images.
    """
    images = folder / "LLaVA-OneVision/images"
    images.mkdir(parents=True)
    (folder / "LLaVA-OneVision/annotations").mkdir()
    rng = np.random.default_rng(0)
    annotation: list[dict[str, Any]] = []
    for number in range(rows):
        name = f"{number:06d}.{'png' if number % 10 == 0 else 'jpg'}"
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "Noise. " * 40},
        ]
        annotation.append({"id": f"{number:06d}", "image": name, "conversations": turns})
        if number >= DISTINCT_IMAGES:
            (images / name).hardlink_to(images / annotation[number % DISTINCT_IMAGES]["image"])
            continue
        width, height = scale * (160 + 8 * (number % 16)), scale * (120 + 8 * (number % 9))
        coarse = Image.fromarray(
            rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        )
        grain = rng.integers(-12, 12, (height, width, 1), dtype=np.int16)
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(
            images / name, quality=90
        )
    (folder / "LLaVA-OneVision/annotations" / LLAVA_ANNOTATION).write_text(json.dumps(annotation))
    (folder / "mixtures.csv").write_text(
        "kind,collection,annotation,fraction\n"
        f"{SINGLE_IMAGE_KIND},LLaVA-OneVision,{LLAVA_ANNOTATION},1\n"
    )


def images_ours(folder: Path, rows: int, workers: int) -> dict[str, Any]:
    """One part with all rows in it, workers started and stopped included."""
    from assets.collections.mixtures import read_mixture
    from assets.shards.planning import plan_part
    from assets.shards.tasks import LlavaRows
    from assets.shards.workers import worker_pool
    from assets.shards.writer import halves, write_part
    from training.formats.hashing import hash_file

    storage, shards = Storage(str(folder)), Shards(workers=workers)
    with worker_pool(workers) as pool:
        plan = plan_part(storage, read_mixture(folder / "mixtures.csv"), 0, 1, shards.seed, pool)
        work = halves(
            plan.rows.places,
            shards.rows_per_shard,
            lambda places: LlavaRows(plan.rows.names, places),
        )
        inputs = {name: hash_file(storage.local(name)) for name in plan.rows.names}
        report = write_part(storage, SINGLE_IMAGE_KIND, 0, work, inputs, shards, _quiet, pool=pool)
    return {
        "samples": report.counts["samples"],
        "MB": report.bytes // 1_000_000,
        "workers": workers,
    }


def images_plain(folder: Path, rows: int) -> dict[str, Any]:
    """The whole list in memory, every image decoded and encoded again, one process."""
    from streaming import MDSWriter

    with open(folder / "LLaVA-OneVision/annotations" / LLAVA_ANNOTATION) as file:
        data = json.load(file)
    random.shuffle(data)
    with MDSWriter(
        columns={"image": "jpeg", "conversations": "json"},
        out=str(folder / "plain"),
        size_limit=1 << 30,
    ) as out:
        for row in data:
            image = Image.open(folder / "LLaVA-OneVision/images" / row["image"]).convert("RGB")
            out.write({"image": image, "conversations": row["conversations"]})
    return {"samples": len(data), "workers": 1}


# --- loader
# -----------------------------------------------------------------------------------------------


def loader_ours(folder: Path, rows: int, workers: int, step_s: float = 0.1) -> dict[str, Any]:
    """Waiting of a consumer that takes `step_s` for each step, after the first step (workers
    start then).
    """
    from model.config import PRESETS
    from model.processor import Processor
    from model.weights.loading import load_tokenizer
    from model.weights.tiny import build_tiny
    from training.data.loader import build_loader
    from training.run_config import RunConfig, StreamConfig

    build_tiny(folder / "tiny")
    processor = Processor(PRESETS["tiny"], load_tokenizer(folder / "tiny"))
    indexes = (f"{SINGLE_IMAGE_KIND}_part0/index.json",)
    stream = StreamConfig("images", str(folder / "VideoMarathon/sharding"), indexes)
    loader = build_loader(RunConfig("tiny", 1, "", "", (stream,), workers=workers), processor, 0, 1)
    batches, waited, steps = iter(loader), [], 0
    while True:
        began = time.perf_counter()
        if next(batches, None) is None:
            break
        waited.append(time.perf_counter() - began)
        steps += 1
        time.sleep(step_s)
    loader.close()
    after_first = waited[1:]
    return {
        "steps": steps,
        "samples a step": loader.micro,
        "waited for the first step s": round(waited[0], 2),
        "longest waits after it s": [round(wait, 3) for wait in sorted(after_first)[-3:]],
        "share of time waited": round(
            sum(after_first) / (sum(after_first) + step_s * len(after_first)), 4
        ),
    }


# --- features
# -----------------------------------------------------------------------------------------------


def make_features(folder: Path, seconds: int, videos: int = 4) -> None:
    """Feature files of the real shape (64 tokens of 1152 a frame) and shards that name them."""
    import torch

    from assets.conversations.grouping import conversations_name
    from assets.conversations.samples import SCHEMA
    from assets.shards.writer import write_long_video_part
    from training.formats.feature_file import write_features

    (folder / "features/panda").mkdir(parents=True)
    frames = torch.randn(seconds, 64, 1152, dtype=torch.bfloat16)
    for number in range(videos):
        path = folder / f"features/panda/v{number}.safetensors"
        write_features(
            path, frames, np.arange(seconds, dtype=np.float32), {"duration": str(float(seconds))}
        )
    turns = [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "Nobody."}]
    columns = {
        "id": [f"panda/v{number % videos}#{number}" for number in range(4 * videos)],
        "video": [f"panda/v{number % videos}" for number in range(4 * videos)],
        "source": ["panda"] * 4 * videos,
        "duration": [float(seconds)] * 4 * videos,
        "conversations": [json.dumps(turns)] * 4 * videos,
        "question_ids": [["q"]] * 4 * videos,
    }
    target = folder / conversations_name(0)
    target.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns, SCHEMA), target)
    settings = Settings(root=str(folder), annotations=Annotations(paths=["unused"]), sources={})
    write_long_video_part(Storage(str(folder)), settings, 0, _quiet)


def features_ours(folder: Path, seconds: int, workers: int = 2) -> dict[str, Any]:
    """Bytes a second that reach the training process through the loader, second epoch (page cache
    warm).
    """
    from model.config import PRESETS
    from model.processor import Processor
    from model.weights.loading import load_tokenizer
    from model.weights.tiny import build_tiny
    from training.data.loader import build_loader
    from training.run_config import RunConfig, StreamConfig

    build_tiny(folder / "tiny")
    config = PRESETS["3b"]
    processor = Processor(config, load_tokenizer(folder / "tiny"))
    stream = StreamConfig(
        "long", str(folder / "VideoMarathon/sharding"), ("videomarathon_video_part0/index.json",)
    )
    run = RunConfig(
        "3b",
        3,
        "",
        "",
        (stream,),
        str(folder / "features"),
        global_batch=4,
        micro_batch=1,
        workers=workers,
        max_length=1 << 20,
    )
    loader = build_loader(run, processor, 0, 1)
    for _ in loader:
        pass
    began, size = time.perf_counter(), 0
    for batch in loader:
        for sample in batch.samples:
            features = sample.visuals[0].features
            assert features is not None
            size += features.numel() * features.element_size()
    spent = time.perf_counter() - began
    loader.close()
    return {
        "GB": round(size / 1e9, 2),
        "GB/s": round(size / 1e9 / spent, 2),
        "dropped": loader.report(),
    }


def features_plain(folder: Path, seconds: int, workers: int = 2) -> dict[str, Any]:
    """Whole tensors, one file a sample, through the worker queue."""
    import torch
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    paths = sorted((folder / "features/panda").glob("*.safetensors")) * 4
    files = _Files(paths)
    loader: DataLoader[Any] = DataLoader(files, None, num_workers=workers)  # type: ignore[arg-type]
    for _ in loader:
        pass
    began, size = time.perf_counter(), 0
    target = torch.empty_like(load_file(paths[0])["features"])
    for features in loader:
        target.copy_(features)  # as the other side: memory of the training process
        size += features.numel() * features.element_size()
    return {
        "GB": round(size / 1e9, 2),
        "GB/s": round(size / 1e9 / (time.perf_counter() - began), 2),
    }


class _Files:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> Any:
        from safetensors.torch import load_file

        return load_file(self.paths[place])["features"].clone()


# --- running
# -----------------------------------------------------------------------------------------------

WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "grouping-ours": grouping_ours,
    "grouping-plain": grouping_plain,
    "images-ours": images_ours,
    "images-plain": images_plain,
    "loader-ours": loader_ours,
    "features-ours": features_ours,
    "features-plain": features_plain,
    "locality-ours": locality_ours,
    "locality-plain": locality_plain,
}


def _quiet(_: str) -> None:
    """A log that nobody reads."""


def _measured(name: str, folder: Path, *arguments: int) -> None:
    """Run one piece of work in a fresh process and print what it took."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.shards",
        "--work",
        name,
        str(folder),
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    print(done.stdout.strip().splitlines()[-1], flush=True)


def _work(name: str, folder: Path, arguments: list[int]) -> None:
    began = time.perf_counter()
    result = WORK[name](folder, *arguments)
    spent = time.perf_counter() - began
    # Its processes' CPU time counts once it has ended.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    own, children = (
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    memory = {
        "cpu s": round(sum(os.times()[:4]), 2),
        "peak MB": own // 1024,
        "largest child MB": children // 1024,
    }
    print(json.dumps({"work": name, "s": round(spent, 2), **memory, **result}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=sorted(MEASURES), help="what to measure; everything by default"
    )
    parser.add_argument(
        "--preset",
        choices=("tiny", "full"),
        default="full",
        help="tiny: small inputs, for a quick look",
    )
    parser.add_argument("--rows", type=int, help="rows to group, or images to write")
    parser.add_argument("--seconds", type=int, help="length of the videos whose features are read")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    options = parser.parse_args()
    for what in [options.what] if options.what else sorted(MEASURES):
        size = (TINY if options.preset == "tiny" else FULL)[what]
        size = (options.seconds if what == "features" else options.rows) or size
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            MEASURES[what](Path(name), size, options.workers)


def measure_grouping(folder: Path, rows: int, workers: int) -> None:
    make_rows(folder, rows)
    _measured("grouping-ours", folder, rows)
    _measured("grouping-plain", folder, rows)


def measure_images(folder: Path, rows: int, workers: int) -> None:
    make_images(folder, rows)
    _measured("images-ours", folder, rows, workers)
    _measured("images-plain", folder, rows)


def measure_loader(folder: Path, rows: int, workers: int) -> None:
    make_images(folder, rows, scale=1)  # what the tiny variant looks at
    _measured("images-ours", folder, rows, 1)
    _measured("loader-ours", folder, rows, workers)


def measure_features(folder: Path, seconds: int, workers: int) -> None:
    make_features(folder, seconds)
    _measured("features-ours", folder, seconds, workers)
    _measured("features-plain", folder, seconds, workers)


def measure_locality(folder: Path, videos: int, workers: int) -> None:
    _measured("locality-ours", folder, videos)
    _measured("locality-plain", folder, videos)


MEASURES = {
    "grouping": measure_grouping,
    "images": measure_images,
    "loader": measure_loader,
    "features": measure_features,
    "locality": measure_locality,
}
FULL = {"grouping": 3_300_000, "images": 4000, "loader": 2000, "features": 3600, "locality": 28_000}
TINY = {"grouping": 20_000, "images": 100, "loader": 100, "features": 60, "locality": 1_000}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        _work(sys.argv[2], Path(sys.argv[3]), [int(argument) for argument in sys.argv[4:]])
    else:
        main()
