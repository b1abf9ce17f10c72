"""What every way of getting a video has in common, and the two ways that follow a URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from assets.annotations.catalogue import PERMANENT, VideoRow
from assets.deployment.settings import UrlSource, YoutubeSource
from assets.fetching import ytdlp
from assets.fetching.address_guard import Guard
from assets.fetching.errors import OperatorError
from assets.fetching.options import Download
from assets.fetching.table_files import read_rows

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
YOUTUBE_HOSTS = (
    "youtube.com",
    "www.youtube.com",
    "m.youtube.com",
    "music.youtube.com",
    "youtube-nocookie.com",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a row without fetching anything."""

    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file on our disk that was not looked into yet.

    Attributes:
        location: where it came from.
        checked: whether its bytes are known to be what the source holds (a hash or a CRC matched),
            so that a fault in them is the source's own.
        sha256: where it is known already.
        duration: seconds as the source states them.
    """

    path: Path
    location: str
    checked: bool = False
    sha256: str | None = None
    duration: float | None = None
    format: str | None = None
    tool: str | None = None


class Fetcher(Protocol):
    """Gets the videos of one source. Calls come from many threads."""

    min_interval_s: float

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        """Get ready to fetch ``rows``; returns, by id, those that need not be tried and why.

        Raises:
            OperatorError: nothing can be fetched before a person acts.
        """

    def host(self, row: VideoRow) -> str:
        """Whom a fetch would bother: politeness counts by host."""

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        """Fetch into ``folder``, which belongs to the row alone and may hold an earlier,
        interrupted part.

        Raises:
            TransferError, OperatorError.
        """


def with_listed_urls(rows: list[VideoRow], source: YoutubeSource | UrlSource) -> None:
    """Give rows without a URL the one that the source's own list has for their id."""
    if source.urls is not None:
        listed = read_urls(source.urls)
        for row in rows:
            row.url = row.url or listed.get(row.id)


def read_urls(path: Path) -> dict[str, str]:
    """id -> URL, of a CSV or JSONL with the columns ``id`` (or ``video``) and ``url``, or a text
    file with one URL a line, where the id is the YouTube id or the last step of the path without
    its suffix.

    Raises:
        OperatorError: no such file, or other columns.
    """
    if not path.is_file():
        raise OperatorError(f"{path}: no such file (urls of a source in the settings)")
    found: dict[str, str] = {}
    if path.suffix.lower() not in (".csv", ".jsonl", ".json", ".parquet"):
        for line in path.read_text().splitlines():
            url = line.strip()
            if url and not url.startswith("#"):
                found[youtube_id(url) or PurePosixPath(urlsplit(url).path).stem] = url
        return found
    for row in read_rows(path, path.name):
        values = (
            {name.lower(): value for name, value in row.value.items()}
            if isinstance(row.value, dict)
            else {}
        )
        name, target = values.get("id") or values.get("video"), values.get("url")
        if name is None and target is None:
            raise OperatorError(
                f"{path}, row {row.number}: expected columns id and url, found {', '.join(values)}"
            )
        if name and target:
            found[PurePosixPath(str(name)).name.removesuffix(".mp4")] = str(target)
    return found


class YoutubeFetcher:
    """Through yt-dlp's YouTube extractor and no other. Of a URL only the video's id is used."""

    def __init__(self, source: YoutubeSource, limits: Download, log: Callable[[str], None]) -> None:
        self.source, self.limits, self.log = source, limits, log
        self.min_interval_s = limits.min_interval_s
        self.guard = Guard()

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        if rows and not self.source.accept_terms:
            raise OperatorError(
                "YouTube's terms restrict downloading. Read them, and if you decide that you may, "
                "set accept_terms: true for this source in the settings"
            )
        if rows:
            ytdlp.preflight(self.log)
        with_listed_urls(rows, self.source)
        return {
            row.id: Outcome(
                PERMANENT, "bad_url", f"no YouTube video id in {row.url!r} or {row.id!r}"
            )
            for row in rows
            if youtube_id(row.url) is None
            and not (row.url is None and YOUTUBE_ID.fullmatch(row.id))
        }

    def host(self, row: VideoRow) -> str:
        return "youtube"

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        url = f"https://www.youtube.com/watch?v={youtube_id(row.url) or row.id}"
        taken = ytdlp.take(
            url, folder, extractors=("youtube",), guard=self.guard, limits=self.limits, watch=watch
        )
        return Fetched(
            taken.path, url, duration=taken.duration, format=taken.format, tool=taken.tool
        )


class UrlFetcher:
    """Any http(s) URL through yt-dlp's generic extractor: a media file, a playlist of segments, a
    page with a video.
    """

    def __init__(self, source: UrlSource, limits: Download, log: Callable[[str], None]) -> None:
        self.source, self.limits, self.log = source, limits, log
        self.min_interval_s = limits.min_interval_s
        self.guard = Guard(source.hosts)

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        with_listed_urls(rows, self.source)
        return {
            row.id: Outcome(PERMANENT, "bad_url" if row.url else "no_url", f"url: {row.url!r}")
            for row in rows
            if not row.url or urlsplit(row.url).scheme not in ("http", "https")
        }

    def host(self, row: VideoRow) -> str:
        return urlsplit(row.url or "").netloc

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        assert row.url is not None, "prepare leaves out rows without a URL"
        taken = ytdlp.take(
            row.url,
            folder,
            extractors=("generic", "html5"),
            guard=self.guard,
            limits=self.limits,
            watch=watch,
        )
        return Fetched(
            taken.path, row.url, duration=taken.duration, format=taken.format, tool=taken.tool
        )


def youtube_id(url: str | None) -> str | None:
    """The 11-character id in any of the forms that YouTube's URLs have, or in the bare id."""
    if not url:
        return None
    if YOUTUBE_ID.fullmatch(url):
        return url
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https"):
        return None
    steps = [step for step in parts.path.split("/") if step]
    found = None
    if parts.hostname == "youtu.be" and steps:
        found = steps[0]
    elif parts.hostname in YOUTUBE_HOSTS:
        if steps[:1] == ["watch"]:
            found = parse_qs(parts.query).get("v", [""])[0]
        elif len(steps) == 2 and steps[0] in ("embed", "shorts", "v", "live"):
            found = steps[1]
    return found if found and YOUTUBE_ID.fullmatch(found) else None


def match_stems(rows: Iterable[VideoRow], paths: dict[str, list[str]]) -> dict[str, list[str]]:
    """Row id -> paths of files whose name, without its suffix, is the id (or ends with it after a
    slash).

    Args:
        paths: last step of the path without suffix -> paths.
    """
    found = {}
    for row in rows:
        last = row.id.rsplit("/", 1)[-1]
        found[row.id] = [
            path
            for path in paths.get(last, [])
            if (stem := path.rsplit(".", 1)[0]) == row.id or stem.endswith(f"/{row.id}")
        ]
    return found
