"""What lands: annotation files that people put into the landing folder, and rows that were written
about own videos (`assets/questions`); and a fingerprint of both for a sensor.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from assets.annotations.files import AnnotationFile, local_file
from assets.deployment.settings import Settings
from assets.fetching.table_files import SUFFIXES
from assets.records.lineage import Lineage, is_recorded, product
from training.formats import layout
from training.formats.storage import Storage

MIN_AGE_S = 2.0  # a file that changed more recently may still be being copied

PUT = "landing/"  # begins the name of what people put there


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
    """What lies in the landing folder, where the settings name one, and what was written here."""
    folder, storage = settings.landing, Storage(settings.root)
    missing = "" if folder is None or folder.is_dir() else str(folder)
    settled = _settled(settings, now)
    return Landing(
        [
            *(local_file(path, f"{PUT}{name}") for name, path in settled.items()),
            *(local_file(storage.local(rel), name) for name, rel in _written(storage, settings)),
        ],
        [f"{PUT}{name}" for name in question_files(settings) if name not in settled],
        missing,
    )


def is_put_by_people(name: str) -> bool:
    """Whether a landed file lies in the landing folder, by its name in messages."""
    return name.startswith(PUT)


def landing_fingerprint(settings: Settings, now: float | None = None) -> str:
    """Changes when a file lands, changes or goes; empty while there is none. Reads no content.

    It speaks of the same files that `look_into_landing` would read.
    """
    entries = [
        f"{name}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for name, path in _settled(settings, now).items()
    ]
    storage = Storage(settings.root)
    entries += [f"{name}:{storage.stamp(rel)}" for name, rel in _written(storage, settings)]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:32] if entries else ""


def written_versions(storage: Storage, settings: Settings) -> dict[str, str]:
    """Of the rows that were written here: `questions[source]` -> its version. By it the lineage of
    annotations goes on to captions and models.
    """
    names = [product("questions", source) for source in settings.questions.sources]
    return {n: Lineage.read(storage, n).version for n in names if is_recorded(storage, n)}


def _written(storage: Storage, settings: Settings) -> list[tuple[str, str]]:
    """Rows about own videos that were written here: their names, and where they lie."""
    if not settings.questions.sources:
        return []
    rels = {
        f"questions/{source}.parquet": layout.question_rows(source)
        for source in settings.questions.sources
    }
    return [(name, rel) for name, rel in sorted(rels.items()) if storage.exists(rel)]


def _settled(settings: Settings, now: float | None) -> dict[str, Path]:
    """Question files of the landing folder that nobody is copying any more, by name below it."""
    latest = (now or time.time()) - MIN_AGE_S
    return {
        name: path
        for name, path in question_files(settings).items()
        if path.stat().st_mtime <= latest
    }


def question_files(settings: Settings) -> dict[str, Path]:
    """The annotation files of the landing folder, by name below it; also those that may still be
    being copied.
    """
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
