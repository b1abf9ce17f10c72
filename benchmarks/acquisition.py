"""How much of plain parallel downloading is left when every video is also journalled, examined,
hashed and published.

    python -m benchmarks.acquisition [--preset tiny] [--files 16] [--mebibytes 64]
    [--mebibytes-per-s 20] [--rounds 3]

A server in a process of its own serves video files by range. In turn, the same files are fetched by
plain GETs with a range, written to the same disk by the same number of threads; by aria2c (a Debian
package) with as many files and connections at a time; by the downloader of direct links alone; and
by `acquire_part` through a URL source and through a hub source (huggingface_hub). The rounds
interleave, so that a busy machine is unfair to nobody; the medians count. Server and client share
the machine's cores: where no connection is limited, both measure each other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import requests

from assets.annotations.build import build_catalogue
from assets.annotations.collect import collect_annotations
from assets.deployment.settings import Settings
from assets.fetching.address_guard import Guard
from assets.fetching.direct import download_file
from assets.fetching.options import Download
from assets.fetching.partial_file import BLOCK_BYTES
from assets.videos.acquire import acquire_part
from pipeline.demo.local_server import Request
from tests.servers.faulty import Fault, FaultyHubServer, FaultyMediaServer
from training.formats.storage import Storage

REPO = "benchmark/videos"
CLIP_S = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", choices=["tiny", "full"], default="full", help="tiny: under a minute"
    )
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--mebibytes", type=int, default=64, help="size of each file")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument(
        "--mebibytes-per-s", type=float, default=20.0, help="limit of each connection; 0: none"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to work; default: a temporary folder"
    )
    chosen = parser.parse_args()
    if chosen.preset == "tiny":
        chosen.files, chosen.mebibytes, chosen.mebibytes_per_s, chosen.rounds = 8, 16, 8.0, 1
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        sizes = write_files(folder / "served", chosen.files, chosen.mebibytes << 20)
        limit = chosen.mebibytes_per_s * 2**20
        with serving(folder / "served", limit) as (media_url, hub_url):
            ways: dict[str, Callable[[Path], float]] = {
                "plain range GETs": lambda out: plain(
                    media_url, sorted(sizes), chosen.workers, out
                ),
                "direct links alone": lambda out: direct(
                    media_url, sorted(sizes), chosen.workers, out
                ),
                "acquire_part, url": lambda out: acquire(
                    url_source(media_url), sorted(sizes), chosen.workers, out
                ),
                "acquire_part, hub": lambda out: acquire(
                    hub_source(hub_url), sorted(sizes), chosen.workers, out
                ),
            }
            if shutil.which("aria2c"):
                ways["aria2c"] = lambda out: aria2c(media_url, sorted(sizes), chosen.workers, out)
            else:
                print("aria2c: left out, it is not installed (apt-get install aria2)")
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            cpu: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(chosen.rounds + 1):
                for way, run in ways.items():
                    out = folder / "out"
                    before = cpu_seconds()
                    took = run(out)
                    if number:  # the first round warms caches and imports
                        seconds[way].append(took)
                        cpu[way].append(cpu_seconds() - before)
                    shutil.rmtree(out)
    total = sum(sizes.values()) / 2**20
    base = statistics.median(seconds["plain range GETs"])
    for way, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{way:20} {median:7.2f} s {total / median:8.1f} MiB/s {base / median:7.0%} "
            f"{statistics.median(cpu[way]):7.2f} s of CPU   all: "
            f"{', '.join(f'{time:.2f}' for time in times)}"
        )


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def plain(url: str, names: list[str], workers: int, out: Path) -> float:
    """Each file by one GET with a range, in as many threads as the pipeline uses; seconds."""
    out.mkdir()

    def fetch(name: str) -> None:
        with (
            requests.get(
                f"{url}/{name}", headers={"Range": "bytes=0-"}, stream=True, timeout=60
            ) as response,
            open(out / name, "wb") as file,
        ):
            shutil.copyfileobj(response.raw, file, 1 << 20)

    return in_threads(workers, fetch, names)


def direct(url: str, names: list[str], workers: int, out: Path) -> float:
    """Each file by the downloader of direct links; seconds."""
    out.mkdir()
    limits = Download()
    guard = Guard([url.removeprefix("http://")])

    def fetch(name: str) -> None:
        download_file(
            f"{url}/{name}", out / name, guard=guard, limits=limits, watch=lambda count: None
        )

    return in_threads(workers, fetch, names)


def in_threads(workers: int, fetch: Callable[[str], None], names: list[str]) -> float:
    """Seconds that it takes to fetch all files with so many threads."""
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(fetch, names))
    return time.perf_counter() - start


def aria2c(url: str, names: list[str], workers: int, out: Path) -> float:
    """All files by one aria2c with as many files and connections at a time; seconds."""
    out.mkdir()
    (out / "list.txt").write_text("".join(f"{url}/{name}\n" for name in names))
    connections = Download().connections
    start = time.perf_counter()
    subprocess.run(
        [
            "aria2c",
            "--quiet",
            "--no-conf",
            f"--input-file={out / 'list.txt'}",
            f"--dir={out}",
            f"--max-concurrent-downloads={workers}",
            f"--split={connections}",
            f"--max-connection-per-server={connections}",
            f"--min-split-size={BLOCK_BYTES}",
            "--file-allocation=none",
        ],
        check=True,
    )
    return time.perf_counter() - start


def url_source(url: str) -> dict[str, object]:
    host = url.removeprefix("http://")
    return {"kind": "url", "hosts": [host], "url": url}


def hub_source(url: str) -> dict[str, object]:
    return {"kind": "hub", "repo": REPO, "files": ["*.mp4"], "url": url}


def acquire(source: dict[str, object], names: list[str], workers: int, out: Path) -> float:
    """The pipeline, from a built catalogue to the finished part and its report; seconds."""
    url = str(source["url"])
    out.mkdir()
    rows = [{"video": n, "question": "Q?", "answer": "A", "url": f"{url}/{n}"} for n in names]
    (out / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings.model_validate(
        {
            "root": str(out / "root"),
            "parts": 1,
            "annotations": {"paths": [str(out / "qa.jsonl")]},
            "sources": {"clips": {key: value for key, value in source.items() if key != "url"}},
            "hub_endpoint": url if source["kind"] == "hub" else None,
            "download": {
                "workers": workers,
                "min_interval_s": 0,
                "min_free_bytes": 0,
                "coverage_threshold": 1.0,
            },
        }
    )
    storage = Storage(settings.root)
    collect_annotations(storage, settings, lambda line: None)
    build_catalogue(storage, settings, lambda line: None)
    start = time.perf_counter()
    acquire_part(storage, settings, "clips", "part0", lambda line: None)
    return time.perf_counter() - start


def write_files(folder: Path, count: int, size: int) -> dict[str, int]:
    """Videos of about `size` bytes each; a box that holds nothing makes up for what encoding
    would take long for.
    """
    folder.mkdir(parents=True)
    path = folder / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        still = np.random.default_rng(0).integers(0, 255, (180, 320, 3), dtype=np.uint8)
        for number in range(10 * CLIP_S):
            for packet in stream.encode(
                av.VideoFrame.from_ndarray(np.roll(still, number, axis=1), "rgb24")
            ):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    clip = path.read_bytes()
    path.unlink()
    sizes = {}
    for number in range(count):
        padding = max(size - len(clip), 16)
        box = (
            padding.to_bytes(4, "big") + b"free" + np.random.default_rng(number).bytes(padding - 8)
        )
        (folder / f"v{number:03d}.mp4").write_bytes(clip + box)
        sizes[f"v{number:03d}.mp4"] = len(clip) + padding
    return sizes


@contextmanager
def serving(folder: Path, bytes_per_s: float) -> Iterator[tuple[str, str]]:
    """Both servers in a process of their own; their URLs."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(there, folder, bytes_per_s)
    )
    process.start()
    try:
        yield here.recv()
    finally:
        here.send(None)
        process.join()


def _serve(connection: Connection, folder: Path, bytes_per_s: float) -> None:
    fault = Fault.throttle(bytes_per_s) if bytes_per_s else None

    def slow(request: Request) -> Fault | None:
        return fault if request.path.endswith(".mp4") and request.method == "GET" else None

    with FaultyMediaServer(folder, faults=slow) as media, FaultyHubServer(faults=slow) as hub:
        hub.publish(REPO, folder)
        connection.send((media.url, hub.url))
        connection.recv()


if __name__ == "__main__":
    main()
