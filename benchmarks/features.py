"""Feature extraction against the plain way of doing it, side by side in one run.

    python -m benchmarks.features --preset siglip --out results.json  # one GPU: eight minutes
    python -m benchmarks.features --preset tiny                       # CPU, to see that it runs

The plain way: decode every frame one after the other, resize with Pillow, run the fp32 tower with
eager attention on one chunk of 128 frames at a time, all in one process. Videos are 640x360 H.264
at 30 frames a second, encoder weights are random: neither changes what is computed. All rates are
in sampled frames (one for each second of video) a second.

End to end is measured three times: with the decoder as it was before packets were sorted out, with
today's on the CPU alone, and with NVDEC beside it where PyNvVideoCodec is installed. What is left
when `--budget` seconds are over is left out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from assets.annotations.catalogue import PresentVideo
from assets.deployment.settings import Features
from assets.features.decoder_pool import NVDEC, NVDEC_PROCESSES, PYAV
from assets.features.extract import extract
from assets.features.options import ExtractionOptions
from assets.features.workers.nvdec import nvdec_installed, open_nvdec
from benchmarks.feature_baseline import (
    baseline,
    file_size,
    make_encoder,
    make_videos,
    pillow,
    repeat,
)
from benchmarks.feature_decoding import OPTIONS, largest_difference, pictures, side_by_side
from benchmarks.feature_tower import tower_rates, tower_variants
from benchmarks.usage import Usage
from model.config import PRESETS, HourLlavaConfig
from model.media.resize import resize_frame
from training.formats import layout
from training.formats.feature_file import FeatureFile
from training.formats.storage import Storage

PARTS = ["tower", "nvdec", "cpu", "mixed", "before", "decoders", "plain"]
BEFORE = "benchmarks.feature_before:open_before"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=["tiny", "siglip"], default="tiny")
    parser.add_argument("--videos", type=int, help="how many (default 3 or 28)")
    parser.add_argument("--minutes", type=float, help="length of each (default 0.5 or 8)")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[max(1, (os.cpu_count() or 1) - 2)],
        help="decoding processes on the CPU to try",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument(
        "--nvdec",
        type=int,
        nargs="+",
        default=[NVDEC_PROCESSES],
        help="processes on the GPU to try",
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        help="batch sizes of the tower to try; the last is then used",
    )
    parser.add_argument(
        "--variants", action="store_true", help="also measure other ways to run the tower"
    )
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="results as JSON")
    args = parser.parse_args()
    started = time.monotonic()
    large = args.preset == "siglip"
    config = PRESETS["7b" if large else "tiny"]
    side = config.vision.image_size
    results: dict[str, Any] = {"machine": machine(), "preset": args.preset}

    def note(name: str, work: Callable[[], Any]) -> Any:
        """Do a piece of work and keep its result. One that fails does not cost the others'."""
        passed = time.monotonic() - started
        if passed > args.budget:
            print(f"{name}: left out after {passed:.0f} s", flush=True)
            return None
        try:
            results[name] = work()
        except Exception:
            traceback.print_exc()
            return None
        spent = time.monotonic() - started - passed
        print(f"[{passed:.0f} s, took {spent:.0f}] {name}: {json.dumps(results[name])}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1))
        return results[name]

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        videos = make_videos(
            root, args.videos or (28 if large else 3), args.minutes or (8 if large else 0.5)
        )
        encoder = make_encoder(root / "encoder", config)
        batches = args.batches or ([256, 512] if large else [16])
        seconds = sum(video.duration for video in videos)
        sizes = sum(map(file_size(root), videos))
        note("videos", lambda: {"count": len(videos), "hours": seconds / 3600, "bytes": sizes})

        def whole(backends: list[str]) -> dict[str, Any]:
            return end_to_end(root, videos, encoder, config, backends, batches[-1])

        engines = nvdec_installed() and torch.cuda.is_available()
        features, kept = root / "VideoMarathon/features", root / "cpu/VideoMarathon/features"
        if "tower" in args.parts:
            note("tower", lambda: tower_rates(encoder, config, batches))
        if "nvdec" in args.parts and engines:
            note("nvdec", lambda: nvdec_rates(root, videos, side, args.nvdec))
        for workers in args.workers:
            if "cpu" in args.parts:
                note(f"end to end, {workers} on the CPU", partial(whole, [PYAV] * workers))
                if not kept.exists() and features.exists():
                    shutil.copytree(features, kept)
            for count in args.nvdec if engines and "mixed" in args.parts else ():
                mixed = [f"{NVDEC}:0"] * count + [PYAV] * workers
                note(f"end to end, {workers} on the CPU and {count} NVDEC", partial(whole, mixed))
        if engines and kept.exists() and "mixed" in args.parts:
            note(
                "features, NVDEC and CPU against CPU",
                lambda: feature_difference(root, videos, config.variant, root / "cpu"),
            )
        if "before" in args.parts:
            note("end to end, before", lambda: whole([BEFORE] * args.workers[0]))
        if "decoders" in args.parts:
            short = str(root / "short.mp4")
            repeat(root / "unit0.mp4", Path(short), 4 if large else 1)
            note("pictures for each CPU second", lambda: side_by_side(short, side, 2))
            note(
                "largest difference, ours and before",
                lambda: largest_difference("ours", "ours, before", short, side),
            )
            note("decode", lambda: decode_rates(root, videos, args.workers[0], side))
        if "plain" in args.parts:
            chunks = 2 if large else 1
            note("plain", lambda: baseline(root, videos, encoder, config, chunks))
        print(table(results), flush=True)
        if args.variants:
            for name, work in tower_variants(encoder, config, batches[-1]):
                note(name, work)


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
        pool.map(decode, [("ours", path, side, 5) for path in paths[:1] * workers], chunksize=1)
        frames, busy = decode(("ours", paths[0], side, 240))
        rates["pyav_1"] = frames / busy
        rates["pyav_all"] = spread(pool, "ours", [paths[0]] * workers, side)
    return rates


def nvdec_rates(
    root: Path, videos: list[PresentVideo], side: int, processes: list[int]
) -> dict[str, Any]:
    """The GPU's decoder alone, and whether its pictures are those of the CPU."""
    path = str(root / videos[0].rel)
    rates: dict[str, Any] = {}
    for count in processes:
        with multiprocessing.get_context("spawn").Pool(count, warm) as pool:
            pool.map(decode, [("nvdec", path, side, 5)] * count, chunksize=1)
            rates[f"processes {count}"] = spread(pool, "nvdec", [path] * count, side, 480)
    with open_nvdec(path, size=side, **OPTIONS) as video:
        decoded = sum(1 for _, _ in zip(range(240), video, strict=False))
        rates["share_of_nvdec"] = video.on_gpu / decoded
        rates["gave_up"] = video.gave_up
    rates["largest_difference"] = largest_difference("ours", "nvdec", path, side)
    return rates


def warm() -> None:
    """Start a benchmark process: as in extraction, one thread each."""
    torch.set_num_threads(1)


def spread(pool: Any, way: str, paths: list[str], side: int, frames: int = 240) -> float:
    """Frames a second of all processes of a pool together."""
    started = time.perf_counter()
    done = pool.map(decode, [(way, path, side, frames) for path in paths], chunksize=1)
    return sum(frames for frames, _ in done) / (time.perf_counter() - started)


def decode(job: tuple[str, str, int, int]) -> tuple[int, float]:
    """The first pictures of a file: how many, in how many seconds."""
    way, path, side, limit = job
    started = time.perf_counter()
    count = sum(1 for _ in zip(range(limit), pictures(way, path, side), strict=False))
    return count, time.perf_counter() - started


def resize_ms(side: int, how: Callable[[np.ndarray, int], np.ndarray] = resize_frame) -> float:
    """Milliseconds of one thread to resize a picture."""
    channels = 3 if how is pillow else 4
    picture = np.random.default_rng(0).integers(0, 256, (360, 640, channels), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    how(picture, side)
    started = time.perf_counter()
    for _ in range(50):
        how(picture, side)
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) * 20


def feature_difference(
    root: Path, videos: list[PresentVideo], variant: str, other: Path
) -> dict[str, float]:
    """How far feature files are from those that were set aside: the share of numbers that differ,
    and the root of the squared differences relative to the numbers.
    """
    different = total = 0
    apart = size = 0.0
    for video in videos[:8]:
        rel = layout.feature_file(layout.features(variant), video.video)
        a, b = (FeatureFile(base / rel).read().float() for base in (root, other))
        different, total = different + int((a != b).sum()), total + a.numel()
        apart, size = apart + float((a - b).square().sum()), size + float(b.square().sum())
    return {"different": different / total, "relative": (apart / size) ** 0.5}


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
        folder = layout.features(config.variant)
        report = extract(storage, options, folder, videos, encoder, print, backends)
    if not report.new_frames:
        raise RuntimeError(f"no features: {report.quarantine[:3]}")
    return {
        "frames_per_second": report.frames_per_second,
        "settled": report.facts["settled_fps"],
        "frames": report.new_frames,
        "seconds": report.seconds,
        "start_up_s": report.facts["start_up_s"],
        "video_hours_an_hour": report.hours * 3600 / report.seconds,
        "encoder_while_busy": report.facts["encoder_fps"],
        "gpu_busy": report.facts["encoder_busy"],
        "decoders_busy": report.facts["decode_busy"],
        "nvdec_share": report.facts["nvdec_share"],
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
    """The ways side by side, in Markdown; what was not measured is left out."""
    plain = results.get("plain", {}).get("end_to_end", float("nan"))
    tower = max(results.get("tower", {"": float("nan")}).values())
    lines = [
        f"tower alone {tower:.0f}, plain way end to end {plain:.1f} frames a second",
        "| end to end | frames/s | settled | of the tower | times plain | GPU busy | while busy | "
        "decoders busy | NVDEC | CPU ms | cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, of in results.items():
        if name.startswith("end to end"):
            rate = of["frames_per_second"]
            lines.append(
                f"| {name[12:]} | {rate:.0f} | {of['settled']:.0f} | {of['settled'] / tower:.0%} | "
                f"{rate / plain:.1f} | {of['gpu_busy']:.0%} | {of['encoder_while_busy']:.0f} | "
                f"{of['decoders_busy']:.0%} | {of['nvdec_share']:.0%} | "
                f"{of['decode_cpu_ms']:.1f} | {of['cpu_cores_used']:.1f} |"
            )
    rates = results.get("pictures for each CPU second", {})
    lines += ["| one thread | pictures for each CPU second |", "|---|---|"]
    lines += [f"| {way} | {rate:.0f} |" for way, rate in rates.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
