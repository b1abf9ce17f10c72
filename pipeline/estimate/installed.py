"""The GPUs of this machine. No torch here."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass


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
