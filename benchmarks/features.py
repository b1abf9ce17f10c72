"""Feature extraction against the plain way of doing it, side by side in one run.

    python -m benchmarks.features --preset siglip --out results.json  # one GPU: four minutes
    python -m benchmarks.features --preset tiny                       # CPU, to see that it runs

The plain way: decode every frame one after the other, resize with Pillow, run the fp32 tower with
eager attention on one chunk of 128 frames at a time, all in one process. Videos are 640x360 H.264
at 30 frames a second, encoder weights are random: neither changes what is computed. All rates are
in sampled frames (one for each second of video) a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Features
from assets.features.decoder_pool import NVDEC, PYAV
from assets.features.extract import extract
from assets.features.options import ExtractionOptions
from assets.features.workers.backends import open_pyav
from assets.features.workers.nvdec import nvdec_installed, open_nvdec
from benchmarks.feature_baseline import FPS, baseline, file_size, make_encoder, make_videos, pillow
from benchmarks.feature_tower import tower_rates, tower_variants
from benchmarks.usage import Usage
from model.config import PRESETS, HourLlavaConfig
from model.media.resize import resize_frame
from training.formats.storage import Storage


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["tiny", "siglip"], default="tiny")
    parser.add_argument("--videos", type=int, help="how many (default 3 or 32)")
    parser.add_argument("--minutes", type=float, help="length of each (default 0.5 or 15)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        help="batch sizes of the tower to try; the last is then used",
    )
    parser.add_argument(
        "--variants", action="store_true", help="also measure other ways to run the tower"
    )
    parser.add_argument("--out", type=Path, help="results as JSON")
    args = parser.parse_args()
    large = args.preset == "siglip"
    config = PRESETS["7b" if large else "tiny"]
    results: dict[str, Any] = {"machine": machine(), "preset": args.preset}

    def note(name: str, value: Any) -> None:
        results[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = make_videos(
            root, args.videos or (16 if large else 3), args.minutes or (15 if large else 0.5)
        )
        encoder = make_encoder(root / "encoder", config)
        seconds = sum(video.duration for video in videos)
        note(
            "videos",
            {
                "count": len(videos),
                "hours": seconds / 3600,
                "bytes": sum(map(file_size(root), videos)),
            },
        )
        note("baseline", baseline(root, videos, encoder, config, chunks=2 if large else 1))
        batches = args.batches or ([256, 512] if large else [16])
        note("tower", tower_rates(encoder, config, batches))
        ours = end_to_end(root, videos, encoder, config, [PYAV] * args.workers, batches[-1])
        ours["ratio_to_baseline"] = ours["frames_per_second"] / results["baseline"]["end_to_end"]
        note("end_to_end", ours)
        note("decode", decode_rates(root, videos, args.workers, config.vision.image_size))
        print(table(results), flush=True)
        if nvdec_installed() and torch.cuda.is_available():
            note("nvdec", nvdec_rates(root, videos, config.vision.image_size))
            mixed = [NVDEC] * 5 + [PYAV] * max(1, args.workers - 5)
            note("end_to_end_nvdec", end_to_end(root, videos, encoder, config, mixed, batches[-1]))
        if args.variants:
            note("tower_variants", tower_variants(encoder, config, batches[0]))


def machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu_cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "av": av.__version__,
        "python": platform.python_version(),
    }


# --- Parts of our way ----------------------------------------------------------------------------


def decode_rates(root: Path, videos: list[PresentVideo], workers: int, side: int) -> dict[str, Any]:
    """Decoders alone, pictures resized and thrown away: one process, and as many as the extraction
    uses.
    """
    paths = [str(root / video.rel) for video in videos]
    rates: dict[str, Any] = {"resize_ms": resize_ms(side), "pillow_ms": resize_ms(side, pillow)}
    with multiprocessing.get_context("spawn").Pool(workers, warm) as pool:
        pool.map(decode, [("pyav", path, side, 5) for path in paths[:1] * workers], chunksize=1)
        frames, busy, _ = decode(("pyav", paths[0], side, 240))
        rates["pyav_1"] = frames / busy
        rates["pyav_all"] = spread(pool, "pyav", paths, side)
        if importlib.util.find_spec("decord"):
            frames, busy, _ = decode(("decord", paths[0], side, 240))
            rates["decord_1"] = frames / busy
            rates["decord_all"] = spread(pool, "decord", paths, side)
    return rates


def nvdec_rates(root: Path, videos: list[PresentVideo], side: int) -> dict[str, Any]:
    """The GPU's decoder alone, and whether its pictures are those of the CPU."""
    path = str(root / videos[0].rel)
    rates: dict[str, Any] = {}
    for processes in (1, 7):
        with multiprocessing.get_context("spawn").Pool(processes, warm) as pool:
            pool.map(decode, [("nvdec", path, side, 5)] * processes, chunksize=1)
            rates[f"processes {processes}"] = spread(pool, "nvdec", [path] * processes, side, 360)
    pairs = zip(
        range(120), pictures("pyav", path, side), pictures("nvdec", path, side), strict=False
    )
    rates["largest_difference"] = max(
        int(np.abs(a.astype(np.int16) - b).max()) for _, a, b in pairs
    )
    return rates


def warm() -> None:
    """Start a benchmark process: as in extraction, one thread each."""
    torch.set_num_threads(1)


def spread(pool: Any, backend: str, paths: list[str], side: int, frames: int = 120) -> float:
    """Frames a second of all processes of a pool together."""
    started = time.perf_counter()
    done = pool.map(decode, [(backend, path, side, frames) for path in paths], chunksize=1)
    return sum(frames for frames, _, _ in done) / (time.perf_counter() - started)


def decode(job: tuple[str, str, int, int]) -> tuple[int, float, int]:
    """The first pictures of a file: how many, in how many seconds, and a checksum."""
    backend, path, side, limit = job
    started = time.perf_counter()
    count = checksum = 0
    for picture in pictures(backend, path, side):
        count, checksum = count + 1, checksum ^ hash(picture.tobytes()[::1013])
        if count == limit:
            break
    return count, time.perf_counter() - started, checksum


def pictures(backend: str, path: str, side: int) -> Iterator[np.ndarray]:
    """The pictures of a file as a backend gives them, one a second; decord without our code."""
    if backend == "decord":
        import decord

        reader = decord.VideoReader(path, num_threads=1)
        for start in range(0, len(reader), 16 * FPS):
            batch = reader.get_batch(
                range(start, min(len(reader), start + 16 * FPS), FPS)
            ).asnumpy()
            reader.seek(0)
            yield from (resize_frame(picture, side) for picture in batch)
        return
    opener = {"pyav": open_pyav, "nvdec": open_nvdec}[backend]
    with opener(path, size=side, min_frames=128, max_frames=1 << 20, max_pixels=1 << 24) as video:
        for _, _, picture in video:
            yield picture


def resize_ms(side: int, how: Callable[[np.ndarray, int], np.ndarray] = resize_frame) -> float:
    """Milliseconds of one thread to resize a picture."""
    picture = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    how(picture, side)
    started = time.perf_counter()
    for _ in range(50):
        how(picture, side)
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) * 20


# --- All of our way ------------------------------------------------------------------------------


def end_to_end(
    root: Path,
    videos: list[PresentVideo],
    encoder: Path,
    config: HourLlavaConfig,
    backends: list[str],
    batch: int,
) -> dict[str, Any]:
    """From files on disk to feature files on disk, with the processes and the code of the real
    thing.
    """
    settings = Features(decode_workers=len(backends), batch_size=batch)
    memory = config.memory
    options = ExtractionOptions(settings, memory.pooled_side, memory.min_frames, ("auto",))
    storage = Storage(str(root))
    storage.remove("VideoMarathon/features")
    with Usage() as usage:
        report = extract(storage, options, config.variant, videos, encoder, print, backends)
    return {
        "frames_per_second": report.frames_per_second,
        "frames": report.new_frames,
        "seconds": report.seconds,
        "start_up_s": report.facts["start_up_s"],
        "video_hours_an_hour": report.hours * 3600 / report.seconds,
        "encoder_while_busy": report.facts["encoder_fps"],
        "gpu_busy": report.facts["encoder_busy"],
        "decoders_busy": report.facts["decode_busy"],
        "decode_cpu_ms": report.facts["decode_cpu_ms"],
        "buffer_filled": report.facts["buffer_filled"],
        "cpu_cores_used": usage.cores(report.seconds),
        "host_memory_gib": usage.peak / 2**30,
        "gpu_memory_gib": report.facts["device_peak_bytes"] / 2**30,
        "written_mb_per_s": report.bytes / 1e6 / report.seconds,
        "batch": batch,
        "decoders": len(backends),
        "quarantined": report.quarantine,
    }


def table(results: dict[str, Any]) -> str:
    """The plain way beside ours, in Markdown."""
    base, ours = results["baseline"], results["end_to_end"]
    rows = [
        ("decode, one process", base["decode"], results["decode"]["pyav_1"]),
        ("preprocess, one process", base["preprocess"], 1000 / results["decode"]["resize_ms"]),
        ("tower", base["tower"], max(results["tower"].values())),
        ("end to end", base["end_to_end"], ours["frames_per_second"]),
    ]
    lines = [
        f"| {'frames a second':24} | {'plain':>8} | {'ours':>8} | ratio |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name:24} | {a:8.1f} | {b:8.1f} | {b / a:5.1f} |" for name, a, b in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
