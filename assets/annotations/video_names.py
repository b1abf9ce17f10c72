"""Which video a row is about, whatever way the row writes it.

`videos/panda/x.mp4`, `panda/x.mp4` and `x.mp4` with the source panda are the same video:
`panda/x`. `C:\\clips\\x.mp4` and `https://host/clips/x.mp4` name it by their last step, a YouTube
address by its id. Names are compared in the composed form of Unicode: macOS writes the other one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from assets.sources.base import VIDEO_SUFFIXES, composed
from assets.sources.listed import youtube_id

# Other names of the sources, as data sets write them.
SOURCE_NAMES = {
    "anet": "activitynet",
    "activitynetqa": "activitynet",
    "moviechat-1k": "moviechat",
    "moviechat1k": "moviechat",
    "panda70m": "panda",
    "panda-70m": "panda",
    "youcookii": "youcook2",
}
# What an id loses. Some data sets name feature files (.pt) instead of videos.
NAME_SUFFIXES = (*VIDEO_SUFFIXES, ".pt", "")
LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary names add to them
REMEMBERED = 100_000  # names; files have many rows about one video
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_OF_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")  # a drive, or another machine


class RejectedRow(Exception):
    """A row that cannot be used; the text is the reason under which it is counted."""


class VideoNames:
    """Finds the video of a row.

    Args:
        sources: the configured source names; rows of other sources are rejected.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        names = list(sources)
        self._only = names[0] if len(names) == 1 else None
        self._sources = {name.lower(): name for name in names}
        self._sources |= {
            alias: self._sources[name]
            for alias, name in SOURCE_NAMES.items()
            if name in self._sources
        }
        self._found: dict[tuple[Any, Any], tuple[str, str]] = {}
        self._addresses: dict[tuple[str, str], str] = {}

    @property
    def names(self) -> list[str]:
        """The configured sources."""
        return sorted(set(self._sources.values()))

    def find(self, video: Any, source: Any) -> tuple[str, str]:
        """Source and id of the video, from the values of a row.

        Raises:
            RejectedRow: no video, an unknown source or none, a path that leaves its folder, a name
                that no file could have, an address that names no file or is the second one of a
                name.
        """
        if not isinstance(video, str | int) or isinstance(video, bool):
            raise RejectedRow("no_video")
        if isinstance(video, int) and abs(video) >= 10**LONGEST_NAME:
            raise RejectedRow("unsafe_video_path")
        if source is not None and not isinstance(source, str | int):
            raise RejectedRow("unknown_source")
        key = (video, source)
        found = self._found.get(key)
        if found is None:
            if len(self._found) > REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._parse(str(video).strip(), source)
        return found

    def _parse(self, video: str, source: Any) -> tuple[str, str]:
        if not _ADDRESS.match(video):
            return self._of_path(_without_drive(video), source)
        name = _name_in_address(video)
        found = self._of_path(name, source)
        # Two addresses that end alike are two videos, and an id can stand for one of them only.
        if len(self._addresses) > REMEMBERED:
            self._addresses.clear()
        is_id = found[1] == name  # of YouTube, which has many addresses for it; a file has a suffix
        if self._addresses.setdefault(found, video) != video and not is_id:
            raise RejectedRow("two_addresses_of_one_name")
        return found

    def _of_path(self, video: str, source: Any) -> tuple[str, str]:
        path = composed(video).replace("\\", "/")
        steps = [step for step in path.split("/") if step not in ("", ".")]
        if path.startswith("/") or ".." in steps or not steps:
            raise RejectedRow("unsafe_video_path")
        stated = None if source is None else self._sources.get(str(source).strip().lower())
        if source is not None and stated is None:
            raise RejectedRow("unknown_source")
        for index, step in enumerate(steps[:-1]):
            in_path = self._sources.get(step.lower())
            if in_path:
                if stated and in_path != stated:
                    raise RejectedRow("source_conflict")
                stated, steps = in_path, steps[index + 1 :]
                break
        name = stated or self._only
        if name is None:
            raise RejectedRow("no_source")
        stem, suffix = posixpath.splitext(steps[-1])
        steps[-1] = stem if suffix.lower() in NAME_SUFFIXES else steps[-1]
        if not all(map(_is_safe, steps)):
            raise RejectedRow("unsafe_video_path")
        return name, "/".join(steps)


def _without_drive(video: str) -> str:
    """A path of another machine as its last step: its folders are nobody's here."""
    if _OF_WINDOWS.match(video):
        return re.split(r"[\\/]", video)[-1]
    return video


def _name_in_address(address: str) -> str:
    """The name of the video that an address leads to.

    Raises:
        RejectedRow: it names no file.
    """
    try:
        if found := youtube_id(address):
            return found
        parts = urlsplit(address)
    except ValueError:  # brackets that are no IPv6 address
        raise RejectedRow("no_name_in_address") from None
    name = unquote(parts.path).replace("\\", "/").rpartition("/")[2]
    is_file = posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES
    if not name or (parts.query and not is_file):  # "watch?v=1": the path is the same for all
        raise RejectedRow("no_name_in_address")
    return name


def _is_safe(name: str) -> bool:
    if not name.isprintable() or name.startswith("."):  # half a surrogate pair is not printable
        return False
    return 0 < len(name.encode()) <= LONGEST_NAME
