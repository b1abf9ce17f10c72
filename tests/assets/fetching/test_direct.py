"""Files behind URLs: whole or not there, each byte sent once where the server allows it, and
secrets for their own host alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assets.fetching import direct, partial_file
from assets.fetching.address_guard import Guard
from assets.fetching.direct import download_file
from assets.fetching.errors import TransferError
from assets.fetching.options import Download
from assets.fetching.partial_file import strong_validator
from tests.assets.fetching.killed import killed_after
from tests.servers.faulty import Fault, FaultyMediaServer, in_turn

SIZE = 1_000_003
CONTENT = np.random.default_rng(0).bytes(SIZE)
OLD = 1_000_000_000  # seconds since 1970: files that were not changed just now


@pytest.fixture
def media(tmp_path: Path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    (served / "v.mp4").write_bytes(CONTENT)
    os.utime(served / "v.mp4", (OLD, OLD))
    for module in (direct, partial_file):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100_000)
    with FaultyMediaServer(served) as server:
        yield server


def fetch(
    url: str,
    folder: Path,
    connections: int = 1,
    watch: Callable[[int], None] = lambda count: None,
    allow: tuple[str, ...] = ("127.0.0.1", "localhost"),
):
    limits = Download(connections=connections, hub_backoff_s=0.01, timeout_s=2.0)
    return download_file(url, folder, guard=Guard(allow), limits=limits, watch=watch)


def sent(media: FaultyMediaServer) -> int:
    return sum(exchange.sent_bytes for exchange in media.log if exchange.status in (200, 206))


def test_a_file_costs_one_request(media, tmp_path):
    counted: list[int] = []
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", watch=counted.append)
    assert got.path.read_bytes() == CONTENT
    assert (got.length_stated, got.format) == (True, "video/mp4")
    assert len(media.log) == 1
    assert sum(counted) == SIZE
    assert os.listdir(tmp_path / "x") == [got.path.name]


def test_several_connections_share_a_file_and_no_byte_travels_twice(media, tmp_path):
    media.faults = lambda request: Fault.throttle(4e6)
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", connections=4)
    assert got.path.read_bytes() == CONTENT
    ranges = [exchange.request.range for exchange in media.log]
    assert ranges[0] is None
    assert len(set(ranges)) == len(ranges) >= 4
    assert all(exchange.request.headers["If-Range"] for exchange in media.log[1:])
    # The first connection is open-ended, and hung up where another one's block begins.
    assert SIZE <= sent(media) <= SIZE + (4 << 20)


def no_ranges(request):
    return Fault.ignore_range() if request.range else None


def refused(status: int):
    return lambda request: Fault.answer(status) if request.range else None


@pytest.mark.parametrize(
    "faults",
    [no_ranges, refused(429), refused(503), refused(403), refused(416)],
    ids=["ignores ranges", "429", "503", "403", "416"],
)
def test_a_server_that_wants_one_connection_gets_one(faults, media, tmp_path):
    media.faults = faults
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", connections=4)
    assert got.path.read_bytes() == CONTENT
    assert sum(exchange.request.range is None for exchange in media.log) == 1


def test_connections_that_break_are_opened_again_at_their_byte(media, tmp_path):
    breaks = [Fault.truncate(30_000), Fault.truncate(10), Fault.reset(50_000), Fault.truncate(7)]
    media.faults = in_turn({r"GET /v\.mp4": breaks})
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert got.path.read_bytes() == CONTENT
    assert len(media.log) == 5


NAMELESS = {"ETag": None, "Last-Modified": None}


@pytest.mark.parametrize(
    "breaks",
    {
        "no validator": lambda n: replace(Fault.truncate(300_000), headers=NAMELESS),
        "no length": lambda n: replace(
            Fault.reset(300_000), headers={**NAMELESS, "Content-Length": None}
        ),
        "another file each time": lambda n: replace(
            Fault.truncate(300_000), headers={"ETag": f'"{n}"'}
        ),
    }.items(),
    ids=lambda case: case[0],
)
def test_a_server_that_breaks_off_for_ever_is_given_up(breaks, media, tmp_path):
    """Bytes that the next try cannot go on from are no progress."""
    media.faults = lambda request: breaks[1](len(media.log))
    with pytest.raises(TransferError) as error:
        fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert (error.value.status, error.value.reason) == ("transient", "connection")
    assert len(media.log) <= 2 * direct.TRIES_WITHOUT_PROGRESS


def test_a_file_exchanged_while_it_comes_is_fetched_anew(media, tmp_path):
    other = np.random.default_rng(1).bytes(SIZE)
    exchanged = []

    def watch(count: int) -> None:
        if not exchanged:
            exchanged.append(True)
            (media.folder / "v.mp4").write_bytes(other)

    media.faults = in_turn({r"GET /v\.mp4": [Fault.truncate(300_000)]})
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", watch=watch)
    assert got.path.read_bytes() == other


class Killed(BaseException):
    pass


def interrupted(media: FaultyMediaServer, folder: Path, after: int = 400_000, **more) -> int:
    """Fetch a part in a process that kills itself; returns the bytes that the part has."""
    killed_after(after, lambda watch: fetch(f"{media.url}/v.mp4", folder, watch=watch, **more))
    part = partial_file.PartialFile.left(folder)
    return sum(part.done) if part else 0


@pytest.mark.parametrize("connections", [1, 3])
def test_a_killed_transfer_goes_on_at_its_bytes(media, tmp_path, connections):
    media.faults = lambda request: Fault.throttle(20e6)
    there = interrupted(media, tmp_path / "x", connections=connections)
    assert there >= 400_000 - 3 * direct.CHUNK_BYTES
    assert there >= 300_000
    media.faults = None
    del media.log[:]
    counted: list[int] = []
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", watch=counted.append)
    assert got.path.read_bytes() == CONTENT
    assert sum(counted) == SIZE - there
    assert media.log[0].request.headers["If-Range"].startswith('"')
    if connections == 1:
        assert (len(media.log), sent(media)) == (1, SIZE - there)


CHANGES = {
    "another file of the same length": lambda file: file.write_bytes(CONTENT[::-1]),
    "a longer file": lambda file: file.write_bytes(CONTENT + b"x"),
    "a shorter file than the part": lambda file: file.write_bytes(CONTENT[:1000]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_of_another_file_is_not_gone_on_with(change, media, tmp_path):
    assert interrupted(media, tmp_path / "x")
    CHANGES[change](media.folder / "v.mp4")
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert got.path.read_bytes() == (media.folder / "v.mp4").read_bytes()


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": 'W/"1"', "Last-Modified": None},
        {"ETag": None, "Last-Modified": None},
    ],
    ids=["weak", "none"],
)
def test_without_a_strong_validator_nothing_is_gone_on_with(headers, media, tmp_path):
    media.faults = lambda request: Fault.with_headers(headers)
    assert interrupted(media, tmp_path / "x", connections=4) == 0
    assert [exchange.request.range for exchange in media.log] == [None]
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", connections=4)
    assert got.path.read_bytes() == CONTENT
    assert [exchange.request.range for exchange in media.log] == [None, None]


def test_the_time_of_the_last_change_will_do_where_it_is_old_enough(media, tmp_path):
    media.faults = lambda request: Fault.with_headers({"ETag": None})
    assert interrupted(media, tmp_path / "x")
    fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert "2001" in media.log[-1].request.headers["If-Range"]
    date = "Sun, 09 Sep 2001 01:46:40 GMT"
    assert strong_validator({"Last-Modified": date, "Date": date}) is None


def test_a_record_from_before_the_last_boot_is_not_believed(media, tmp_path, monkeypatch):
    assert interrupted(media, tmp_path / "x")
    other = tmp_path / "boot"
    other.write_text("another boot")
    monkeypatch.setattr(partial_file, "BOOT", other)
    assert fetch(f"{media.url}/v.mp4", tmp_path / "x").path.read_bytes() == CONTENT
    assert media.log[-1].request.range is None


@pytest.mark.parametrize("damage", ["direct.json", "direct.done", "direct.part"])
def test_a_damaged_record_is_not_believed(damage, media, tmp_path):
    assert interrupted(media, tmp_path / "x")
    (tmp_path / "x" / damage).write_bytes(b"{")
    assert fetch(f"{media.url}/v.mp4", tmp_path / "x").path.read_bytes() == CONTENT


KINDS = {
    "text/plain": (b"\0\0\0\x18ftypmp42" + bytes(600), True),
    "application/octet-stream": (b"\x1aE\xdf\xa3" + bytes(600), True),
    "binary/octet-stream": (b"anything at all", True),
    "video/mp2t": ((b"G" + bytes(187)) * 4, True),
    "application/force-download": (b"RIFF\0\0\0\0AVI LIST" + bytes(600), True),
    "text/html": (b"<html><video src='v.mp4'></video></html>", False),
    "application/vnd.apple.mpegurl": (b"#EXTM3U\n", False),
    "audio/x-mpegurl": (b"#EXTM3U\n", False),
    "application/dash+xml": (b"<?xml version='1.0'?><MPD></MPD>", False),
    "Application/Octet-Stream; charset=binary": (b"#EXTM3U\n#EXTINF:9,\na.ts\n", False),
    "application/json": (b'{"url": 1}', False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_told_from_pages_and_playlists(kind, media, tmp_path):
    body, is_file = KINDS[kind]
    media.faults = lambda request: Fault.answer(200, body, {"Content-Type": kind})
    got = fetch(f"{media.url}/v", tmp_path / "x")
    assert (got is not None) == is_file
    if got:
        assert got.path.read_bytes() == body


def test_a_body_without_a_length_is_taken_to_its_end_and_said_to_be_unmeasured(media, tmp_path):
    media.faults = lambda request: Fault.with_headers({"Content-Length": None})
    got = fetch(f"{media.url}/v.mp4", tmp_path / "x", connections=4)
    assert (got.path.read_bytes(), got.length_stated) == (CONTENT, False)


def test_a_password_reaches_its_own_host_alone(media, tmp_path):
    """One server under two names: the second one is where the first one sends us."""
    media.faults = in_turn(
        {r"GET /v\.mp4": [Fault.redirect(f"http://localhost:{media.port}/v.mp4")]}
    )
    url = f"http://user:secret@127.0.0.1:{media.port}/v.mp4"
    assert fetch(url, tmp_path / "x").path.read_bytes() == CONTENT
    first, second = (exchange.request.headers for exchange in media.log)
    assert first["Authorization"].startswith("Basic ")
    assert second["Authorization"] is None


def test_cookies_reach_their_own_host_alone(media, tmp_path, monkeypatch):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(
        "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t4102444800\tSID\tsecret\n"
    )
    monkeypatch.setenv("YTDLP_COOKIES", str(cookies))
    before = cookies.read_bytes()
    media.faults = in_turn(
        {r"GET /v\.mp4": [Fault.redirect(f"http://localhost:{media.port}/v.mp4")]}
    )
    fetch(f"{media.url}/v.mp4", tmp_path / "x")
    first, second = (exchange.request.headers for exchange in media.log)
    assert first["Cookie"] == "SID=secret"
    assert second["Cookie"] is None
    assert cookies.read_bytes() == before


def test_a_netrc_file_is_not_looked_into(media, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert media.log[0].request.headers["Authorization"] is None


def test_each_hop_passes_the_guard(media, tmp_path):
    with FaultyMediaServer(media.folder) as inner:
        media.faults = lambda request: Fault.redirect(f"{inner.url}/v.mp4")
        with pytest.raises(TransferError) as error:
            fetch(f"{media.url}/v.mp4", tmp_path / "x", allow=(f"127.0.0.1:{media.port}",))
        assert (error.value.reason, inner.log) == ("blocked", [])


@pytest.mark.parametrize("where", ["http://[::1/v.mp4", "//[x/v", "http://h:port/", "file:///etc"])
def test_a_redirect_to_what_is_no_url_is_refused(where, media, tmp_path):
    media.faults = lambda request: Fault.redirect(where)
    with pytest.raises(TransferError) as error:
        fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert (error.value.status, error.value.reason) == ("permanent", "bad_url")


@pytest.mark.parametrize(
    "url",
    [
        "http://user:SECRET@127.0.0.1:{port}/v.mp4?sig=SECRET",
        "http://user:SECRET@127.0.0.1:{port}/gone.mp4?sig=SECRET",
        "http://127.0.0.1:{port}/sent.mp4?sig=SECRET",
        "http://127.0.0.1:9/v.mp4?next=http://SECRET@h/#SECRET",
        "http://user:SECRET@h:99999/v.mp4?sig=SECRET",
        "http://user:SECRET@h\u2100/v.mp4",
        "http://user:SECRET/SECRET@h/v.mp4",
        "http://user:SECRET@exa mple.com/v.mp4?sig=SECRET",
        "http://user:SECRET@[::1/v.mp4?sig=SECRET",
    ],
)
def test_no_failure_tells_a_password_or_a_signature(url, media, tmp_path):
    media.faults = in_turn(
        {
            r"GET /v\.mp4": [Fault.reset()] * 4,
            r"GET /sent": [Fault.redirect("http://u:SECRET@127.0.0.1:9/w.mp4?sig=SECRET")] * 4,
        }
    )
    with pytest.raises(TransferError) as error:
        fetch(url.format(port=media.port), tmp_path / "x")
    assert "SECRET" not in str(error.value)


def test_redirects_come_to_an_end_and_their_bodies_are_not_read(media, tmp_path):
    media.faults = lambda request: Fault.answer(302, bytes(1 << 20), {"Location": "/again"})
    with pytest.raises(TransferError) as error:
        fetch(f"{media.url}/v.mp4", tmp_path / "x")
    assert (error.value.status, error.value.reason) == ("permanent", "redirects")


def test_what_a_transfer_is_stopped_with_passes_through_all_its_threads(media, tmp_path):
    media.faults = lambda request: Fault.throttle(4e6)
    came = 0

    def watch(count: int) -> None:
        nonlocal came
        came += count
        if came > 300_000:
            raise Killed

    with pytest.raises(Killed):
        fetch(f"{media.url}/v.mp4", tmp_path / "x", connections=4, watch=watch)
    media.faults = None
    assert fetch(f"{media.url}/v.mp4", tmp_path / "x").path.read_bytes() == CONTENT


def test_a_file_above_the_limit_is_refused_before_it_comes(media, tmp_path):
    limits = Download(max_bytes=SIZE - 1)
    with pytest.raises(TransferError) as error:
        download_file(
            f"{media.url}/v.mp4",
            tmp_path / "x",
            guard=Guard(["127.0.0.1"]),
            limits=limits,
            watch=lambda count: None,
        )
    assert (error.value.status, error.value.reason) == ("permanent", "not_wanted")
