"""One way to read and publish files, on a local folder or any fsspec URL.

Everything is written under a temporary name and published by one rename (local) or one upload
(object store): what has a final name is complete. Names passed in are POSIX paths relative to the
root.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from model.atomic import TEMPORARY_PREFIX, remove_unfinished, writing_file, writing_folder

MARKERS = ("index.json", "lineage.json")  # written last: a folder that has them is complete
COPIES = "copies"
UNUSED_S = 7 * 24 * 3600  # a copy of a remote file that nobody read for so long is removed


class Storage:
    """A root folder or URL, and the files below it.

    Args:
        root: a local path or any fsspec URL (`s3://bucket/prefix`, `memory://x`).
        cache: where copies of remote files are kept for reading, until nobody read them for a week;
            a per-root folder under the system's temporary directory by default. Unused for a local
            root.
    """

    def __init__(self, root: str, cache: Path | None = None) -> None:
        filesystem, base = fsspec.url_to_fs(str(root))
        self.fs: fsspec.AbstractFileSystem = filesystem
        self.is_local = isinstance(filesystem, LocalFileSystem)
        self.base = os.path.abspath(base) if self.is_local else base.rstrip("/")
        self.root = self.base if self.is_local else str(root).rstrip("/")
        digest = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.cache = cache or Path(tempfile.gettempdir()) / f"hourllava-cache-{digest}"

    def __repr__(self) -> str:
        return f"Storage({self.root!r})"

    def path(self, rel: str = "") -> str:
        """Full path or URL of `rel`.

        Raises:
            ValueError: `rel` is absolute or leaves the root.
        """
        return f"{self.root}/{_checked(rel)}" if rel else self.root

    def exists(self, rel: str) -> bool:
        """Whether there is a file or a folder `rel`."""
        return bool(self.fs.exists(self._inner(rel)))

    def size(self, rel: str) -> int:
        """Bytes of the file `rel`."""
        return int(self.fs.size(self._inner(rel)))

    def stamp(self, rel: str) -> str:
        """What the file system says of the file `rel` without reading it: it is another text as
        soon as somebody has written there.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.is_local:
            stat = os.stat(self._inner(rel))
            return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
        return str(self.fs.checksum(self._inner(rel)))

    def age(self, rel: str) -> float:
        """Seconds since the file `rel` was changed; infinite on an object store, whose stamps
        change with the content.
        """
        return time.time() - os.stat(self._inner(rel)).st_ctime if self.is_local else math.inf

    def forget_listings(self) -> None:
        """Ask the store again from now on, where its client remembers what it was told."""
        self.fs.invalidate_cache()

    def list(self, rel: str = "", suffix: str = "") -> list[str]:
        """Sorted names, relative to the root, of all files below the folder `rel`; temporary ones
        are left out.
        """
        folder = self._inner(rel)
        if not self.fs.exists(folder):
            return []
        prefix_length = len(self.base.rstrip("/")) + 1
        names = (str(found)[prefix_length:] for found in self.fs.find(folder))
        return sorted(
            name
            for name in names
            if name.endswith(suffix)
            and not any(p.startswith(TEMPORARY_PREFIX) for p in name.split("/"))
        )

    def sizes(self, rel: str = "") -> dict[str, int | None]:
        """Bytes of every file below the folder `rel`, by its name relative to that folder, from one
        walk or listing; None where a listing tells no sizes.
        """
        folder = self._inner(rel).rstrip("/")
        found = self.fs.find(folder, detail=True)
        return {str(name)[len(folder) + 1 :]: facts.get("size") for name, facts in found.items()}

    def open(self, rel: str) -> Any:
        """A binary file object for reading."""
        return self.fs.open(self._inner(rel), "rb")

    def read_bytes(self, rel: str) -> bytes:
        """Content of the file `rel`.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return bytes(self.fs.cat_file(self._inner(rel)))

    def read_json(self, rel: str) -> Any:
        """The JSON value in the file `rel`; raises as `read_bytes`, and ValueError for no JSON."""
        return json.loads(self.read_bytes(rel))

    def local(self, rel: str) -> Path:
        """A local file with the content of `rel`: the file itself, or a cached copy of a remote
        one.

        A cached copy is fetched again when the remote's size or checksum changed.
        """
        if self.is_local:
            return Path(self._inner(rel))
        inner = self._inner(rel)
        version = hashlib.sha256(str(self.fs.checksum(inner)).encode()).hexdigest()[:16]
        target = self.cache / COPIES / version / rel
        if not target.exists():
            self._remove_unused_copies()
            with writing_file(target, durable=False) as temporary:
                self.fs.get_file(inner, str(temporary))
        os.utime(self.cache / COPIES / version)
        return target

    def local_folder(self, rel: str) -> Path:
        """A local folder with the files below `rel`: the folder itself, or a cached copy of a
        remote one.

        A cached copy is fetched again when any of the remote files changed.
        """
        if self.is_local:
            return Path(self._inner(rel))
        names = self.list(rel)
        if not names:
            raise FileNotFoundError(f"{self.path(rel)}: there is no such folder")
        state = [(name, str(self.fs.checksum(self._inner(name)))) for name in names]
        version = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
        target = self.cache / COPIES / version / _checked(rel)
        if not target.exists():
            self._remove_unused_copies()
            with writing_folder(target, durable=False) as temporary:
                for name in names:
                    file = temporary / PurePosixPath(name).relative_to(_checked(rel))
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(self._inner(name), str(file))
        os.utime(self.cache / COPIES / version)
        return target

    def _remove_unused_copies(self) -> None:
        """Remove copies that nobody asked for lately."""
        for copy in (self.cache / COPIES).glob("*"):
            with suppress(FileNotFoundError):  # another process removes it at this moment
                if time.time() - copy.stat().st_mtime > UNUSED_S:
                    shutil.rmtree(copy)

    @contextmanager
    def writing(self, rel: str) -> Iterator[Path]:
        """A temporary local file that becomes `rel` when the block ends well, and vanishes when it
        does not.
        """
        target = self._inner(rel)
        if self.is_local:
            with writing_file(Path(target)) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix="hourllava-upload-") as folder:
                temporary = Path(folder) / Path(target).name
                yield temporary
                self.fs.put_file(str(temporary), target)

    @contextmanager
    def writing_folder(self, rel: str) -> Iterator[Path]:
        """A temporary local folder that replaces the folder `rel` when the block ends well.

        On an object store several files are uploaded at a time, except the markers `index.json`
        and `lineage.json`: those of the folder that is replaced go first and the new ones come
        last, so that a folder with markers is complete at every moment.
        """
        target = self._inner(rel)
        if self.is_local:
            with writing_folder(Path(target)) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix="hourllava-upload-") as folder:
                temporary = Path(folder)
                yield temporary
                self._replace_remote_folder(temporary, target)

    def _replace_remote_folder(self, source: Path, target: str) -> None:
        """Upload the files below `source` in place of those below `target`, in an order that never
        shows markers on an incomplete folder.
        """
        if self.fs.exists(target):
            old = sorted(self.fs.find(target))
            for last in (True, False):
                if some := [name for name in old if (name.rpartition("/")[2] in MARKERS) is last]:
                    self.fs.rm(some)
        files = sorted(path for path in source.rglob("*") if path.is_file())
        for last in (False, True):
            some = [path for path in files if (path.name in MARKERS) is last]
            self._put({f"{target}/{path.relative_to(source).as_posix()}": path for path in some})

    def upload(self, files: Mapping[str, Path]) -> None:
        """Publish local files under these names of a remote root, several at a time and in no
        order.

        Raises:
            FileNotFoundError: one of them is not there any more.
        """
        self._put({self._inner(rel): path for rel, path in files.items()})

    def _put(self, files: Mapping[str, Path]) -> None:
        # Lists: the clients of object stores then send many files at once.
        if files:
            self.fs.put([str(path) for path in files.values()], list(files))

    def remove_unfinished(self, rel: str) -> None:
        """Remove what killed writers of the file `rel` left beside it. Only for who alone writes
        it.
        """
        if self.is_local:
            remove_unfinished(Path(self._inner(rel)))

    def write_json(self, rel: str, value: Any) -> None:
        """Publish a JSON value, keys sorted, as the file `rel`."""
        with self.writing(rel) as temporary:
            temporary.write_text(
                json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
            )

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Publish bytes as the file `rel`."""
        with self.writing(rel) as temporary:
            temporary.write_bytes(data)

    def remove(self, rel: str) -> None:
        """Remove a file or a folder; nothing happens when it does not exist."""
        inner = self._inner(rel)
        if not self.fs.exists(inner):
            return
        if self.is_local or not glob.has_magic(inner):
            self.fs.rm(inner, recursive=True)
        else:  # a name and not a pattern: `rm` would remove `What1.mp4` for `What?.mp4` as well
            for name in self.fs.find(inner):
                self.fs.rm_file(name)

    def move(self, rel: str, target: str) -> None:
        """Rename a file or a folder; on an object store it is copied, then removed."""
        inner, wanted = self._inner(rel), self._inner(target)
        if self.is_local:
            os.makedirs(os.path.dirname(wanted), exist_ok=True)
            os.rename(inner, wanted)
        else:
            names = self.fs.find(inner)
            # Lists: a name alone is taken for a pattern.
            self.fs.copy(names, [f"{wanted}{name[len(inner) :]}" for name in names])
            self.remove(rel)

    def _inner(self, rel: str) -> str:
        """What the file system calls `rel`: unlike `path`, without the protocol of a URL."""
        return f"{self.base}/{_checked(rel)}" if rel else self.base


def _checked(rel: str) -> str:
    pure = PurePosixPath(rel)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{rel!r} leaves the storage root; names are relative and hold no '..'")
    return rel.strip("/")
