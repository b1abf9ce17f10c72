"""The feature files of many videos below one root, local or remote."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from training.formats.feature_file import SUFFIX, FeatureFile, hash_content, read_header
from training.formats.file_cache import DamagedFileError, FileCache
from training.formats.machine_faults import gone, machine_fault
from training.formats.storage import Storage

DEFAULT_CACHE_BYTES = 200 << 30


class FeatureStore:
    """A folder of feature files. Local ones are mapped in place; remote ones through a bounded
    cache on local disk.

    Processes and ranks of one machine may share the cache folder. A file that is evicted while it
    is mapped stays readable until it is closed.

    Args:
        storage: where the files are.
        folder: the folder in it that holds `<source>/<id>.safetensors`; empty when that is the
            storage's root.
        cache: local folder for copies of remote files; by default one beside the storage's own
            cache.
        max_bytes: most that the cache holds; the least recently used files go first.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str = "",
        cache: Path | str | None = None,
        max_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        self.storage, self.folder = storage, folder.strip("/")
        self.files = FileCache(
            storage, Path(cache) if cache else storage.cache / "features", max_bytes
        )
        self._whole: dict[str, str] = {}  # video -> stamp of its file when its hash held

    def rel(self, video: str) -> str:
        """Where the features of `<source>/<id>` lie in the storage."""
        return f"{self.folder}/{video}{SUFFIX}".lstrip("/")

    def exists(self, video: str) -> bool:
        """Whether the video has features."""
        return self.storage.exists(self.rel(video))

    def open(self, video: str) -> FeatureFile:
        """The features of `<source>/<id>`.

        Raises:
            FileNotFoundError: they were not extracted (or the video is quarantined).
            ValueError: it is not a feature file, its copy does not hash to what its header says, or
                the cache is too small for it.
            Exception: the machine is at fault (see `machine_faults`).
        """
        rel = self.rel(video)
        try:
            return self._open(rel)
        except FileNotFoundError as error:
            if machine_fault(error):
                raise
            if self.storage.is_local and (fault := gone(Path(self.storage.path(self.folder)))):
                raise fault from error
            raise FileNotFoundError(
                f"{self.storage.path(rel)}: no features of {video!r}; materialize the features of "
                "its part, or look for it among the quarantined videos there"
            ) from None

    def open_whole(self, video: str) -> FeatureFile:
        """As `open`, and the tensors of a local file hash to what its header says, too.

        A file is hashed once by a process, and again when the file system says that it changed.
        """
        file = self.open(video)
        if self.storage.is_local:
            stamp = self.storage.stamp(self.rel(video))
            if self._whole.get(video) != stamp:
                _check_content(file.path, str(file.path))
                self._whole[video] = stamp
        return file

    def _open(self, rel: str) -> FeatureFile:
        if self.storage.is_local:
            return FeatureFile(self.files.path(rel))
        url = self.storage.path(rel)
        version, check = str(self.storage.fs.checksum(url)), partial(_check_content, name=url)
        for last_try in (False, False, True):
            try:
                return FeatureFile(self.files.path(rel, version=version, check=check))
            except FileNotFoundError:  # evicted by another process before it was opened
                if last_try:
                    raise
        raise AssertionError("the loop returns or raises")


def _check_content(path: Path, name: str) -> None:
    """Whether a fetched file's tensors hash to what its header says."""
    with open(path, "rb") as file:
        promised = read_header(file, os.fstat(file.fileno()).st_size, name).content
    if (found := hash_content(path)) != promised:
        raise DamagedFileError(
            f"{name}: content hashes to {found}, its header says {promised}; extract it again"
        )
