"""What jobs need: Slurm's commands, a partition and its limits, a shared folder, equal clocks; and
the folder of running stages.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from assets.checkpoints.nodes import ranks_of_node, refuse_nodes
from assets.deployment.compute import Pool
from assets.deployment.settings import Settings
from assets.engines.script import interpreter, options
from assets.sources.findings import Finding, missing, note, ok
from model.atomic import TEMPORARY_PREFIX
from pipeline.doctor.machine import GIB
from pipeline.estimate.installed import nearest_folder
from training.formats.storage import Storage

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
# File systems that other machines see, by their names in /proc/mounts.
SHARED = re.compile(
    r"nfs|lustre|gpfs|beegfs|ceph|gluster|weka|panfs|orangefs|afs|cifs|fuse|9p|virtiofs"
)
CLOCKS_APART_S = 30  # a lock's holder is taken for gone after so long (training.run_lock)


def check_jobs(settings: Settings) -> Iterator[Finding]:
    """Whether this machine can submit the jobs that the settings ask for, and share their files."""
    pools = {name: settings.compute.pool(name) for name in ("gpu", "cpu")}  # type: ignore[arg-type]
    jobs = {name: pool for name, pool in pools.items() if pool.is_slurm}
    if not jobs:
        return
    if lacking := [command for command in COMMANDS if shutil.which(command) is None]:
        advice = "run the UI on a login node of the cluster, or set compute's engine to local"
        yield missing("Slurm", f"no {', '.join(lacking)} on this machine", advice)
        return
    status, said = _said("scontrol", "show", "config")
    if status:
        advice = "start munge and the controller, or correct SLURM_CONF; `scontrol ping` asks it"
        yield missing("Slurm", said, advice)
        return
    yield ok("Slurm", "the controller answers")
    yield from _check_clock(said)
    for name, pool in jobs.items():
        yield from _check_pool(name, pool, settings.compute.folder)
    yield from _check_shared("folder of jobs", settings.compute.folder, private=True)
    storage = Storage(settings.root)
    if storage.is_local:
        yield from _check_shared("root, for jobs", Path(storage.root))


def check_nodes(settings: Settings) -> Iterator[Finding]:
    """Whether each stage can use as many nodes as the settings ask for, and go on with fewer."""
    from pipeline.estimate.machine import run_of

    pool = settings.compute.gpu
    if not pool.is_slurm:
        return
    ranks = ranks_of_node(settings.training, pool)
    for name, variant in settings.variants.items():
        for stage in variant.stages:
            what = f"nodes of {name}, stage {stage}"
            try:
                refuse_nodes(run_of(settings, name, stage), pool, ranks)
            except ValueError as error:
                problem, _, advice = str(error).partition("; ")
                yield missing(what, problem, advice)
            else:
                yield ok(what, f"{pool.nodes}, of {ranks} rank(s) each, share its global batch")


def check_scratch(settings: Settings) -> Iterator[Finding]:
    """Whether stages can run in `training.scratch`, where the root is remote."""
    if Storage(settings.root).is_local:
        return
    scratch = settings.training.scratch
    if settings.compute.gpu.is_slurm:
        yield from _check_shared("scratch", scratch)
    elif fault := _refusal(scratch):
        yield missing("scratch", fault, "set training.scratch to a folder that can be written")
    else:
        free = shutil.disk_usage(nearest_folder(scratch)).free
        yield ok("scratch", f"{scratch} can be written, {free / GIB:.1f} GiB free")


def _check_clock(said: str) -> Iterator[Finding]:
    """The controller's clock stands in the first line of what it tells of its configuration."""
    found = re.search(r"Configuration data as of (\S+)", said)
    if found is None:
        return
    apart = abs(time.time() - datetime.fromisoformat(found[1]).timestamp())
    if apart > CLOCKS_APART_S:
        advice = "set both by NTP: who holds a stage's folder is told by times"
        yield missing("clocks", f"{apart:.0f} s from the controller's", advice)
    else:
        yield ok("clocks", "the controller's is this machine's")


def _check_pool(name: str, pool: Pool, folder: Path) -> Iterator[Finding]:
    """Whether Slurm would take a job of the pool: partition, account, limits, nodes, GPUs."""
    what = f"jobs of {name}"
    given = options(pool, folder, "hourllava-doctor", "", pool.nodes if name == "gpu" else 1)
    status, said = _said("sbatch", "--test-only", *given, "--wrap=true")
    if status:
        _, known = _said("sinfo", "--noheader", "--format=%P %l %D", "--summarize")
        listed = "; ".join(
            "{} (limit {}, {} nodes)".format(*line.split()) for line in known.splitlines()
        )
        advice = f"correct compute.{name}; partitions here: {listed or 'none'}"
        yield missing(what, said.splitlines()[-1], advice)
        return
    yield ok(what, said.removeprefix("sbatch: "))
    yield from _check_time_limit(name, pool)
    if shutil.which(interpreter(pool)) is None:
        advice = "see that the nodes have it, or name the nodes' own in compute's python"
        yield note(what, f"{interpreter(pool)} is not on this machine", advice)


def _check_time_limit(name: str, pool: Pool) -> Iterator[Finding]:
    """Many clusters take a job that asks for too long, and never begin it."""
    which = [] if pool.partition is None else [f"--partition={pool.partition}"]
    _, said = _said("sinfo", "--noheader", "--format=%P %l", *which)
    for line in said.splitlines():
        partition, limit = line.split()
        most = _seconds(limit)
        wanted = most if pool.time_limit is None else _seconds(pool.time_limit)
        if (pool.partition or partition.endswith("*")) and wanted > most:
            found = f"{pool.time_limit}, and {partition.rstrip('*')} allows {limit}"
            yield missing(f"time limit of {name}", found, f"lower compute.{name}.time_limit")


def _seconds(limit: str) -> float:
    """`30` minutes, `4:00:00`, `2-00:00:00`, `infinite`, as Slurm writes times."""
    if not limit[0].isdigit():
        return math.inf
    days, separator, rest = limit.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if separator:  # days-hours:minutes:seconds
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:  # minutes:seconds
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_shared(what: str, folder: Path, private: bool = False) -> Iterator[Finding]:
    if fault := _refusal(folder):
        yield missing(what, fault, "name a folder that this user may write")
        return
    if private and folder.exists() and folder.stat().st_mode & 0o022:
        yield missing(what, f"others may write in {folder}", f"chmod 700 {folder}")
        return
    kind = _file_system(nearest_folder(folder))
    if SHARED.search(kind):
        yield ok(what, f"{folder} is on {kind}")
    else:
        advice = "see that all nodes have it under this path, or move it to the shared file system"
        yield note(what, f"{folder} is on {kind}, which other machines seldom see", advice)


def _refusal(folder: Path) -> str | None:
    """Why nothing can be written below a folder; None where something can."""
    file = nearest_folder(folder) / f"{TEMPORARY_PREFIX}doctor-{uuid.uuid4().hex}"
    try:
        file.write_bytes(b"")
        file.unlink()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return None


def _file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    place = os.path.realpath(folder)
    above = [(point, kind) for point, kind in mounts if _is_below(place, point)]
    return max(above, key=lambda item: len(item[0]))[1] if above else "an unknown file system"


def _is_below(place: str, point: str) -> bool:
    return point == "/" or place == point or place.startswith(f"{point}/")


def _said(*command: str) -> tuple[int, str]:
    """Exit status of a command, and what it said."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return 1, f"{command[0]} did not answer in a minute"
    return ended.returncode, ended.stdout.strip() or ended.stderr.strip()
