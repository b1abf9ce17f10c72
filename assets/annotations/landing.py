"""The annotation files that a deployment reads: of the hub, of listed paths, and out of the landing
folder.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, clear, scratch
from assets.fetching.errors import AnnotationError
from assets.fetching.hub import Hub, HubFile
from assets.fetching.table_files import SUFFIXES
from training.formats.hashing import hash_file
from training.formats.storage import Storage

SETTLED_S = 2.0  # a landing file that changed more recently may still be on its way


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """One annotation file.

    Attributes:
        name: as messages show it.
        checksum: of its content.
        origin: the repository or the file, as lineage names it; ``version`` is its commit or
            checksum.
        opened: gives a local path; a fetched file is removed afterwards.
    """

    name: str
    checksum: str
    origin: str
    version: str
    opened: Callable[[], AbstractContextManager[Path]]


def configured_files(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> list[AnnotationFile]:
    """The files that ``annotations`` in the settings names, by name; nothing of the hub's is
    fetched yet.

    Raises:
        AnnotationError: there are none.
        OperatorError: the hub does not know the repository or the revision, or asks for a token.
    """
    chosen = settings.annotations
    if chosen.repo:
        repo = Hub(settings.hub_endpoint, settings.download, log).repo(chosen.repo, chosen.revision)
        found = [
            file for file in repo.files(chosen.files) if Path(file.path).suffix.lower() in SUFFIXES
        ]
        if not found:
            raise AnnotationError(
                f"{chosen.repo}@{repo.commit}: no annotation file matches "
                f"{', '.join(chosen.files)} (annotations.files); accepted are {', '.join(SUFFIXES)}"
            )
        log(f"{chosen.repo}: {chosen.revision} is {repo.commit}, {len(found)} annotation files")
        disk = DiskGuard(scratch(storage), settings.download.min_free_bytes)

        def fetched(file: HubFile) -> Callable[[], AbstractContextManager[Path]]:
            @contextmanager
            def opened() -> Iterator[Path]:
                folder = scratch(storage, "annotations", file.checksum)
                disk.check(file.size)
                yield repo.download(file, folder / "file")
                clear(folder)

            return opened

        return [
            AnnotationFile(f.path, f.checksum, chosen.repo, repo.commit, fetched(f)) for f in found
        ]
    return [file for path in chosen.paths for file in _path_files(storage, path)]


def landing_files(settings: Settings, now: float | None = None) -> list[AnnotationFile]:
    """What lies in the landing folder and has not changed for a moment, by name."""
    if settings.landing is None or not settings.landing.is_dir():
        return []
    latest = (now or time.time()) - SETTLED_S
    paths = sorted(
        path
        for path in settings.landing.rglob("*")
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(step.startswith(".") for step in path.relative_to(settings.landing).parts)
        and path.stat().st_mtime <= latest
    )
    return [
        _local_file(path, f"landing/{path.relative_to(settings.landing).as_posix()}")
        for path in paths
    ]


def landing_fingerprint(settings: Settings) -> str:
    """Changes when a file lands, changes or goes; empty while there is nothing. Reads no content."""
    if settings.landing is None or not settings.landing.is_dir():
        return ""
    entries = [
        f"{path.relative_to(settings.landing)}:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        for path in sorted(settings.landing.rglob("*"))
        if path.is_file() and path.suffix.lower() in SUFFIXES
    ]
    return hashlib.sha256("\n".join(entries).encode()).hexdigest()[:32] if entries else ""


def _local_file(path: Path, name: str) -> AnnotationFile:
    checksum = hash_file(path)

    @contextmanager
    def opened() -> Iterator[Path]:
        yield path

    return AnnotationFile(name, checksum, name, checksum, opened)


def _path_files(storage: Storage, path: str) -> list[AnnotationFile]:
    if "://" not in path:
        local = Path(path)
        if local.is_dir():
            found = sorted(p for p in local.iterdir() if p.suffix.lower() in SUFFIXES)
            return [_local_file(p, p.name) for p in found]
        if not local.is_file():
            raise AnnotationError(f"{path}: no such file (annotations.paths in the settings)")
        return [_local_file(local, local.name)]
    target = (
        scratch(storage, "annotations")
        / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}-{Path(path).name}"
    )
    try:
        with fsspec.open(path, "rb") as remote, open(target, "wb") as local_copy:
            shutil.copyfileobj(remote, local_copy)
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file (annotations.paths in the settings)") from None
    return [_local_file(target, Path(urlsplit(path).path).name)]
