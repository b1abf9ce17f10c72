"""Feature extraction against the plain way of doing it, side by side in one run.

    python -m benchmarks.features --preset siglip --out results.json      (one GPU, all cores, about four minutes)
    python -m benchmarks.features --preset tiny                           (CPU, for trying the benchmark itself)

The plain way: decode every frame one after the other, resize with Pillow, run the fp32 tower with eager attention on
one chunk of 128 frames at a time, all in one process. Videos are 640x360 H.264 at 30 frames a second, encoder weights
are random: neither changes what is computed. All rates are in sampled frames (one for each second of video) a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from assets.features.backends import open_pyav
from assets.features.extract import extract
from assets.features.jobs import Video
from assets.features.nvdec import installed, open_nvdec
from assets.features.options import Options
from assets.features.pool import NVDEC, PYAV
from assets.features.tower import ATTENTION, FrameEncoder, load_encoder
from assets.lineage import hash_file
from model.config import PRESETS, HourLlavaConfig
from model.resize import resize_frame
from model.vision import VisionEncoder, save_vision_encoder
from training.storage import Storage

CHUNK = 128  # of the plain way
FPS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["tiny", "siglip"], default="tiny")
    parser.add_argument("--videos", type=int, help="how many (default 3 or 32)")
    parser.add_argument("--minutes", type=float, help="length of each (default 0.5 or 15)")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes of the tower to try; the last is then used")
    parser.add_argument("--variants", action="store_true", help="also measure other ways to run the tower")
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
        videos = make_videos(root, args.videos or (16 if large else 3), args.minutes or (15 if large else 0.5))
        encoder = make_encoder(root / "encoder", config)
        seconds = sum(video.duration for video in videos)
        note("videos", {"count": len(videos), "hours": seconds / 3600, "bytes": sum(map(file_size(root), videos))})
        note("baseline", baseline(root, videos, encoder, config, chunks=2 if large else 1))
        batches = args.batches or ([256, 512] if large else [16])
        note("tower", tower_rates(encoder, config, batches))
        ours = end_to_end(root, videos, encoder, config, [PYAV] * args.workers, batches[-1])
        ours["ratio_to_baseline"] = ours["frames_per_second"] / results["baseline"]["end_to_end"]
        note("end_to_end", ours)
        note("decode", decode_rates(root, videos, args.workers, config.vision.image_size))
        print(table(results), flush=True)
        if installed() and torch.cuda.is_available():
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


# --- What is worked on ----------------------------------------------------------------------------------------------


def make_videos(root: Path, count: int, minutes: float) -> list[Video]:
    """Long clips: a minute of moving, grainy pictures each, repeated by copying packets."""
    folder = root / "VideoMarathon/videos/panda"
    folder.mkdir(parents=True)
    kinds = min(4, count)
    unit = min(60.0, minutes * 60)
    with multiprocessing.get_context("spawn").Pool(kinds) as pool:
        units = pool.starmap(encode_unit, [(root / f"unit{i}.mp4", round(unit * FPS), i) for i in range(kinds)])
    videos: list[Video] = []
    for i in range(count):
        path = folder / f"v{i:03}.mp4"
        if i < kinds:
            repeat(units[i], path, round(minutes * 60 / unit))
        else:
            shutil.copyfile(folder / f"v{i % kinds:03}.mp4", path)
        videos.append(Video(f"panda/v{i:03}", minutes * 60, hash_file(path), path.relative_to(root).as_posix()))
    return videos


def encode_unit(path: Path, frames: int, seed: int) -> Path:
    """Drifting textures with grain and a cut every ten seconds, 640x360, about 0.5 Mbit a second."""
    rng = np.random.default_rng(seed)
    texture = np.asarray(
        Image.fromarray(rng.integers(0, 256, (60, 100, 3), dtype=np.uint8)).resize(
            (1600, 960), Image.Resampling.BICUBIC
        )
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "b": "500k", "g": "250"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 640, 360, "yuv420p", 500_000
        stream.codec_context.thread_count = 4
        for i in range(frames):
            scene, t = divmod(i, 10 * FPS)
            x, y = (scene * 311 + 2 * t) % 900, (scene * 173 + t) % 560
            picture = texture[y : y + 360, x : x + 640].astype(np.int16)
            grain = rng.integers(-6, 7, (90, 160, 1), dtype=np.int16).repeat(4, 0).repeat(4, 1)
            frame = av.VideoFrame.from_ndarray(np.clip(picture + grain, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def repeat(unit: Path, path: Path, times: int) -> None:
    """The same minute ``times`` over."""
    with av.open(str(path), "w") as out:
        target = None
        shift = 0
        for _ in range(times):
            with av.open(str(unit)) as source:
                stream = source.streams.video[0]
                target = target or out.add_stream_from_template(stream)
                end = 0
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 0))
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                    out.mux(packet)
                shift += end


def make_encoder(folder: Path, config: HourLlavaConfig) -> Path:
    torch.manual_seed(0)
    encoder = VisionEncoder(config.vision)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.02)
    save_vision_encoder(encoder.bfloat16(), folder)
    return folder


def file_size(root: Path) -> Callable[[Video], int]:
    return lambda video: (root / video.relpath).stat().st_size


# --- The plain way --------------------------------------------------------------------------------------------------


@torch.no_grad()
def baseline(root: Path, videos: list[Video], encoder: Path, config: HourLlavaConfig, chunks: int) -> dict[str, float]:
    """Decode everything, resize with Pillow, fp32 eager tower, chunk by chunk, each after the other."""
    from transformers import SiglipVisionModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    model = SiglipVisionModel.from_pretrained(encoder, attn_implementation="eager", dtype=torch.float32)
    model = model.to(device).eval()
    side, pooled = config.vision.image_size, config.memory.pooled_side

    def tower(pixels: np.ndarray) -> torch.Tensor:
        states = model(torch.from_numpy(pixels).to(device), output_hidden_states=True).hidden_states[-1]
        grid = states.transpose(1, 2).unflatten(-1, (config.vision.patches_per_side,) * 2)
        return F.interpolate(grid, (pooled, pooled), mode="bilinear").cpu()

    spent = {"decode": 0.0, "preprocess": 0.0, "tower": 0.0}
    tower(np.zeros((8, 3, side, side), np.float32))
    frames = plain_frames(root / videos[0].relpath)
    done = 0
    for _ in range(chunks):
        with timed(spent, "decode"):
            pictures = [picture for _, picture in zip(range(CHUNK), frames, strict=False)]
        if not pictures:
            break
        with timed(spent, "preprocess"):
            pixels = np.stack([pillow(picture, side) for picture in pictures])
        with timed(spent, "tower"):
            tower(pixels)
        done += len(pictures)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    model.cpu()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    rates = {name: done / seconds for name, seconds in spent.items()}
    return {**rates, "end_to_end": done / sum(spent.values()), "frames": done, "gpu_memory_gib": memory}


def plain_frames(path: Path) -> Iterator[np.ndarray]:
    """Every FPS-th picture, having decoded all of them."""
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % FPS == 0:
                yield frame.to_ndarray(format="rgb24")


def pillow(picture: np.ndarray, side: int) -> np.ndarray:
    square = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    return (np.asarray(square, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


@contextmanager
def timed(spent: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[name] += time.perf_counter() - started


# --- Parts of ours --------------------------------------------------------------------------------------------------


def decode_rates(root: Path, videos: list[Video], workers: int, side: int) -> dict[str, Any]:
    """Decoders alone, pictures resized and thrown away: one process, and as many as the extraction uses."""
    paths = [str(root / video.relpath) for video in videos]
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


def nvdec_rates(root: Path, videos: list[Video], side: int) -> dict[str, Any]:
    """The GPU's decoder alone, and whether its pictures are those of the CPU."""
    path = str(root / videos[0].relpath)
    rates: dict[str, Any] = {}
    for processes in (1, 7):
        with multiprocessing.get_context("spawn").Pool(processes, warm) as pool:
            pool.map(decode, [("nvdec", path, side, 5)] * processes, chunksize=1)
            rates[f"processes {processes}"] = spread(pool, "nvdec", [path] * processes, side, 360)
    pairs = zip(range(120), pictures("pyav", path, side), pictures("nvdec", path, side), strict=False)
    rates["largest_difference"] = max(int(np.abs(a.astype(np.int16) - b).max()) for _, a, b in pairs)
    return rates


def warm() -> None:
    torch.set_num_threads(1)


def spread(pool: Any, backend: str, paths: list[str], side: int, frames: int = 120) -> float:
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
    if backend == "decord":
        import decord

        reader = decord.VideoReader(path, num_threads=1)
        for start in range(0, len(reader), 16 * FPS):
            batch = reader.get_batch(range(start, min(len(reader), start + 16 * FPS), FPS)).asnumpy()
            reader.seek(0)
            yield from (resize_frame(picture, side) for picture in batch)
        return
    opener = {"pyav": open_pyav, "nvdec": open_nvdec}[backend]
    with opener(path, size=side, min_frames=128, max_frames=1 << 20, max_pixels=1 << 24) as video:
        for _, _, picture in video:
            yield picture


def resize_ms(side: int, how: Callable[[np.ndarray, int], np.ndarray] = resize_frame) -> float:
    picture = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    how(picture, side)
    started = time.perf_counter()
    for _ in range(50):
        how(picture, side)
    torch.set_num_threads(threads)
    return (time.perf_counter() - started) * 20


def tower_rates(encoder: Path, config: HourLlavaConfig, batches: list[int]) -> dict[str, float]:
    """The tower alone as extraction runs it, pictures already on the device."""
    return {f"batch {batch}": tower_rate(encoder, config, batch) for batch in batches}


def tower_variants(encoder: Path, config: HourLlavaConfig, batch: int) -> dict[str, Any]:
    """Other ways to run it."""
    flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return {
        "attention alone, TFLOP/s": attention_rates(config) if torch.cuda.is_available() else {},
        "flash attention": tower_rate(encoder, config, batch, attention=flash),
        "separate gelu": tower_rate(encoder, config, batch, fused_gelu=False),
        "not compiled": tower_rate(encoder, config, batch, compiled=False),
    }


@torch.inference_mode()
def tower_rate(
    encoder: Path,
    config: HourLlavaConfig,
    batch: int,
    attention: list[SDPBackend] = ATTENTION,
    fused_gelu: bool = True,
    compiled: bool = True,
) -> float:
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    module: Any = FrameEncoder(load_encoder(encoder), config.memory.pooled_side, fused_gelu).to(device, dtype)
    torch.compiler.reset()
    run = torch.compile(module, fullgraph=True, dynamic=False) if cuda and compiled else module
    with sdpa_kernel(attention, set_priority=True):
        frames_per_second = rate(run, batch, config.vision.image_size, device)
    del module, run
    if cuda:
        torch.cuda.empty_cache()
    return frames_per_second


def rate(run: Callable[[torch.Tensor], Any], batch: int, side: int, device: str, seconds: float = 4.0) -> float:
    """Frames a second, over some seconds at working temperature."""
    pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run(pixels)
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run(pixels)
        wait()
        count += 1
    return batch * count / (time.perf_counter() - started)


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


# --- All of it ------------------------------------------------------------------------------------------------------


def end_to_end(
    root: Path, videos: list[Video], encoder: Path, config: HourLlavaConfig, backends: list[str], batch: int
) -> dict[str, Any]:
    """From files on disk to feature files on disk, with the processes and the code of the real thing."""
    options = Options(len(backends), batch, pooled_side=config.memory.pooled_side, min_frames=config.memory.min_frames)
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
        "ring_filled": report.facts["ring_filled"],
        "cpu_cores_used": usage.cores(report.seconds),
        "host_memory_gib": usage.peak / 2**30,
        "gpu_memory_gib": report.facts["device_peak_bytes"] / 2**30,
        "written_mb_per_s": report.bytes / 1e6 / report.seconds,
        "batch": batch,
        "decoders": len(backends),
        "quarantined": report.quarantine,
    }


class Usage:
    """Cores and memory used by this process and its children, sampled while something runs."""

    def __enter__(self) -> Usage:
        self.peak, self._stop = 0, threading.Event()
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cores(self, seconds: float) -> float:
        """Mean number of busy cores over the last ``seconds``."""
        end, busy = self._samples[-1]
        start = min(self._samples, key=lambda sample: abs(end - sample[0] - seconds))
        return (busy - start[1]) / max(end - start[0], 1e-9)

    def _watch(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        while not self._stop.wait(0.5):
            fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
            self._samples.append((time.monotonic(), (sum(fields) - fields[3] - fields[4]) / ticks))
            self.peak = max(self.peak, sum(map(proportional_bytes, family(os.getpid()))))


def family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [member for child in task.read_text().split() for member in family(int(child))]
        except FileNotFoundError:  # a process that just ended
            continue
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of a process, shared pages counted in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def table(results: dict[str, Any]) -> str:
    base, ours = results["baseline"], results["end_to_end"]
    rows = [
        ("decode, one process", base["decode"], results["decode"]["pyav_1"]),
        ("preprocess, one process", base["preprocess"], 1000 / results["decode"]["resize_ms"]),
        ("tower", base["tower"], max(results["tower"].values())),
        ("end to end", base["end_to_end"], ours["frames_per_second"]),
    ]
    lines = [f"| {'frames a second':24} | {'plain':>8} | {'ours':>8} | ratio |", "|---|---|---|---|"]
    lines += [f"| {name:24} | {a:8.1f} | {b:8.1f} | {b / a:5.1f} |" for name, a, b in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
