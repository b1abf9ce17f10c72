"""Videos behind any http(s) URL: files as they are, and what pages show through yt-dlp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from assets.fetching.options import Download
from assets.fetching.urls import MalformedUrlError, shown, split_url
from assets.sources.base import PERMANENT, FetchContext, Fetched, Fetcher, Outcome, VideoRow
from assets.sources.listed import (
    ListedSource,
    fetched,
    url_facts,
    with_listed_urls,
)
from assets.sources.outcomes import account_facts


class UrlSource(ListedSource):
    """Videos named by any http(s) URL: files, and pages and playlists for yt-dlp."""

    kind: Literal["url"]
    hosts: list[str] = Field(
        default=[], description="host[:port] that may be fetched although it is a private address"
    )

    def fetcher(self, context: FetchContext) -> UrlFetcher:
        return UrlFetcher(self, context.download, context.log)


class UrlFetcher(Fetcher):
    """Any http(s) URL. A media file is streamed; a playlist of segments and a page with a video go
    through yt-dlp's generic extractor.
    """

    def __init__(self, source: UrlSource, limits: Download, log: Callable[[str], None]) -> None:
        from assets.fetching.address_guard import Guard

        self.source, self.limits, self.log = source, limits, log
        self.min_interval_s = limits.min_interval_s
        self.guard = Guard(source.hosts)

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """`hosts` of the settings, who asks, and the URL that is asked for."""
        hosts = sorted(self.source.hosts)
        return {**account_facts(), **url_facts(self.source), "hosts": lambda row: hosts}

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        with_listed_urls(rows, self.source)
        return {row.id: found for row in rows if (found := _refusal(row.url)) is not None}

    def host(self, row: VideoRow) -> str:
        return split_url(row.url or "").netloc.rpartition("@")[2]

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        assert row.url is not None, "prepare leaves out rows without a URL"
        from assets.fetching import direct, ytdlp

        url, guard, limits = row.url, self.guard, self.limits
        got = direct.download_file(url, folder, guard=guard, limits=limits, watch=watch)
        if got is None:
            extractors = ("generic", "html5")
            got = ytdlp.download(
                url, folder, extractors=extractors, guard=guard, limits=limits, watch=watch
            )
        return fetched(got, shown(url))


def _refusal(url: str | None) -> Outcome | None:
    """Why nothing is asked by a row's URL; None where it can be."""
    if not url:
        return Outcome(PERMANENT, "no_url", "its rows state no URL")
    try:
        parts = split_url(url)
    except MalformedUrlError as error:
        return Outcome(PERMANENT, "bad_url", str(error))
    if parts.scheme not in ("http", "https"):
        return Outcome(PERMANENT, "bad_url", f"{shown(url)}: no http or https URL")
    return None
