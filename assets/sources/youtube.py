"""Videos of YouTube, through yt-dlp."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from assets.fetching.errors import MissingToolError, OperatorError
from assets.fetching.options import Download
from assets.fetching.urls import shown
from assets.sources.base import PERMANENT, FetchContext, Fetched, Fetcher, Outcome, VideoRow
from assets.sources.findings import MISSING, NOTE, OK, Finding
from assets.sources.listed import (
    YOUTUBE_ID,
    ListedSource,
    fetched,
    url_facts,
    with_listed_urls,
    youtube_id,
)
from assets.sources.outcomes import account_facts


class YoutubeSource(ListedSource):
    """Videos named by a YouTube URL; fetched by yt-dlp, only through its youtube extractor."""

    kind: Literal["youtube"]
    accept_terms: bool = Field(
        default=False,
        description="true: you have read YouTube's terms and decide yourself that you may download",
    )

    def fetcher(self, context: FetchContext) -> YoutubeFetcher:
        return YoutubeFetcher(self, context.download, context.log)

    def undecided(self) -> str | None:
        if self.accept_terms:
            return None
        return (
            "YouTube's terms restrict downloading. Read them, and if you decide that you may, "
            "set accept_terms: true for this source in the settings"
        )

    def findings(self, name: str, asked: Collection[str]) -> Iterator[Finding]:
        from assets.fetching import ytdlp

        if not self.accept_terms:
            yield Finding(
                f"source {name}",
                NOTE,
                "YouTube, terms not accepted: nothing will be fetched",
                "read YouTube's terms; if you decide that you may download, set accept_terms: true",
            )
            return
        said: list[str] = []
        try:
            ytdlp.preflight(said.append)
        except MissingToolError as error:
            what, _, advice = str(error).partition(": ")
            yield Finding(f"source {name}", MISSING, what, advice)
            return
        yield Finding(f"source {name}", OK, said[0])
        if shutil.which("ffmpeg") is None:
            yield Finding(
                "ffmpeg",
                OK,
                "not on the PATH, and not needed: HLS-only videos stay MPEG-TS files, which decode",
            )


class YoutubeFetcher(Fetcher):
    """Through yt-dlp's YouTube extractor and no other. Of a URL only the video's id is used."""

    def __init__(self, source: YoutubeSource, limits: Download, log: Callable[[str], None]) -> None:
        from assets.fetching.address_guard import Guard

        self.source, self.limits, self.log = source, limits, log
        self.min_interval_s = limits.min_interval_s
        self.guard = Guard()

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """Who asks, and the URL that is asked for."""
        return {**account_facts(), **url_facts(self.source)}

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        from assets.fetching import ytdlp

        undecided = self.source.undecided()
        if rows and undecided:
            raise OperatorError(undecided)
        if rows:
            ytdlp.preflight(self.log)
        with_listed_urls(rows, self.source)
        return {
            row.id: Outcome(
                PERMANENT,
                "bad_url",
                f"no YouTube video id in {shown(row.url or '')!r} or {row.id!r}",
            )
            for row in rows
            if youtube_id(row.url) is None
            and not (row.url is None and YOUTUBE_ID.fullmatch(row.id))
        }

    def host(self, row: VideoRow) -> str:
        return "youtube"

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        from assets.fetching import ytdlp

        url = f"https://www.youtube.com/watch?v={youtube_id(row.url) or row.id}"
        got = ytdlp.download(
            url,
            folder,
            extractors=("youtube",),
            guard=self.guard,
            limits=self.limits,
            watch=watch,
        )
        return fetched(got, url)
