"""The video that a person asks about, as a local file: a path as it is, a URL fetched with the same
care as the pipeline's videos.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from assets.fetching.errors import TransferError
from assets.fetching.options import Download
from assets.fetching.probe import InvalidVideo, ProbePool, check_video
from assets.sources.base import VideoRow
from assets.sources.listed import youtube_id
from assets.sources.url import UrlFetcher, UrlSource
from assets.sources.youtube import YoutubeFetcher, YoutubeSource

NAME = "asked"  # of the fetched file, and of its row


@contextmanager
def local_video(
    video: str,
    log: Callable[[str], None],
    *,
    hosts: Sequence[str] = (),
    accept_terms: bool = False,
    limits: Download | None = None,
) -> Iterator[Path]:
    """`video` as a file while the block runs. What was fetched is removed afterwards.

    A URL is fetched by yt-dlp, YouTube's by its own extractor. Every connection is checked: no
    private addresses, only http and https. The file is then examined in a child process, as every
    video of the pipeline.

    Args:
        video: a path, or a URL.
        hosts: `host` or `host:port` that may be contacted although it is a private address.
        log: told when a download begins.
        accept_terms: that the user has read YouTube's terms and decided that they may download.
        limits: sizes, durations and timeouts; the pipeline's defaults where left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder; or the URL may not or cannot be fetched, or what it gave is no sound
            video; it names the URL and why.
    """
    if "://" not in video:
        check_named(video)
        yield Path(video)
        return
    limits = limits or Download()
    with tempfile.TemporaryDirectory(prefix="hourllava-ask-") as scratch:
        try:
            path = _fetch(video, Path(scratch), log, hosts, accept_terms, limits)
            with ProbePool() as probes:
                check_video(probes.probe(path), limits, None)
        except TransferError as error:
            raise ValueError(f"{video}: not fetched ({error.reason}): {error}") from error
        except InvalidVideo as error:
            raise ValueError(f"{video}: no usable video ({error.reason}): {error}") from error
        yield path


def check_named(video: str) -> None:
    """Raise FileNotFoundError where `video` is neither a URL nor there, ValueError for a folder."""
    if "://" in video or Path(video).is_file():
        return
    if Path(video).is_dir():
        raise ValueError(f"{video}: a folder; give one video file of it")
    raise FileNotFoundError(f"{video}: no such file")


def _fetch(
    url: str,
    folder: Path,
    log: Callable[[str], None],
    hosts: Sequence[str],
    accept_terms: bool,
    limits: Download,
) -> Path:
    """Download one URL into a folder; returns the file."""
    row = VideoRow(video=f"ask/{NAME}", source="ask", id=NAME, url=url)
    fetcher: YoutubeFetcher | UrlFetcher
    if youtube_id(url):
        if not accept_terms:
            raise ValueError(
                f"{url}: YouTube's terms restrict downloading. Read them, and if you decide that "
                "you may, give --accept-youtube-terms"
            )
        fetcher = YoutubeFetcher(YoutubeSource(kind="youtube", accept_terms=True), limits, log)
    else:
        fetcher = UrlFetcher(UrlSource(kind="url", hosts=list(hosts)), limits, log)
    if refused := fetcher.prepare([row]).get(NAME):
        raise ValueError(
            f"{url}: not fetched ({refused.reason}): only http and https URLs are fetched"
        )
    log(f"fetching {url}")
    return fetcher.fetch(row, folder / NAME, lambda _: None).path
