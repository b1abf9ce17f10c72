"""The GPUs of this machine and the room on its disk. No torch here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from assets.deployment.settings import Settings
from training.formats.storage import Storage


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver tells it; `memory` in bytes."""

    name: str
    memory: float
    driver: str


def installed_gpus() -> list[Gpu]:
    """NVIDIA GPUs that the driver shows."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    done = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True
    )
    if done.returncode:
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines() if line]
    return [Gpu(name, float(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]


def free_disk(settings: Settings) -> float | None:
    """Bytes that are free below the root; None where it is remote."""
    storage = Storage(settings.root)
    if not storage.is_local:
        return None
    return float(shutil.disk_usage(nearest_folder(Path(storage.root))).free)


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.parents) if place.exists())
