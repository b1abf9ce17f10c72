"""Videos that a person puts into a folder: licensed sets such as Ego4D, or one's own."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from assets.fetching.retry import raise_if_disk
from assets.sources.base import (
    MANUAL_MISSING,
    PERMANENT,
    VIDEO_SUFFIXES,
    FetchContext,
    Fetched,
    Fetcher,
    Outcome,
    Source,
    VideoRow,
    match_stems,
)
from assets.sources.findings import NOTE, OK, Finding
from training.formats import layout

# {folder} and {list} are filled in. The licence is granted per person; no credential of it ever
# passes through us.
INSTRUCTIONS = {
    "ego4d": (
        "Ego4D needs a licence of your own (https://ego4ddataset.com, granted within about two "
        "days). Then:\n"
        "  pip install ego4d && aws configure --profile ego4d\n"
        "  ego4d --output_directory {folder} --datasets full_scale --video_uid_file {list} "
        "--aws_profile_name ego4d -y\n"
        "Run this asset again afterwards; it adopts what is there."
    )
}
DEFAULT_INSTRUCTIONS = (
    "Put the files listed in {list} into {folder} as <id>.mp4, and run this asset again."
)


class DropSource(Source):
    """Videos that a person puts into a folder: licensed sets such as Ego4D, or one's own."""

    kind: Literal["drop"]
    folder: Path
    instructions: str = Field(
        default="", description="how to obtain the files; shown when videos are missing"
    )

    def fetcher(self, context: FetchContext) -> DropFetcher:
        return DropFetcher(self, context.log)

    def notes(self, context: FetchContext, missing: list[str]) -> list[str]:
        """How to obtain what is missing; the list of it is written below the root."""
        name = layout.catalogue(context.source, f"{context.part}.missing.txt")
        lines = "".join(f"{identifier}\n" for identifier in missing)
        context.storage.write_bytes(name, lines.encode())
        text = self.instructions or INSTRUCTIONS.get(context.source, DEFAULT_INSTRUCTIONS)
        return [
            text.replace("{folder}", str(self.folder)).replace("{list}", context.storage.path(name))
        ]

    def findings(self, name: str) -> Iterator[Finding]:
        if self.folder.is_dir():
            yield Finding(f"source {name}", OK, f"drop folder {self.folder}")
            return
        yield Finding(
            f"source {name}",
            NOTE,
            f"no folder {self.folder}",
            "make the folder and put files there; until then its videos are listed as missing",
        )


class DropFetcher(Fetcher):
    """Adopts files from a folder by their name. The folder itself is never changed."""

    min_interval_s = 0.0

    def __init__(self, source: DropSource, log: Callable[[str], None]) -> None:
        self.source, self.log = source, log
        self.found: dict[str, Path] = {}
        self._copies_noted = False
        self._stats: dict[str, list[list[Any]]] = {}

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """`place`: the files that may be the video, each with its size and time of change."""
        return {"place": self._files}

    @cached_property
    def _dropped(self) -> dict[str, list[str]]:
        """Stem of a name -> paths below the folder."""
        stems: dict[str, list[str]] = defaultdict(list)
        folder = self.source.folder
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."):
                    stems[name.rsplit(".", 1)[0]].append(
                        (Path(parent) / name).relative_to(folder).as_posix()
                    )
        return stems

    def _files(self, row: VideoRow) -> list[list[Any]]:
        """Path, size and time of change of each file that may be the video, at the first look of
        this run.
        """
        if row.id not in self._stats:
            found = []
            for path in sorted(match_stems([row], self._dropped)[row.id]):
                with suppress(FileNotFoundError):  # taken away at this moment
                    stat = (self.source.folder / path).stat()
                    found.append([path, stat.st_size, stat.st_mtime_ns])
            self._stats[row.id] = found
        return self._stats[row.id]

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        folder = self.source.folder
        outcomes = {}
        for row in rows:
            self._files(row)  # before it is read: what changes meanwhile is another file
        for identifier, paths in match_stems(rows, self._dropped).items():
            if len(paths) > 1:
                several = f"several files could be it: {', '.join(sorted(paths))}"
                outcomes[identifier] = Outcome(PERMANENT, "ambiguous", several[:500])
            elif paths:
                self.found[identifier] = folder / paths[0]
            else:
                outcomes[identifier] = Outcome(MANUAL_MISSING, "not_dropped", f"not below {folder}")
        return outcomes

    def host(self, row: VideoRow) -> str:
        return "folder"

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        dropped, target = self.found[row.id], folder / "file"
        target.unlink(missing_ok=True)
        try:
            os.link(dropped, target)  # no second copy of terabytes where the disk is the same
        except OSError as error:
            if not self._copies_noted:
                self._copies_noted = True
                self.log(f"{self.source.folder}: files are copied, not linked ({error.strerror})")
            try:
                shutil.copyfile(dropped, target)
            except OSError as failure:
                raise_if_disk(failure)
                raise
        return Fetched(target, str(dropped), checked=True)
