"""Decoding alone, ours beside what others use, each in a process of its own with one thread: CPU
seconds for each sampled picture. Used by `benchmarks.features`; alone:

    python -m benchmarks.feature_decoding --minutes 5

Every way opens the file, takes one picture a second and resizes it with the same function. CPU time
is that of the whole work, the look at the timeline included, and of child processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from assets.features.workers.backends import open_pyav
from assets.features.workers.nvdec import open_nvdec
from benchmarks.feature_baseline import FPS, encode_unit, plain_frames, repeat
from benchmarks.feature_before import open_before
from model.media.resize import resize_frame

OPTIONS: dict[str, Any] = {"min_frames": 128, "max_frames": 1 << 20, "max_pixels": 1 << 24}


def pictures(way: str, path: str, size: int) -> Iterator[np.ndarray]:
    """The pictures of a file, one a second, in one of the ways of `WAYS`."""
    openers: dict[str, Any] = {"ours": open_pyav, "ours, before": open_before, "nvdec": open_nvdec}
    if way in openers:
        with openers[way](path, size=size, **OPTIONS) as video:
            for _, _, picture in video:
                yield picture
    else:
        for frame in OTHERS[way](path):
            yield resize_frame(frame, size)


def decord_frames(path: str) -> Iterator[np.ndarray]:
    import decord

    video = decord.VideoReader(path, num_threads=1)
    for start in range(0, len(video), 16 * FPS):
        batch = video.get_batch(range(start, min(len(video), start + 16 * FPS), FPS)).asnumpy()
        video.seek(0)
        yield from batch


def torchcodec_frames(path: str) -> Iterator[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(path, num_ffmpeg_threads=1, dimension_order="NHWC")
    for start in range(0, len(video), 16 * FPS):
        chosen = list(range(start, min(len(video), start + 16 * FPS), FPS))
        yield from video.get_frames_at(chosen).data.numpy()


def ffmpeg_frames(path: str) -> Iterator[np.ndarray]:
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", path, "-vf", "fps=1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        shape = (context.height, context.width, 3)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(shape[0] * shape[1] * 3):
            yield np.frombuffer(data, np.uint8).reshape(shape)


def plain_pyav_frames(path: str) -> Iterator[np.ndarray]:
    return plain_frames(Path(path), threads=1)


OTHERS: dict[str, Callable[[str], Iterator[np.ndarray]]] = {
    "plain PyAV": plain_pyav_frames,
    "ffmpeg fps=1": ffmpeg_frames,
    "decord": decord_frames,
    "torchcodec": torchcodec_frames,
}


def available() -> list[str]:
    """The ways that can be tried here."""
    found = ["ours", "ours, before", "plain PyAV"]
    found += ["ffmpeg fps=1"] if shutil.which("ffmpeg") else []
    return found + [name for name in ("decord", "torchcodec") if importlib.util.find_spec(name)]


def side_by_side(path: str, size: int, rounds: int = 3) -> dict[str, float]:
    """Sampled pictures for each CPU second, by way: the best of some rounds, in which the ways take
    turns.
    """
    best: dict[str, float] = {}
    for _ in range(rounds):
        for way in available():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                try:
                    rate = pool.apply(cpu_rate, (way, path, size))
                except Exception as error:
                    print(f"{way}: {type(error).__name__}: {error}")
                    continue
            best[way] = max(best.get(way, 0.0), rate)
    return best


def cpu_rate(way: str, path: str, size: int) -> float:
    torch.set_num_threads(1)
    resize_frame(np.zeros((8, 8, 3), np.uint8), size)  # imports
    next(pictures(way, path, size))
    before = cpu_s()
    count = sum(1 for _ in pictures(way, path, size))
    return count / (cpu_s() - before)


def cpu_s() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def largest_difference(one: str, other: str, path: str, size: int, count: int = 240) -> int:
    """Between the first pictures of two ways, in steps of 255."""
    pairs = zip(range(count), pictures(one, path, size), pictures(other, path, size), strict=False)
    return max(int(np.abs(a.astype(np.int16) - b).max()) for _, a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=384)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        unit = encode_unit(Path(folder) / "unit.mp4", 60 * FPS, 0)
        video = Path(folder) / "video.mp4"
        repeat(unit, video, args.minutes)
        for way, rate in side_by_side(str(video), args.size, args.rounds).items():
            print(f"{way:16} {rate:6.1f} pictures for each CPU second")
        apart = largest_difference("ours", "ours, before", str(video), args.size)
        print(f"largest difference between the two of ours: {apart} of 255")


if __name__ == "__main__":
    main()
