"""What a server may be asked about: checkpoints and videos by name, uploads, and fetched URLs.

A name that comes from outside is looked up among those that were listed here. It never becomes a
path.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from assets.evaluation.gallery import GALLERY
from assets.fetching.options import Download
from assets.fetching.probe import InvalidVideo, ProbePool, check_video
from assets.inference.checkpoint import log_to_terminal
from assets.inference.fetch import local_video
from assets.records.lineage import all_records
from assets.sources.base import VIDEO_SUFFIXES
from training.formats import layout
from training.formats.storage import Storage

# In the order of the list.
CHECKPOINT_ASSETS = ("stage3", "stage2", "stage1", "base_model", "ablation")
LISTED_FOR_S = 60.0
KEPT_VIDEOS = 8  # uploads and fetched ones; the oldest makes room


@dataclass(frozen=True, slots=True)
class Fetching:
    """Whether and how a URL is fetched; see `assets.inference.fetch.local_video`."""

    hosts: tuple[str, ...] = ()
    accept_terms: bool = False
    limits: Download = field(default_factory=Download)


class Library:
    """A context manager: uploads and fetched videos are removed at its end.

    Args:
        checkpoints: name -> folder, besides those of the deployment.
        storage: of the deployment; None serves none of its own.
        roots: folders whose videos may be asked about.
        scratch: folder for uploads.
        upload_bytes: the largest.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Path],
        storage: Storage | None,
        roots: Sequence[Path],
        scratch: Path,
        *,
        fetching: Fetching | None = None,
        upload_bytes: int = 2 << 30,
    ) -> None:
        self._given, self._storage, self._roots = dict(checkpoints), storage, list(roots)
        self.scratch, self.fetching = scratch, fetching or Fetching()
        self.upload_bytes = upload_bytes
        self._videos: dict[str, Callable[[], Path]] = {}
        self._checkpoints: dict[str, Callable[[], Path]] = {}
        self._listed_at = -math.inf
        self._kept: OrderedDict[str, tuple[Path, ExitStack]] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Library:
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        while self._kept:
            self._forget_oldest()

    def checkpoints(self) -> dict[str, Callable[[], Path]]:
        """Name -> what gives the folder; the deployment's last stages first."""
        self._list()
        return self._checkpoints

    def _list_checkpoints(self) -> dict[str, Callable[[], Path]]:
        found: dict[str, Callable[[], Path]] = {}
        for name, folder in self._given.items():
            found[name] = lambda folder=folder: folder  # type: ignore[misc]
        if (storage := self._storage) is None:
            return found
        records = [r for r in all_records(storage) if r.asset in CHECKPOINT_ASSETS]
        for record in sorted(records, key=lambda r: CHECKPOINT_ASSETS.index(r.asset)):
            export = f"{record.folder}/export"
            found[record.product] = lambda rel=export: storage.local_folder(rel)  # type: ignore[misc]
        return found

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint.

        Raises:
            ValueError: there is none of that name; the names are told.
        """
        known = self.checkpoints()
        if name not in known:
            raise ValueError(f"no checkpoint {name!r}; there are {', '.join(known) or 'none'}")
        return known[name]()

    def gallery(self, variant: str) -> str | None:
        """The page of the evaluation of a variant (`assets/evaluation/gallery.py`), if there is
        one.
        """
        if (storage := self._storage) is None:
            return None
        made = {r.partition: r.folder for r in all_records(storage) if r.asset == "evaluation"}
        rel = f"{made.get(variant)}/{GALLERY}"
        if variant not in made or not storage.exists(rel):
            return None
        return storage.read_bytes(rel).decode()

    def videos(self, text: str = "", most: int = 200) -> list[str]:
        """Names of videos in which a text stands, the latest uploads first."""
        self._list()
        with self._lock:
            names = [*reversed(self._kept), *self._videos]
        return [name for name in names if text.lower() in name.lower()][:most]

    def video(self, name: str) -> Path:
        """The file of a video that `videos` has told.

        Raises:
            ValueError: there is none of that name.
            FileNotFoundError: it was removed since.
        """
        self._list()
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name][0]
            found = self._videos.get(name)
        if found is None:
            raise ValueError(f"no video {name!r}; take one that the server lists")
        path = found()
        if not path.is_file():
            raise FileNotFoundError(f"{name}: was removed meanwhile")
        return path

    def add(self, path: Path, shown: str) -> str:
        """Take over an uploaded file in `scratch`; returns its name.

        Raises:
            ValueError: too large, or not a sound video; the file is then removed.
        """
        try:
            if path.stat().st_size > self.upload_bytes:
                raise ValueError(f"{shown}: uploads end at {self.upload_bytes:,} bytes")
            with ProbePool() as probes:
                check_video(probes.probe(path), self.fetching.limits, None)
        except InvalidVideo as error:
            path.unlink()
            raise ValueError(f"{shown}: no usable video ({error.reason}): {error}") from error
        except ValueError:
            path.unlink()
            raise
        stack = ExitStack()
        stack.callback(path.unlink, missing_ok=True)
        return self._keep(f"upload/{path.stem[:8]} {_shown_name(shown)}", path, stack)

    def fetch(self, url: str) -> str:
        """Fetch a URL once; returns the video's name.

        Raises:
            ValueError: it may not or cannot be fetched.
        """
        name = f"fetched/{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        if "://" not in url:
            raise ValueError("a URL begins with http:// or https://")
        with self._lock:
            if name in self._kept:
                return name
        stack, rules = ExitStack(), self.fetching
        path = stack.enter_context(
            local_video(
                url,
                log_to_terminal,
                hosts=rules.hosts,
                accept_terms=rules.accept_terms,
                limits=rules.limits,
            )
        )
        return self._keep(name, path, stack)

    def new_file(self) -> Path:
        """A name in `scratch` for what is about to arrive."""
        if shutil.disk_usage(self.scratch).free < self.upload_bytes:
            raise ValueError("this machine's disk has no room for uploads")
        return self.scratch / f"{os.urandom(8).hex()}.video"

    def _keep(self, name: str, path: Path, stack: ExitStack) -> str:
        with self._lock:
            if name in self._kept:  # two have fetched it at once
                stack.close()
                return name
            self._kept[name] = path, stack
            while len(self._kept) > KEPT_VIDEOS:
                self._forget_oldest()
        return name

    def _forget_oldest(self) -> None:
        _, (_, stack) = self._kept.popitem(last=False)
        stack.close()

    def _list(self) -> None:
        """Look again at what there is, where the last look is old."""
        with self._lock:
            if time.monotonic() - self._listed_at < LISTED_FOR_S:
                return
            self._checkpoints, self._videos = self._list_checkpoints(), self._list_videos()
            self._listed_at = time.monotonic()

    def _list_videos(self) -> dict[str, Callable[[], Path]]:
        found: dict[str, Callable[[], Path]] = {}
        for root in self._roots:
            for folder, _, files in os.walk(root):  # does not follow links to folders
                for file in sorted(files):
                    path = Path(folder, file)
                    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_symlink():
                        name = f"{root.name}/{path.relative_to(root).as_posix()}"
                        found[name] = lambda path=path: path  # type: ignore[misc]
        if (storage := self._storage) is not None:
            for rel in sorted(storage.list(layout.VIDEOS)):
                if rel.lower().endswith(VIDEO_SUFFIXES):
                    name = rel.removeprefix(f"{layout.VIDEOS}/")
                    found[name] = lambda rel=rel: storage.local(rel)  # type: ignore[misc]
        return found


def _shown_name(text: str) -> str:
    """The name of an uploaded file as the list shows it."""
    kept = "".join(letter for letter in text if letter.isalnum() or letter in " ._-")
    return kept[-60:] or "video"
