"""Which video a row is about, whatever way the row writes it.

`videos/panda/x.mp4`, `panda/x.mp4` and `x.mp4` with the source panda are the same video:
`panda/x`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import Any

from assets.sources.base import VIDEO_SUFFIXES

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

    def find(self, video: Any, source: Any) -> tuple[str, str]:
        """Source and id of the video, from the values of a row.

        Raises:
            RejectedRow: no video, an unknown source, a path that leaves its folder, a name that no
                file could have.
        """
        if not isinstance(video, str | int) or isinstance(video, bool):
            raise RejectedRow("no_video")
        if source is not None and not isinstance(source, str | int):
            raise RejectedRow("unknown_source")
        key = (video, source)
        found = self._found.get(key)
        if found is None:
            if len(self._found) > REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._parse(str(video), source)
        return found

    def _parse(self, video: str, source: Any) -> tuple[str, str]:
        path = video.replace("\\", "/")
        steps = [step for step in path.split("/") if step not in ("", ".")]
        if path.startswith("/") or ".." in steps or not steps:
            raise RejectedRow("unsafe_video_path")
        stated = self._sources.get(str(source).strip().lower()) if source is not None else None
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
            raise RejectedRow("unknown_source")
        stem, suffix = posixpath.splitext(steps[-1])
        steps[-1] = stem if suffix.lower() in NAME_SUFFIXES else steps[-1]
        if not all(map(_is_safe, steps)):
            raise RejectedRow("unsafe_video_path")
        return name, "/".join(steps)


def _is_safe(name: str) -> bool:
    if not name.isprintable() or name.startswith("."):  # half a surrogate pair is not printable
        return False
    return 0 < len(name.encode()) <= LONGEST_NAME
