"""Videos that a person puts into a folder: licensed sets such as Ego4D, or one's own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from assets.fetching.errors import TransferError
from assets.fetching.retry import raise_if_disk
from assets.sources.base import (
    MANUAL_MISSING,
    NEEDS_OPERATOR,
    PERMANENT,
    TRANSIENT,
    VIDEO_SUFFIXES,
    FetchContext,
    Fetched,
    Fetcher,
    Outcome,
    Source,
    VideoFiles,
    VideoRow,
    composed,
    ids_of,
)
from assets.sources.findings import MISSING, NOTE, OK, Finding
from assets.sources.instructions import EGO4D, OTHERS, listed_for_ego4d
from training.formats import layout

SETTLED_S = 10.0  # a file that was changed so long ago is not being copied any more
LOOK_AGAIN_S = 0.5  # between two looks at one that was changed later
COPIED_BYTES = 1 << 22
NAMED = 5  # videos that a line for a person names


class DropSource(Source):
    """Videos that a person puts into a folder: licensed sets such as Ego4D, or one's own."""

    kind: Literal["drop"]
    folder: Path = Field(description="where the files lie; folders in it are looked through")
    instructions: str = Field(
        default="", description="how to obtain the files; shown when videos are missing"
    )

    def fetcher(self, context: FetchContext) -> DropFetcher:
        return DropFetcher(self, context.log)

    def notes(self, context: FetchContext, missing: list[str]) -> list[str]:
        """How to obtain what is missing. One list of it, of all parts, is written below the root:
        what a person fetches for one part, they fetch for all.
        """
        name = layout.catalogue(context.source, "missing.txt")
        ids, text, more = sorted({*missing, *context.missing_ids()}), OTHERS, ""
        if context.source == "ego4d":
            text = EGO4D
            ids, more = listed_for_ego4d(ids, self.folder)
        context.storage.write_bytes(name, "".join(f"{one}\n" for one in ids).encode())
        text = (self.instructions or text) + more
        return [
            text.replace("{folder}", str(self.folder)).replace("{list}", context.storage.path(name))
        ]

    def files_of(self, identifier: str) -> list[Path]:
        """The files below the folder that may be a video."""
        files = VideoFiles(_paths_below(self.folder, lambda line: None))
        return [self.folder / name for name in sorted(files.that_may_be(identifier))]

    def findings(self, name: str, asked: Collection[str]) -> Iterator[Finding]:
        what, correct = f"source {name}", f"put the files there, or correct sources.{name}.folder"
        if not self.folder.is_dir() and asked:
            found = f"no folder {self.folder}, and rows ask for {len(asked):,} of its videos"
            yield Finding(what, MISSING, found, f"make the folder and {correct}")
            return
        if not self.folder.is_dir():
            advice = (
                "make the folder and put files there; until then its videos are listed as missing"
            )
            yield Finding(what, NOTE, f"no folder {self.folder}", advice)
            return
        files = VideoFiles(_paths_below(self.folder, lambda line: None) if asked else ())
        lacking = [one for one in sorted(asked) if not files.that_may_be(one)]
        some = ", ".join(lacking[:NAMED]) + (", ..." if len(lacking) > NAMED else "")
        if not lacking:
            yield Finding(what, OK, f"drop folder {self.folder}")
        elif len(lacking) == len(asked):
            found = f"{self.folder} has none of the {len(asked):,} videos that rows ask for: {some}"
            yield Finding(what, MISSING, found, correct)
        else:
            found = f"{self.folder} lacks {len(lacking):,} of the {len(asked):,} videos that rows "
            advice = "put the files there; until then these videos are listed as missing"
            yield Finding(what, NOTE, f"{found}ask for: {some}", advice)

    def ids_of(self, text: str) -> list[str]:
        """The ids of the videos that a file of the folder may be; none of any other path.

        Args:
            text: path of the file, whether it is there or not; a relative one counts from the
                current folder.
        """
        if not text.lower().endswith(VIDEO_SUFFIXES):
            return []
        path = Path(os.path.abspath(text))
        # A folder of the path may be a link, whose videos are found under its own name or where
        # it leads; a link to a file is a file of its own name, unless it lies elsewhere.
        ways = (path, Path(os.path.realpath(path.parent), path.name))
        below = [name for way in ways if (name := self._below(way))]
        if not below and (name := self._below(Path(os.path.realpath(path)))):
            below = [name]
        return list(dict.fromkeys(one for name in below for one in ids_of(name)))

    def _below(self, path: Path) -> str | None:
        """The path of a file from the folder on; None where it lies elsewhere."""
        for parent in path.parents:
            if _is_same_folder(parent, self.folder):
                return path.relative_to(parent).as_posix()
        return None


class DropFetcher(Fetcher):
    """Adopts files from a folder by their name. The folder itself is never changed.

    A file on the same disk is linked, not copied: both names then stand for the same bytes. Nothing
    here writes into a video that is there. Where its owner does, the file is no longer what was
    recorded; it is then set aside like any damaged file, and adopted again as it is.
    """

    min_interval_s = 0.0

    def __init__(self, source: DropSource, log: Callable[[str], None]) -> None:
        self.source, self.log = source, log
        self.found: dict[str, Path] = {}
        self._copies_noted = False
        self._stats: dict[str, list[list[Any]]] = {}
        self._looks: dict[str, _Look] = {}

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """`place`: the files that may be the video, each with its size and time of change."""
        return {"place": self._files}

    @cached_property
    def _dropped(self) -> VideoFiles:
        """The files below the folder, by their paths there."""
        return VideoFiles(_paths_below(self.source.folder, self.log))

    def _candidates(self, row: VideoRow) -> list[Path]:
        """The files that may be a video."""
        found: dict[Any, Path] = {}
        for name in sorted(self._dropped.that_may_be(row.id)):
            path = self.source.folder / name
            with suppress(OSError):  # taken away at this moment
                stat = path.stat()
                found.setdefault((stat.st_dev, stat.st_ino), path)  # a link to it is no other
        return list(found.values())

    def _files(self, row: VideoRow) -> list[list[Any]]:
        """Path, size and time of change of each file that may be the video, at the first look of
        this run.
        """
        if row.id not in self._stats:
            found = []
            for path in self._candidates(row):
                with suppress(OSError):  # taken away at this moment
                    look = self._looks[row.id] = _Look.at_path(path)
                    found.append([self._name(path), look.size, look.changed_ns])
            self._stats[row.id] = found
        return self._stats[row.id]

    def _name(self, path: Path) -> str:
        """A file as records call it: they hold no bytes that are no text."""
        below = path.relative_to(self.source.folder).as_posix()
        return below.encode(errors="replace").decode()

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        folder = self.source.folder
        outcomes = {}
        for row in rows:
            self._files(row)  # before it is read: what changes meanwhile is another file
            paths = self._candidates(row)
            if len(paths) > 1:
                several = f"several files could be it: {', '.join(map(self._name, paths))}"
                outcomes[row.id] = Outcome(PERMANENT, "ambiguous", several[:500])
            elif paths:
                self.found[row.id] = paths[0]
            else:
                outcomes[row.id] = Outcome(MANUAL_MISSING, "not_dropped", f"not below {folder}")
        return outcomes

    def host(self, row: VideoRow) -> str:
        return "folder"

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        dropped, target = self.found[row.id], folder / "file"
        self._wait_for_writer(row, dropped)
        target.unlink(missing_ok=True)
        # The file itself, never the link to it: a link leads elsewhere once one of both is moved.
        real = Path(os.path.realpath(dropped))
        try:
            os.link(real, target)  # no second copy of terabytes where the disk is the same
        except OSError as error:
            if not self._copies_noted:
                self._copies_noted = True
                self.log(f"{self.source.folder}: files are copied, not linked ({error.strerror})")
            self._copy(dropped, real, target)
        location = f"{self.source.folder}/{self._name(dropped)}"
        return Fetched(target, location, checked=True)

    def _wait_for_writer(self, row: VideoRow, path: Path) -> None:
        """Look a second time at a file that was changed a moment before the first look.

        Raises:
            TransferError: somebody is still writing it, or took it away.
        """
        before = self._looks[row.id]
        if not before.is_settled:
            time.sleep(max(before.at + LOOK_AGAIN_S - time.monotonic(), 0.0))
        try:
            look = self._looks[row.id] = _Look.at_path(path)
        except OSError as error:
            raise self._unreadable(path, error) from error
        if (look.size, look.changed_ns) != (before.size, before.changed_ns):
            raise TransferError(
                TRANSIENT,
                "still_copied",
                f"{self._name(path)} is still being written, {look.size / 1e6:,.1f} MB so far; it "
                "is tried again by itself",
            )

    def _copy(self, dropped: Path, real: Path, target: Path) -> None:
        """Copy a file. What hinders reading is the file's, what hinders writing is the disk's."""
        try:
            source = open(real, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            raise self._unreadable(dropped, error) from error
        try:
            with source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, COPIED_BYTES)
        except OSError as error:
            raise_if_disk(error)
            raise self._unreadable(dropped, error) from error

    def _unreadable(self, path: Path, error: OSError) -> TransferError:
        said = f"{self._name(path)}: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            return TransferError(MANUAL_MISSING, "not_dropped", f"{said}; it was taken away")
        return TransferError(
            NEEDS_OPERATOR, "not_readable", f"{said}; make it readable, and run again"
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a file: its size and time of change, and when that was (monotonic)."""

    size: int
    changed_ns: int
    at: float
    is_settled: bool

    @staticmethod
    def at_path(path: Path) -> _Look:
        stat = path.stat()
        # Also a time to come, of a server whose clock is ahead, says nothing.
        is_settled = abs(time.time() - stat.st_mtime) > SETTLED_S
        return _Look(stat.st_size, stat.st_mtime_ns, time.monotonic(), is_settled)


def _is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, also in another form of Unicode or through a link."""
    if composed(str(one)) == composed(str(other)):
        return True
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # not there, or a name that no file can have
        return False


def _paths_below(folder: Path, log: Callable[[str], None]) -> Iterator[str]:
    """The files below a folder that are called like videos, by their paths there."""
    return (path.relative_to(folder).as_posix() for path in video_files(folder, log))


def video_files(folder: Path, log: Callable[[str], None]) -> Iterator[Path]:
    """Files below a folder that are called like videos, also behind links to files and folders.

    What lies in the folder itself comes before what links lead to. A folder that is reached on two
    ways is walked once, so that links in a circle end.
    """

    def refused(error: OSError) -> None:
        log(f"{error.filename}: {error.strerror}; what lies there is not seen")

    walked: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=refused):
            stat = os.stat(parent)
            if (stat.st_dev, stat.st_ino) in walked:
                folders.clear()
                continue
            walked.add((stat.st_dev, stat.st_ino))
            folders.sort()
            waiting += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
            for name in sorted(names):
                if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                    path = Path(parent, name)
                    if path.is_file():
                        yield path
                    else:  # a pipe, a link to nothing
                        log(f"{path}: there is no file behind it; it is left alone")
