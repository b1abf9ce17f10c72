"""The landing folder: annotation files that people put there, and its fingerprint for a sensor."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from assets.annotations.files import AnnotationFile, local_file
from assets.deployment.settings import Settings
from assets.fetching.table_files import SUFFIXES

MIN_AGE_S = 2.0  # a file that changed more recently may still be being copied


def landing_files(settings: Settings, now: float | None = None) -> list[AnnotationFile]:
    """What lies in the landing folder and has not changed for a moment, by name."""
    return [local_file(path, f"landing/{name}") for name, path in _settled(settings, now).items()]


def landing_fingerprint(settings: Settings, now: float | None = None) -> str:
    """Changes when a file lands, changes or goes; empty while there is none. Reads no content.

    It speaks of the same files that `landing_files` would read.
    """
    entries = [
        f"{name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for name, path in _settled(settings, now).items()
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:32] if entries else ""


def _settled(settings: Settings, now: float | None) -> dict[str, Path]:
    """Question files of the landing folder that nobody is copying any more, by name below it."""
    folder = settings.landing
    if folder is None or not folder.is_dir():
        return {}
    latest = (now or time.time()) - MIN_AGE_S
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(step.startswith(".") for step in path.relative_to(folder).parts)
        and path.stat().st_mtime <= latest
    }
