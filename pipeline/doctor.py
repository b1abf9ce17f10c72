"""What this machine lacks for what the deployment's settings ask: `hourllava doctor`.

Each check looks at one thing and says what it found. It is *missing* when the pipeline cannot do
what the settings ask, a *note* when it can but a person may want to know, else *ok*. Nothing is
changed, and no secret is ever printed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from assets.deployment.settings import Settings
from assets.sources.findings import MISSING, NOTE, OK, Finding

GIB = 2**30
PYTHON = (3, 11)
DEMO_MEMORY = 4.8 * GIB  # measured; see README.md
SHARED_MEMORY = 1 * GIB  # containers often get 64 MiB, which the training's data loaders exhaust
BLIND_FROM = (
    100  # partitions upstream of an unpartitioned asset; docs/operations.md says what follows
)
DESCRIPTORS = 4096  # a StreamingDataset keeps some hundreds open
MEMINFO = Path("/proc/meminfo")
SHM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver tells it; ``memory`` in bytes."""

    name: str
    memory: float
    driver: str


Check = Callable[[Settings], Iterable[Finding]]


def examine(settings: Settings, home: Path, port: int) -> list[Finding]:
    """Every finding, in the order in which a person would mend things.

    Args:
        home: folder with the ``dagster.yaml`` of the instance.
        port: where the web UI is to listen.
    """
    gpus = installed_gpus()
    checks: list[Check] = [
        check_python,
        check_storage,
        check_memory,
        check_shared_memory,
        check_descriptors,
        check_isolation,
        check_sources,
        check_hub,
        lambda settings: check_gpus(settings, gpus),
        check_optional,
        lambda _: check_instance(home),
        lambda _: check_port(port),
    ]
    return [finding for check in checks for finding in check(settings)]


def report(findings: list[Finding]) -> str:
    """The findings as a plain text table, and what there is to do below it."""
    titles = ("check", "state", "found")
    rows = [titles, *((item.what, item.state, item.found) for item in findings)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}" for row in rows]
    todo = [f"{item.state}: {item.what}: {item.advice}" for item in findings if item.advice]
    return "\n".join([*lines, "", *todo] if todo else lines)


def check_python(_: Settings) -> Iterator[Finding]:
    found = f"{sys.version.split()[0]}, dagster {version('dagster')}, torch {version('torch')}"
    if sys.version_info < PYTHON:
        yield Finding(
            "python", MISSING, found, f"install Python {'.'.join(map(str, PYTHON))} or newer"
        )
    else:
        yield Finding("python", OK, found)


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Whether files can be written below the root, and how much room there is."""
    from model.atomic import TEMPORARY_PREFIX
    from training.formats.storage import Storage

    try:
        storage = Storage(settings.root)
    except (ImportError, ValueError) as error:
        extra = settings.root.partition(":")[0]
        yield Finding(
            "storage root",
            MISSING,
            f"{settings.root}: {error}",
            f"pip install 'hour-llava[{extra}]'",
        )
        return
    folder = _nearest(Path(storage.root)) if storage.is_local else None
    try:
        if folder is not None:
            trial = folder / f"{TEMPORARY_PREFIX}doctor-{uuid.uuid4().hex}"
            trial.write_bytes(b"")
            trial.unlink()
        else:
            name = f"{TEMPORARY_PREFIX}doctor-{uuid.uuid4().hex}"
            storage.write_bytes(name, b"")
            storage.fs.rm(f"{storage.base}/{name}")
    except (
        Exception
    ) as error:  # object stores raise whatever their client does; all of it is the finding
        advice = "make it writable for this user, or set root in the settings to a place that is"
        yield Finding(
            "storage root", MISSING, f"{storage.root}: {type(error).__name__}: {error}", advice
        )
        return
    yield Finding("storage root", OK, f"{storage.root} can be written")
    work = folder or _nearest(storage.cache)
    free, least = shutil.disk_usage(work).free, settings.download.min_free_bytes
    found = f"{free / GIB:.1f} GiB free at {work}, downloads stop below {least / GIB:.1f} GiB"
    if free < least:
        yield Finding("disk", MISSING, found, "free some space, or lower download.min_free_bytes")
    else:
        yield Finding("disk", OK, found)


def check_memory(settings: Settings) -> Iterator[Finding]:
    facts = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    total = int(facts["MemTotal"].split()[0]) * 1024
    decoding = settings.features.decode_workers
    found = f"{total / GIB:.1f} GiB; up to 3 GiB for each of {decoding} decoding processes"
    if total < DEMO_MEMORY:
        yield Finding("memory", MISSING, found, f"even the demo took {DEMO_MEMORY / GIB:.1f} GiB")
    elif total < decoding * 3 * GIB:
        yield Finding(
            "memory",
            NOTE,
            found,
            "damaged or very large videos may be killed: lower features.decode_workers",
        )
    else:
        yield Finding("memory", OK, found)


def check_shared_memory(_: Settings) -> Iterator[Finding]:
    if not SHM.is_dir():
        yield Finding(
            "shared memory",
            MISSING,
            f"no {SHM}",
            "mount a tmpfs there; data loaders pass samples through it",
        )
        return
    size = shutil.disk_usage(SHM).free
    found = f"{size / GIB:.2f} GiB free at {SHM}"
    if size < SHARED_MEMORY:
        advice = "give the container more (docker run --shm-size=8g, an emptyDir of medium Memory on Kubernetes)"
        yield Finding("shared memory", MISSING, found, advice)
    else:
        yield Finding("shared memory", OK, found)


def check_descriptors(_: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files (at most {hard})"
    if soft < DESCRIPTORS:
        yield Finding(
            "file descriptors", NOTE, found, f"ulimit -n {DESCRIPTORS} before Dagster is started"
        )
    else:
        yield Finding("file descriptors", OK, found)


def check_isolation(_: Settings) -> Iterator[Finding]:
    """Whether decoding processes, which read strangers' files, can be cut off from the network."""
    code = "from assets.features.nursery import _leave_network; print(_leave_network())"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment()
    )
    found = said.stdout.strip() or said.stderr.strip().splitlines()[-1]
    if found == "decoding processes have no network":
        yield Finding("decoder isolation", OK, found)
    else:
        advice = "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, or the container's seccomp profile)"
        yield Finding("decoder isolation", NOTE, found, advice)


def check_sources(settings: Settings) -> Iterator[Finding]:
    for name, source in sorted(settings.sources.items()):
        yield from source.findings(name)


def check_hub(settings: Settings) -> Iterator[Finding]:
    """Whether there is a token for the Hugging Face hub; never what it is."""
    from huggingface_hub import get_token

    where = settings.hub_endpoint or "the hub"
    if get_token():
        yield Finding("hub token", OK, f"there is one, for {where}")
    else:
        advice = "set HF_TOKEN for gated data sets (after agreeing on their page) and for higher rate limits"
        yield Finding("hub token", NOTE, f"none; {where} is asked anonymously", advice)


def installed_gpus() -> list[Gpu]:
    """NVIDIA GPUs that the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ]
    said = subprocess.run(query, capture_output=True, text=True)
    if said.returncode:
        return []
    rows = [line.split(", ") for line in said.stdout.splitlines() if line]
    return [Gpu(name, float(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]


def check_gpus(settings: Settings, gpus: list[Gpu]) -> Iterator[Finding]:
    large = [variant for variant in settings.variants if variant != "tiny"]
    if gpus:
        found = (
            f"{len(gpus)} x {gpus[0].name}, {gpus[0].memory / GIB:.0f} GiB, driver {gpus[0].driver}"
        )
        yield Finding("GPU", OK, found)
        yield _cuda()
    elif large:
        advice = f"train {', '.join(large)} on a machine with NVIDIA GPUs and their driver"
        yield Finding("GPU", MISSING, "nvidia-smi shows none", advice)
    else:
        yield Finding("GPU", OK, "none, and none needed: tiny trains on the CPU")
    if gpus and settings.training.processes > len(gpus):
        advice = "set training.processes to the number of GPUs"
        found = f"training.processes is {settings.training.processes}"
        yield Finding("training.processes", MISSING, found, advice)
    for variant in large:
        yield from _fits(settings, variant, min((gpu.memory for gpu in gpus), default=None))


def _cuda() -> Finding:
    code = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment()
    )
    build, _, usable = said.stdout.strip().partition(" ")
    if usable == "True":
        return Finding("CUDA", OK, f"torch for CUDA {build}")
    return Finding(
        "CUDA", MISSING, f"torch for CUDA {build} cannot use the GPU", "update the NVIDIA driver"
    )


def _fits(settings: Settings, variant: str, memory: float | None) -> Iterator[Finding]:
    """For each stage: whether the largest pack fits into a device; how much it needs where there is
    no device.
    """
    from model.config import PRESETS
    from training.memory_plan import plan_memory
    from training.run_config import parse_run

    world = settings.training.processes * settings.training.nodes
    nowhere = {
        "start": "",
        "out": "",
        "streams": [{"name": "any", "root": "", "indexes": ["index.json"]}],
    }
    for stage in (1, 2, 3):
        what, overrides = (
            f"{variant}, stage {stage}",
            settings.training.overrides.get(f"stage{stage}", {}),
        )
        run = parse_run({"variant": variant, "stage": stage, **nowhere, **overrides})
        try:
            plan = plan_memory(
                run, PRESETS[variant], world, memory, checkpointing=run.checkpointing is not False
            )
        except ValueError as error:
            yield Finding(
                what, MISSING, str(error).partition(";")[0], str(error).partition("; ")[2]
            )
            continue
        estimate = f"an estimated {plan.needed} on each of {world} device(s)"
        if memory is None:
            yield Finding(
                what, NOTE, f"needs {estimate}", "choose GPUs with that much, or more of them"
            )
        else:
            yield Finding(what, OK, f"{estimate}, {memory / GIB:.0f} GiB there")


def check_optional(settings: Settings) -> Iterator[Finding]:
    has = importlib.util.find_spec
    if has("flash_attn"):
        yield Finding("flash-attn", OK, version("flash-attn"))
    else:
        yield Finding(
            "flash-attn",
            OK,
            "not installed, and not needed: torch's own attention kernels are used",
        )
    if has("PyNvVideoCodec"):
        yield Finding("PyNvVideoCodec", OK, version("PyNvVideoCodec"))
    elif settings.features.decoder == "nvdec":
        yield Finding(
            "PyNvVideoCodec", MISSING, "features.decoder is nvdec", "pip install PyNvVideoCodec"
        )
    else:
        yield Finding(
            "PyNvVideoCodec",
            OK,
            f"not installed, and features.decoder is {settings.features.decoder}",
        )


def check_instance(home: Path) -> Iterator[Finding]:
    """Whether Dagster's storage answers."""
    from dagster import DagsterInstance, DagsterInvalidConfigError

    if not (home / "dagster.yaml").exists():
        advice = (
            "start from the repository root, or point DAGSTER_HOME to the folder with dagster.yaml"
        )
        yield Finding("Dagster instance", MISSING, f"no {home / 'dagster.yaml'}", advice)
        return
    try:
        # Relative folders of dagster.yaml count from the folder that Dagster is started in.
        with contextlib.chdir(home), DagsterInstance.from_config(str(home)) as instance:
            runs, storage = instance.get_runs_count(), type(instance.run_storage).__name__
            parts = len(instance.get_dynamic_partitions("part"))
    except (
        Exception
    ) as error:  # configuration, missing packages, a database that is away: each has its own class
        said = (
            error.errors[0].message if isinstance(error, DagsterInvalidConfigError) else str(error)
        )
        found = f"{type(error).__name__}: {said.strip().splitlines()[0]}"
        advice = (
            f"check the storage section of {home / 'dagster.yaml'}, and the variables that it names"
        )
        yield Finding("Dagster instance", MISSING, found, advice)
        return
    yield Finding("Dagster instance", OK, f"{home}: {storage} with {runs:,} runs")
    if parts >= BLIND_FROM:
        advice = "let data_automation renew the mixture, or do so after every landing: the UI will not say that it is due"
        yield Finding(
            "parts", NOTE, f"{parts}: from {BLIND_FROM} on Dagster shows no stale mixture", advice
        )


def check_port(port: int) -> Iterator[Finding]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            advice = "Dagster may be running already; else choose another: make ui PORT=3001"
            yield Finding(f"port {port}", NOTE, str(error.strerror).lower(), advice)
            return
    yield Finding(f"port {port}", OK, "free")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
