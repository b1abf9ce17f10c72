"""Folders for work in progress, and the guard that stops work before the disk is full.

Under a local root these folders lie beside the data, so that publishing is one rename.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from assets.fetching.errors import DiskFullError
from model.atomic import TEMPORARY_PREFIX
from training.formats.storage import Storage

INCOMING = f"{TEMPORARY_PREFIX}incoming"
TRIES = 100  # to make a folder where others remove empty ones


def scratch(storage: Storage, *steps: str) -> Path:
    """A folder for work in progress, created if needed. It survives a kill.

    For a remote root it lies in this machine's cache.
    """
    base = Path(storage.root) if storage.is_local else storage.cache
    folder = base.joinpath(INCOMING, *steps)
    for left in reversed(range(TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except (FileNotFoundError, FileExistsError):
            # Whoever is done with the last folder beside it removes the empty ones above both.
            if not left:
                raise
    return folder


class DiskGuard:
    """Stops work before the disk is full.

    Args:
        folder: on the disk in question.
        min_free_bytes: what must stay free.
    """

    EVERY_BYTES = 64 << 20

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self.folder, self.min_free_bytes = folder, min_free_bytes
        self._since_check = 0

    def check(self, coming: int = 0) -> None:
        """Look at the free space.

        Args:
            coming: bytes that are about to be written.

        Raises:
            DiskFullError: less is free, or will be after those bytes, than must stay free.
        """
        free = shutil.disk_usage(self.folder).free - coming
        if free < self.min_free_bytes:
            raise DiskFullError(
                f"{self.folder}: {free / 2**30:.1f} GiB free, download.min_free_bytes asks for "
                f"{self.min_free_bytes / 2**30:.1f} GiB; free some space and run again"
            )

    def watch(self, count: int) -> None:
        """Count `count` bytes that were written; `check` after each 64 MiB.

        Raises:
            DiskFullError: as `check`.
        """
        self._since_check += count
        if self._since_check >= self.EVERY_BYTES:
            self._since_check = 0
            self.check()


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder and the empty ones above it, up to the scratch root."""
    shutil.rmtree(folder, ignore_errors=True)
    remove_empty(folder.parent)


def remove_empty(folder: Path) -> None:
    """Remove a scratch folder if it is empty, and the empty ones above it."""
    while INCOMING in folder.parts:
        try:
            os.rmdir(folder)
        except OSError:  # something else is still being worked on
            return
        folder = folder.parent
