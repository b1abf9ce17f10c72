"""The annotation files that the settings name: on the hub, on this machine, or at an address."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, remove_scratch, scratch
from assets.fetching.errors import AnnotationError
from assets.fetching.hub import Hub, HubFile, HubRepo
from assets.fetching.table_files import SUFFIXES
from training.formats.hashing import hash_file
from training.formats.storage import Storage


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """One annotation file.

    Attributes:
        name: as messages show it.
        checksum: of its content.
        origin: the repository or the file, as lineage names it.
        version: the repository's commit, or the file's checksum.
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
    """The files that `annotations` in the settings names, by name. Files of the hub are only
    listed; they are fetched when they are opened.

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
        return [_hub_file(storage, repo, disk, file) for file in found]
    return [file for path in chosen.paths for file in _path_files(storage, path)]


def _hub_file(storage: Storage, repo: HubRepo, disk: DiskGuard, file: HubFile) -> AnnotationFile:
    @contextmanager
    def opened() -> Iterator[Path]:
        folder = scratch(storage, "annotations", file.checksum)
        disk.check(file.size)
        yield repo.download(file, folder / "file")
        remove_scratch(folder)

    return AnnotationFile(file.path, file.checksum, repo.repo, repo.commit, opened)


def local_file(path: Path, name: str) -> AnnotationFile:
    """A file of this machine, which messages and lineage call `name`."""
    checksum = hash_file(path)

    @contextmanager
    def opened() -> Iterator[Path]:
        yield path

    return AnnotationFile(name, checksum, name, checksum, opened)


def is_address(path: str) -> bool:
    """Whether one of `annotations.paths` lies elsewhere than on this machine."""
    return "://" in path


def local_paths(path: str) -> list[Path]:
    """The annotation files of one of `annotations.paths` that is a file or a folder.

    Raises:
        AnnotationError: there is no such file.
    """
    local = Path(path)
    if local.is_dir():
        return sorted(p for p in local.iterdir() if p.suffix.lower() in SUFFIXES)
    if not local.is_file():
        raise AnnotationError(f"{path}: no such file (annotations.paths in the settings)")
    return [local]


def _path_files(storage: Storage, path: str) -> list[AnnotationFile]:
    """The annotation files of one of `annotations.paths`: a file, a folder or an address."""
    if not is_address(path):
        return [local_file(local, local.name) for local in local_paths(path)]
    # Two addresses may end in the same name: the hash keeps their copies apart.
    prefix = hashlib.sha256(path.encode()).hexdigest()[:16]
    target = scratch(storage, "annotations") / f"{prefix}-{Path(path).name}"
    try:
        with fsspec.open(path, "rb") as remote, open(target, "wb") as local_copy:
            shutil.copyfileobj(remote, local_copy)
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file (annotations.paths in the settings)") from None
    return [local_file(target, Path(urlsplit(path).path).name)]
