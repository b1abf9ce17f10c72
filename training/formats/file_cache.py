"""Local copies of remote files: fetched once by whoever needs them first, verified, bounded, least
recently used out.

Processes and ranks of one machine share the folder. Local roots need none of this: their files are
used in place.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from model.atomic import writing_file
from training.formats.hashing import hash_file_xxh64
from training.formats.storage import Storage

log = logging.getLogger(__name__)

DEFAULT_BYTES = 50 << 30
LOCKS = 64  # by name: two processes that want one file fetch it once, and lock files stay few


class DamagedFileError(ValueError):
    """A file whose size or hash is not what its index says."""


class FileCache:
    """Files of a storage by name; remote ones through a bounded folder on local disk.

    Args:
        storage: where the files are.
        folder: takes the copies of remote files.
        max_bytes: most that the folder holds. A file that is removed while it is open stays
            readable.
    """

    def __init__(
        self, storage: Storage, folder: Path | None = None, max_bytes: int = DEFAULT_BYTES
    ) -> None:
        self.storage, self.max_bytes = storage, max_bytes
        self.folder = Path(folder) if folder else storage.cache / "files"

    def path(
        self,
        rel: str,
        size: int | None = None,
        xxh64: str | None = None,
        *,
        version: str = "",
        check: Callable[[Path], None] | None = None,
    ) -> Path:
        """A local file with the content of `rel`.

        Args:
            size, xxh64: what the file must have, where that is known. A remote file is checked when
                it is fetched; a local one is taken as it is.
            version: tells contents of one name apart, where it is not the hash that does.
            check: looks at a fetched file before it is kept, and raises what is wrong with it.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFileError: the remote file is not what it should be, fetched twice.
            OSError: the disk or the store is at fault (see `machine_faults`).
        """
        if self.storage.is_local:
            return Path(self.storage.path(rel))
        name = hashlib.sha256(
            f"{self.storage.root}\0{rel}\0{xxh64 or version}".encode()
        ).hexdigest()[:32]
        target = self.folder / name[:2] / name
        if not target.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / f"lock-{int(name[:2], 16) % LOCKS}"):
                if not target.exists():
                    self._fetch_whole(
                        partial(self._fetch, rel, target, size, xxh64, check),
                        lambda: size or self.storage.size(rel),
                    )
        os.utime(target)
        return target

    def _fetch_whole(self, fetch: Callable[[], None], size: Callable[[], int]) -> None:
        """Fetch a file; once more where what came is not right, which the way may have done, and as
        long as a full disk has copies of this cache to give.

        Args:
            size: of the file, asked for where the disk is full.
        """
        again = True
        while True:
            try:
                return fetch()
            except DamagedFileError:
                if not again:
                    raise
                again = False
                self.storage.forget_listings()
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not full or not self._make_room(size()):
                    raise

    def _make_room(self, needed: int) -> bool:
        """Give up the least recently used copies on a disk that others have filled; whether there
        were any.
        """
        with locked(self.folder / "lock-evict"):
            held = sum(size for _, size, _ in self._copies())
            if not held:
                return False
            log.warning(
                "the disk of %s is full: copies there shrink from %d bytes", self.folder, held
            )
            self._evict(max(0, held - 2 * needed))
        return True

    def _fetch(
        self,
        rel: str,
        target: Path,
        size: int | None,
        xxh64: str | None,
        check: Callable[[Path], None] | None,
    ) -> None:
        actual = self.storage.size(rel)
        if size is not None and actual != size:
            raise DamagedFileError(
                f"{self.storage.path(rel)}: {actual:,} bytes, its index says {size:,}"
            )
        if actual > self.max_bytes:
            raise ValueError(
                f"{self.storage.path(rel)}: {actual:,} bytes do not fit into the cache of "
                f"{self.max_bytes:,}"
            )
        with writing_file(target, durable=False) as temporary:
            with locked(self.folder / "lock-evict"):
                self._evict(self.max_bytes - actual)
                # Takes its room at once, so that fetches beside this one count it.
                with open(temporary, "wb") as file:
                    os.truncate(file.fileno(), actual)
            self.storage.fs.get_file(self.storage.path(rel), str(temporary))
            if xxh64 is not None and hash_file_xxh64(temporary) != xxh64:
                raise DamagedFileError(
                    f"{self.storage.path(rel)}: its content does not hash to what its index says"
                )
            if check is not None:
                check(temporary)

    def _evict(self, allowed: int) -> None:
        """Remove least recently used copies until at most `allowed` bytes are left."""
        files = self._copies(unfinished=True)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda item: item[0]):
            if total <= allowed:
                return
            if not path.name.startswith("."):
                path.unlink(missing_ok=True)
                total -= size

    def _copies(self, unfinished: bool = False) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of each copy, and of those that are being fetched."""
        files = []
        for path in self.folder.glob("*/*"):
            if path.name.startswith(".") and not unfinished:
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # another process published or removed it just now
                continue
            files.append((status.st_mtime_ns, status.st_size, path))
        return files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """An exclusive lock between processes; the kernel frees it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
