"""What all kinds of video source have in common. Each kind is one other file of this folder.

A kind is a section of settings (`Source`) that makes a `Fetcher`. The fetcher says which videos are
not worth a try, and puts one video's file into a folder. Verifying, hashing, retrying, the journal
and the report are not its business: `assets/videos/acquire.py` does that for all kinds alike.

The settings import every kind, so modules of this folder import what is heavy (yt_dlp,
huggingface_hub, requests) inside the functions that need it.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from assets.fetching.options import Download
from assets.sources.findings import OK as FINE
from assets.sources.findings import Finding
from model.configuration import Section
from training.formats.storage import Storage

# What became of a video. `transient` failed in passing, and `exhausted` did so as often as the
# settings allow; `permanent` is not tried again; `needs_operator` and `manual_missing` wait for a
# person; `not_asked` is no question's video any more.
PENDING, OK, NOT_ASKED = "pending", "ok", "not_asked"
TRANSIENT, EXHAUSTED = "transient", "exhausted"
PERMANENT, NEEDS_OPERATOR, MANUAL_MISSING = "permanent", "needs_operator", "manual_missing"

# How files of videos are called: the one list of it. What a file holds is for the probe to say.
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".f4v", ".wmv", ".asf"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".3gp", ".3g2", ".ogv"),
)


class Source(Section):
    """The settings of one source; a kind adds `kind: Literal["its name"]` and its own fields."""

    coverage_threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="least share of this source's videos; default: download's",
    )
    licence: str | None = Field(
        default=None,
        description="under which its videos may be used, for the checkpoints' bills of materials",
    )

    def fetcher(self, context: FetchContext) -> Fetcher:
        """What gets the videos of one part of this source."""
        raise NotImplementedError

    def undecided(self) -> str | None:
        """What a person must decide before anything is fetched, as a sentence for them; None when
        nothing.
        """
        return None

    def notes(self, context: FetchContext, missing: list[str]) -> list[str]:
        """What a person should do about videos that only they can provide.

        Args:
            missing: ids of the part's videos whose status is `manual_missing`, at least one.
        """
        return []

    def findings(self, name: str, asked: Collection[str]) -> Iterator[Finding]:
        """What this machine has or lacks for this source, for `hourllava doctor`.

        Args:
            name: what the settings call the source.
            asked: ids of videos that have to come from it, as far as rows were looked at.
        """
        yield Finding(f"source {name}", FINE, "nothing to check on this machine")


@dataclass(frozen=True, slots=True)
class FetchContext:
    """What a fetcher is given besides its source's own settings.

    Attributes:
        source: the source's name in the settings; part: of its videos.
        download: how to fetch.
        hub_endpoint: a mirror of the Hugging Face hub, None for the hub itself.
        all_ids: gives the ids of the source's videos in all parts; it reads all of its catalogue.
        missing_ids: as `all_ids`, of the videos that are asked for and not there.
        log: takes lines for a person.
    """

    storage: Storage
    source: str
    part: str
    download: Download
    hub_endpoint: str | None
    all_ids: Callable[[], set[str]]
    missing_ids: Callable[[], set[str]]
    log: Callable[[str], None]


@dataclass(slots=True)
class VideoRow:
    """One expected video: a row of the catalogue (`assets/annotations/catalogue.py`).

    Attributes:
        video: `source/id`.
        url: from the annotations; expected_duration in seconds, likewise.
        questions: question-answer pairs about it in this part.
        status, reason, message: what became of it; one word each, and a sentence.
        attempts: tries so far; next_try_at: seconds since 1970 before which it is left alone.
        location: where it was found: a URL, `repo@commit:member`, a dropped file.
        path: below the root; size in bytes; duration in seconds.
        damaged: one of the places looked at gave no picture; the rest did.
        unmeasured: neither the server nor the file nor the annotations say how long it is, so that
            it may have been cut.
        format, tool: what a downloader chose, and its version.
        decided_by: fingerprint of what decided the outcome (`outcomes.py`).
    """

    video: str
    source: str
    id: str
    url: str | None = None
    expected_duration: float | None = None
    questions: int = 0
    status: str = PENDING
    reason: str | None = None
    message: str | None = None
    attempts: int = 0
    next_try_at: float | None = None
    location: str | None = None
    path: str | None = None
    size: int | None = None
    sha256: str | None = None
    duration: float | None = None
    packets: int | None = None
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    damaged: bool | None = None
    unmeasured: bool | None = None
    format: str | None = None
    tool: str | None = None
    updated_at: float | None = None
    decided_by: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a row without fetching anything."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on our disk that was not verified yet.

    Attributes:
        location: where it came from.
        checked: whether its bytes are known to be what the source holds (a hash or a CRC matched),
            so that a fault in them is the source's own.
        sha256: where it is known already.
        duration: seconds as the source states them.
        length_stated: whether whoever gave the file said where it ends.
    """

    path: Path
    location: str
    checked: bool = False
    sha256: str | None = None
    duration: float | None = None
    format: str | None = None
    tool: str | None = None
    length_stated: bool = True


class Fetcher(Protocol):
    """Gets the videos of one source; a kind's fetcher is a subclass. `host` and `fetch` are called
    by many threads.

    Attributes:
        min_interval_s: least time between two requests to one host.
    """

    min_interval_s: float

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """What decides the outcome of a video, by the names that `outcomes.py` knows: `place`,
        `hosts`, `account`, `proxy`, `tool`, `url`. Each is looked up only when it is asked for, and
        asking never fails.
        """
        return {}

    def changed(self, rows: list[VideoRow]) -> tuple[list[VideoRow], dict[str, str]]:
        """Of videos that are there: (those whose file is another one at the source now, id -> the
        new location of those that are the same). None where nobody can tell.
        """
        return [], {}

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        """Get ready to fetch `rows`; returns, by id, those that need not be tried and why.

        Raises:
            OperatorError: nothing can be fetched before a person acts.
        """

    def host(self, row: VideoRow) -> str:
        """Who is asked for this video: intervals, pauses and refusals are counted by host."""

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        """Fetch one video into `folder`.

        Args:
            folder: for this video alone; it may hold what an interrupted try left.
            watch: to be called with the number of bytes that came, as they come. What it raises
                must pass through: it ends the transfer.

        Raises:
            TransferError: this video could not be fetched.
            OperatorError: no video can be fetched before a person acts.
        """


def composed(name: str) -> str:
    """A name in the composed form of Unicode (NFC), in which ids are; macOS has the other one."""
    return unicodedata.normalize("NFC", name)


class VideoFiles:
    """Files that are called like videos, by the ids of the videos that they may be.

    Names are compared in the composed form of Unicode.

    Args:
        paths: of files of any sort, with `/` between their steps.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths: dict[str, list[str]] = defaultdict(list)  # last step without suffix -> paths
        for path in paths:
            name = path.rsplit("/", 1)[-1]
            if name.lower().endswith(VIDEO_SUFFIXES):
                self._paths[composed(name).rsplit(".", 1)[0]].append(path)

    def that_may_be(self, identifier: str) -> list[str]:
        """Paths of the files that may be a video: the path without its suffix is the id, or ends
        with a slash and the id.
        """
        wanted = composed(identifier)
        there = self._paths.get(wanted.rsplit("/", 1)[-1], [])
        return [path for path in there if wanted in ids_of(path)]


def ids_of(path: str) -> list[str]:
    """The ids of the videos that a file may be, the longest first; `VideoFiles` asks the other way
    round.

    Args:
        path: of the file below the folder, with `/` between its steps.
    """
    steps = composed(path).rsplit(".", 1)[0].split("/")
    return ["/".join(steps[first:]) for first in range(len(steps))]
