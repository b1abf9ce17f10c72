"""The landing folder: annotation files that people put there, and its fingerprint for a sensor."""

from __future__ import annotations

import hashlib
import time

from assets.annotations.files import AnnotationFile, local_file
from assets.deployment.settings import Settings
from assets.fetching.table_files import SUFFIXES

MIN_AGE_S = 2.0  # a file that changed more recently may still be being copied


def landing_files(settings: Settings, now: float | None = None) -> list[AnnotationFile]:
    """What lies in the landing folder and has not changed for a moment, by name."""
    if settings.landing is None or not settings.landing.is_dir():
        return []
    latest = (now or time.time()) - MIN_AGE_S
    paths = sorted(
        path
        for path in settings.landing.rglob("*")
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(step.startswith(".") for step in path.relative_to(settings.landing).parts)
        and path.stat().st_mtime <= latest
    )
    return [
        local_file(path, f"landing/{path.relative_to(settings.landing).as_posix()}")
        for path in paths
    ]


def landing_fingerprint(settings: Settings) -> str:
    """Changes when a file lands, changes or goes; empty while there is none. Reads no content."""
    if settings.landing is None or not settings.landing.is_dir():
        return ""
    entries = [
        f"{path.relative_to(settings.landing)}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for path in sorted(settings.landing.rglob("*"))
        if path.is_file() and path.suffix.lower() in SUFFIXES
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:32] if entries else ""
