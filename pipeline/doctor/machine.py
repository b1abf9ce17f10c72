"""What the machine itself has: Python, memory, limits of processes, a free port."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

from assets.deployment.settings import Settings
from assets.sources.findings import Finding, missing, note, ok

GIB = 2**30
OLDEST_PYTHON = (3, 11)
DEMO_MEMORY = 4.8 * GIB  # measured; see docs/getting_started.md
DECODER_MEMORY = 3 * GIB  # the limit of one decoding process
SHARED_MEMORY = 1 * GIB  # containers often get 64 MiB, which the training's data loaders exhaust
DESCRIPTORS = 4096  # a StreamingDataset keeps some hundreds open
MEMINFO = Path("/proc/meminfo")
SHM = Path("/dev/shm")


def check_python() -> Iterator[Finding]:
    """The interpreter's version, and those of the two largest packages."""
    found = f"{sys.version.split()[0]}, dagster {version('dagster')}, torch {version('torch')}"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        yield missing("python", found, f"install Python {oldest} or newer")
    else:
        yield ok("python", found)


def check_memory(settings: Settings) -> Iterator[Finding]:
    """Whether the machine's memory is enough for the decoding processes that the settings ask."""
    facts = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    total = int(facts["MemTotal"].split()[0]) * 1024
    decoding = settings.features.decode_workers
    found = (
        f"{total / GIB:.1f} GiB; up to {DECODER_MEMORY // GIB} GiB for each of {decoding} decoding "
        "processes"
    )
    if total < DEMO_MEMORY:
        yield missing("memory", found, f"even the demo took {DEMO_MEMORY / GIB:.1f} GiB")
    elif total < decoding * DECODER_MEMORY:
        advice = "damaged or very large videos may be killed: lower features.decode_workers"
        yield note("memory", found, advice)
    else:
        yield ok("memory", found)


def check_shared_memory() -> Iterator[Finding]:
    """Whether data loaders have room to pass samples through."""
    if not SHM.is_dir():
        advice = "mount a tmpfs there; data loaders pass samples through it"
        yield missing("shared memory", f"no {SHM}", advice)
        return
    size = shutil.disk_usage(SHM).free
    found = f"{size / GIB:.2f} GiB free at {SHM}"
    if size < SHARED_MEMORY:
        advice = (
            "give the container more (docker run --shm-size=8g, an emptyDir of medium Memory on "
            "Kubernetes)"
        )
        yield missing("shared memory", found, advice)
    else:
        yield ok("shared memory", found)


def check_descriptors() -> Iterator[Finding]:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files (at most {hard})"
    if soft < DESCRIPTORS:
        yield note("file descriptors", found, f"ulimit -n {DESCRIPTORS} before Dagster is started")
    else:
        yield ok("file descriptors", found)


def check_decoder_isolation() -> Iterator[Finding]:
    """Whether decoding processes, which read strangers' files, can be cut off from the network."""
    found = run_python(
        "from assets.fetching.isolation import leave_network; print(leave_network())"
    )
    if found == "decoding processes have no network":
        yield ok("decoder isolation", found)
    else:
        advice = (
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or the container's "
            "seccomp profile)"
        )
        yield note("decoder isolation", found, advice)


def check_port(port: int) -> Iterator[Finding]:
    """Whether the web UI could listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = "Dagster may be running already; else choose another: make ui PORT=3001"
            yield note(f"port {port}", str(error.strerror).lower(), advice)
            return
    yield ok(f"port {port}", "free")


@cache  # the answer is one of the machine, and an import of seconds is spared
def run_python(code: str) -> str:
    """What a Python process of its own prints: its output, else the last line of its error.

    The doctor itself never imports torch, and a process cannot come back into the network.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.stdout.strip() or (done.stderr.strip().splitlines() or [""])[-1]
