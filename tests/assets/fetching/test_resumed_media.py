"""What yt-dlp fetches and a kill interrupts goes on where it was, if it still is the same file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yt_dlp

from assets.fetching import ytdlp
from assets.fetching.address_guard import Guard
from assets.fetching.errors import TransferError
from assets.fetching.options import Download
from tests.assets.fetching.killed import killed_after
from tests.servers.faulty import Fault, FaultyMediaServer, in_turn

ID = "a-b_c123456"
YOUTUBE = f"https://www.youtube.com/watch?v={ID}"
SIZE = 1_500_007
CONTENT = np.random.default_rng(0).bytes(SIZE)
OLD = 1_000_000_000
SEGMENTS = [np.random.default_rng(n).bytes(188 * 1000) for n in range(8)]


@pytest.fixture
def media(tmp_path: Path):
    served = tmp_path / "served"
    served.mkdir()
    with FaultyMediaServer(served) as server:
        yield server


@pytest.fixture
def site(media, monkeypatch):
    """A local YouTube whose URL of the video is another one at each look; `site()` says which was
    the last.
    """
    (media.folder / "v.mp4").write_bytes(CONTENT)
    os.utime(media.folder / "v.mp4", (OLD, OLD))
    looks = []
    options: dict = {}

    def extract(self, url):
        looks.append(url)
        one = {
            "url": f"{media.url}/v.mp4?expire={len(looks)}&sig={os.getpid()}",
            "format_id": "134",
            "vcodec": "avc1.4d401e",
            "acodec": "none",
            "height": 360,
            "width": 640,
            "ext": "mp4",
            **options,
        }
        return {"id": ID, "title": "t", "formats": [one]}

    monkeypatch.setattr(yt_dlp.extractor.youtube.YoutubeIE, "_real_extract", extract)
    return options


def fetch(
    media: FaultyMediaServer, url: str, folder: Path, watch: Callable[[int], None] = lambda n: None
):
    return ytdlp.download(
        url,
        folder,
        extractors=("youtube",) if url == YOUTUBE else ("generic",),
        guard=Guard([f"127.0.0.1:{media.port}"]),
        limits=Download(timeout_s=2.0, min_interval_s=0),
        watch=watch,
    )


def killed(media: FaultyMediaServer, url: str, folder: Path, after: int) -> None:
    """Fetch in a process that kills itself once so many bytes came."""
    killed_after(after, lambda watch: fetch(media, url, folder, watch))


def sent(media: FaultyMediaServer, path: str) -> list[int]:
    """Bytes sent for each request of a path."""
    return [e.sent_bytes for e in media.log if e.request.path == path]


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"ETag": None}], ids=["ETag", "Last-Modified"])
def test_a_killed_video_goes_on_at_its_byte_although_its_url_is_another_one(
    headers, media, site, tmp_path
):
    media.faults = lambda request: Fault.with_headers(headers)
    killed(media, YOUTUBE, tmp_path / "x", 600_000)
    (part,) = (tmp_path / "x").glob("*.part")
    there = part.stat().st_size
    assert 400_000 < there < SIZE
    del media.log[:]
    assert fetch(media, YOUTUBE, tmp_path / "x").path.read_bytes() == CONTENT
    assert sent(media, "/v.mp4") == [SIZE - there]
    assert media.log[0].request.headers["If-Range"]


CHANGES = {
    "another file of the same length": (lambda file: file.write_bytes(CONTENT[::-1]), {}),
    "a longer file": (lambda file: file.write_bytes(CONTENT + b"x"), {}),
    "nothing to compare by": (
        lambda file: file.write_bytes(CONTENT[::-1]),
        {"ETag": None, "Last-Modified": None},
    ),
    "a weak validator": (
        lambda file: file.write_bytes(CONTENT[::-1]),
        {"ETag": 'W/"1"', "Last-Modified": None},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_part_of_another_file_is_not_gone_on_with(name, media, site, tmp_path):
    change, headers = CHANGES[name]
    media.faults = lambda request: Fault.with_headers(headers)
    killed(media, YOUTUBE, tmp_path / "x", 600_000)
    change(media.folder / "v.mp4")
    wanted = (media.folder / "v.mp4").read_bytes()
    assert fetch(media, YOUTUBE, tmp_path / "x").path.read_bytes() == wanted


def test_pieces_of_a_video_are_fetched_as_before(media, site, tmp_path):
    """YouTube serves its files in pieces of some MB; each is a request for a range."""
    site["downloader_options"] = {"http_chunk_size": 200_000}
    assert fetch(media, YOUTUBE, tmp_path / "x").path.read_bytes() == CONTENT
    assert len(sent(media, "/v.mp4")) >= 7
    assert sum(sent(media, "/v.mp4")) == SIZE


def test_pieces_go_on_after_a_kill(media, site, tmp_path):
    site["downloader_options"] = {"http_chunk_size": 200_000}
    killed(media, YOUTUBE, tmp_path / "x", 700_000)
    (part,) = (tmp_path / "x").glob("*.part")
    there = part.stat().st_size
    del media.log[:]
    assert fetch(media, YOUTUBE, tmp_path / "x").path.read_bytes() == CONTENT
    assert sum(sent(media, "/v.mp4")) == SIZE - there


def test_a_file_exchanged_between_two_pieces_is_begun_anew_by_the_next_try(media, site, tmp_path):
    site["downloader_options"] = {"http_chunk_size": 200_000}
    came = 0

    def watch(count: int) -> None:
        nonlocal came
        came += count
        if came >= 700_000 and (media.folder / "v.mp4").stat().st_mtime == OLD:
            (media.folder / "v.mp4").write_bytes(CONTENT[::-1])

    with pytest.raises(TransferError) as error:
        fetch(media, YOUTUBE, tmp_path / "x", watch)
    assert (error.value.status, error.value.reason) == ("transient", "changed")
    assert fetch(media, YOUTUBE, tmp_path / "x").path.read_bytes() == CONTENT[::-1]


@pytest.fixture
def playlist(media) -> str:
    for number, segment in enumerate(SEGMENTS):
        (media.folder / f"s{number}.ts").write_bytes(segment)
    lines = [f"#EXTINF:2.0,\ns{number}.ts" for number in range(len(SEGMENTS))]
    text = "\n".join(["#EXTM3U", "#EXT-X-TARGETDURATION:2", *lines, "#EXT-X-ENDLIST", ""])
    (media.folder / "list.m3u8").write_text(text)
    return f"{media.url}/list.m3u8"


def test_the_segments_of_a_stream_are_fetched_once_each(media, playlist, tmp_path):
    got = fetch(media, playlist, tmp_path / "x")
    assert got.path.read_bytes() == b"".join(SEGMENTS)
    assert got.duration == 16
    for number, segment in enumerate(SEGMENTS):
        assert sent(media, f"/s{number}.ts") == [len(segment)]


@pytest.mark.parametrize("headers", [{}, {"ETag": None, "Last-Modified": None}])
def test_a_killed_stream_goes_on_at_its_segment(headers, media, playlist, tmp_path):
    media.faults = lambda request: Fault.with_headers(headers)
    killed(media, playlist, tmp_path / "x", 188 * 4500)
    before = {n for n in range(len(SEGMENTS)) if sent(media, f"/s{n}.ts")}
    assert before
    assert len(before) < len(SEGMENTS)
    assert fetch(media, playlist, tmp_path / "x").path.read_bytes() == b"".join(SEGMENTS)
    twice = [n for n in range(len(SEGMENTS)) if len(sent(media, f"/s{n}.ts")) > 1]
    assert len(twice) <= 1, "at most the segment that the kill cut"


@pytest.mark.slow
def test_a_segment_that_breaks_off_is_fetched_again(media, playlist, tmp_path):
    media.faults = in_turn({r"GET /s3": [Fault.truncate(1000)], r"GET /s5": [Fault.reset(5000)]})
    assert fetch(media, playlist, tmp_path / "x").path.read_bytes() == b"".join(SEGMENTS)


def test_a_stream_with_a_missing_segment_is_no_video(media, playlist, tmp_path, monkeypatch):
    monkeypatch.setattr(yt_dlp.downloader.common.time, "sleep", lambda seconds: None)
    (media.folder / "s4.ts").unlink()
    with pytest.raises(TransferError):
        fetch(media, playlist, tmp_path / "x")
