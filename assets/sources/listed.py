"""What the two kinds of source share whose videos are named by URLs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from pydantic import Field

from assets.fetching.errors import OperatorError
from assets.fetching.urls import MalformedUrlError, split_url
from assets.sources.base import Fetched, Source, VideoRow
from assets.sources.findings import OK, Finding

if TYPE_CHECKING:
    from assets.fetching.direct import Downloaded

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
YOUTUBE_HOSTS = (
    "youtube.com",
    "www.youtube.com",
    "m.youtube.com",
    "music.youtube.com",
    "youtube-nocookie.com",
    "www.youtube-nocookie.com",
)


class ListedSource(Source):
    """Videos named by a URL: in the annotations, or in a list of its own."""

    urls: Path | None = Field(
        default=None,
        description="CSV or JSONL with the columns id and url, or a text file with one URL a line",
    )

    def findings(self, name: str, asked: Collection[str]) -> Iterator[Finding]:
        yield Finding(f"source {name}", OK, "the URLs of the annotations or of its list")


def fetched(got: Downloaded, location: str) -> Fetched:
    """A downloaded file, to be examined.

    Args:
        location: where it came from, as it may be shown.
    """
    return Fetched(
        got.path,
        location,
        duration=got.duration,
        format=got.format,
        tool=got.tool,
        length_stated=got.length_stated,
    )


def url_facts(source: ListedSource) -> dict[str, Callable[[VideoRow], Any]]:
    """The URL of a row, or the one that the source's own list has for its id."""
    listed: dict[str, str] = {}

    def url(row: VideoRow) -> str | None:
        if not row.url and source.urls is not None and not listed:
            with suppress(OperatorError):  # the run says so, when it fetches
                listed.update(read_urls(source.urls))
        return row.url or listed.get(row.id)

    return {"url": url}


def with_listed_urls(rows: list[VideoRow], source: ListedSource) -> None:
    """Give rows without a URL the one that the source's own list has for their id."""
    if source.urls is not None:
        listed = read_urls(source.urls)
        for row in rows:
            row.url = row.url or listed.get(row.id)


def read_urls(path: Path) -> dict[str, str]:
    """Id -> URL, of a list of videos.

    Args:
        path: CSV or JSONL with the columns `id` (or `video`) and `url`, or a text file with one URL
            a line. In a text file the id is the YouTube id, or the last step of the URL's path
            without its suffix.

    Raises:
        OperatorError: no such file, other columns, or a line of text that is no URL.
    """
    from assets.fetching.table_files import read_rows

    if not path.is_file():
        raise OperatorError(f"{path}: no such file (urls of a source in the settings)")
    found: dict[str, str] = {}
    if path.suffix.lower() not in (".csv", ".jsonl", ".json", ".parquet"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            url = line.strip()
            if not url or url.startswith("#"):
                continue
            try:
                found[youtube_id(url) or PurePosixPath(split_url(url).path).stem] = url
            except MalformedUrlError as error:
                raise OperatorError(f"{path}, line {number}: {error}") from None
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


def youtube_id(url: str | None) -> str | None:
    """The 11-character id in any of the forms that YouTube's URLs have, or in the bare id."""
    if not url:
        return None
    if YOUTUBE_ID.fullmatch(url):
        return url
    try:
        parts = split_url(url if "://" in url else f"https://{url}")
    except MalformedUrlError:
        return None
    if parts.scheme not in ("http", "https"):
        return None
    steps = [step for step in parts.path.split("/") if step]
    found = None
    if parts.hostname in ("youtu.be", "www.youtu.be") and steps:
        found = steps[0]
    elif parts.hostname in YOUTUBE_HOSTS:
        if steps == ["watch"] or steps == ["watch_popup"]:
            found = parse_qs(parts.query).get("v", [""])[0]
        elif len(steps) >= 2 and steps[0] in ("embed", "shorts", "v", "e", "live", "watch"):
            found = steps[1]
    return found if found and YOUTUBE_ID.fullmatch(found) else None
