"""Local files and folders that are either complete or not there.

What is written gets a temporary name beside its target and is published by one rename, so a reader
never sees half of it, also when the writer is killed. Remote roots: `training.formats.storage`.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
_ID_LENGTH = 12


@contextmanager
def writing_file(target: Path, durable: bool = True) -> Iterator[Path]:
    """A path to write to; the file there becomes `target` when the block ends well.

    When the block raises, the file is removed and `target` stays as it was. Missing parent folders
    are made.

    Args:
        target: the final path; a file that is there is replaced.
        durable: also survive a power cut. False for what can be fetched again: it saves a flush to
            the disk for each file.

    Raises:
        OSError: the file system refuses, or the block wrote nothing.
    """
    with _temporary(target) as temporary:
        yield temporary
        if durable:
            fsync_file(temporary)
        os.replace(temporary, target)
        if durable:
            fsync_folder(target.parent)


@contextmanager
def writing_folder(target: Path, durable: bool = True) -> Iterator[Path]:
    """An empty folder to fill; it becomes `target` when the block ends well.

    A folder that is there is replaced as a whole. Between two renames `target` does not exist for a
    moment. When the block raises, the new folder is removed and `target` stays as it was.

    Args:
        target: the final path.
        durable: as for `writing_file`; every file in the folder is flushed.

    Raises:
        OSError: the file system refuses.
    """
    with _temporary(target) as temporary:
        temporary.mkdir()
        yield temporary
        if durable:
            for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
                fsync_file(file)
        if target.is_dir():
            replaced = temporary_path(target.with_name("replaced"))
            os.rename(target, replaced)
            os.rename(temporary, target)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, target)
        if durable:
            fsync_folder(target.parent)


def remove_unfinished(target: Path) -> None:
    """Remove what killed writers of `target` left beside it. Only for who alone writes `target`."""
    pattern = f"{TEMPORARY_PREFIX}{'?' * _ID_LENGTH}-{glob.escape(target.name)}"
    for path in target.parent.glob(pattern):
        _remove(path)


def temporary_path(target: Path) -> Path:
    """A fresh name beside `target`, as the writers here use; whoever takes it also removes it."""
    return target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:_ID_LENGTH]}-{target.name}")


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A fresh path beside `target`, where publishing is one rename on one device."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
