"""The landing folder: annotation files that people put there, and its fingerprint for a sensor."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from assets.annotations.files import AnnotationFile, local_file
from assets.deployment.settings import Settings
from assets.fetching.table_files import SUFFIXES

MIN_AGE_S = 2.0  # a file that changed more recently may still be being copied


@dataclass(frozen=True, slots=True)
class Landing:
    """What lies in the landing folder.

    Attributes:
        files: those that have not changed for a moment, by name.
        copying: names of those that may still be being copied.
        missing: the folder that the settings name and that is not there; empty when it is.
    """

    files: list[AnnotationFile]
    copying: list[str]
    missing: str = ""


def look_into_landing(settings: Settings, now: float | None = None) -> Landing:
    """What lies in the landing folder; nothing where the settings name none."""
    folder = settings.landing
    if folder is not None and not folder.is_dir():
        return Landing([], [], missing=str(folder))
    settled = _settled(settings, now)
    return Landing(
        [local_file(path, f"landing/{name}") for name, path in settled.items()],
        [f"landing/{name}" for name in _question_files(settings) if name not in settled],
    )


def landing_fingerprint(settings: Settings, now: float | None = None) -> str:
    """Changes when a file lands, changes or goes; empty while there is none. Reads no content.

    It speaks of the same files that `look_into_landing` would read.
    """
    entries = [
        f"{name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for name, path in _settled(settings, now).items()
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:32] if entries else ""


def _settled(settings: Settings, now: float | None) -> dict[str, Path]:
    """Question files of the landing folder that nobody is copying any more, by name below it."""
    latest = (now or time.time()) - MIN_AGE_S
    return {
        name: path
        for name, path in _question_files(settings).items()
        if path.stat().st_mtime <= latest
    }


def _question_files(settings: Settings) -> dict[str, Path]:
    folder = settings.landing
    if folder is None or not folder.is_dir():
        return {}
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(step.startswith(".") for step in path.relative_to(folder).parts)
    }
