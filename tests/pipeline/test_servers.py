"""The local servers behave like the real ones, also when they are told to misbehave."""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.demo import servers
from tests.servers.faulty import Fault, FaultyHubServer, FaultyMediaServer, in_turn

BODY = bytes(range(256)) * 1000


@pytest.fixture
def media(tmp_path: Path):
    (tmp_path / "served" / "panda").mkdir(parents=True)
    (tmp_path / "served" / "panda" / "a b.mp4").write_bytes(BODY)
    (tmp_path / "secret.txt").write_text("secret")
    with FaultyMediaServer(tmp_path / "served") as server:
        yield server


@pytest.fixture
def hub():
    with FaultyHubServer() as server:
        yield server


def get(server: FaultyMediaServer, **headers: str) -> requests.Response:
    return requests.get(f"{server.url}/panda/a%20b.mp4", headers=headers, timeout=10)


def drain(client: socket.socket) -> None:
    while client.recv(65536):
        pass


@pytest.mark.parametrize(
    ("header", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=100-", 206, 100, len(BODY)),
        ("bytes=-5", 206, len(BODY) - 5, len(BODY)),
        (f"bytes=10-{10**9}", 206, 10, len(BODY)),
        (f"bytes={len(BODY)}-", 416, 0, 0),
        ("lines=1-2", 200, 0, len(BODY)),
    ],
)
def test_a_range_is_answered_with_its_bytes(media, header, status, start, end):
    response = get(media, Range=header)
    assert (response.status_code, response.content) == (status, BODY[start:end])
    if status == 206:
        assert response.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(BODY)}"


def test_nothing_outside_the_folder_is_served(media):
    connection = http.client.HTTPConnection("127.0.0.1", media.port, timeout=10)
    for path in ("/../secret.txt", "/panda/../../secret.txt", "/%2e%2e/secret.txt", "/panda"):
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 404, path
        response.read()


def test_one_connection_carries_many_requests(media):
    connection = http.client.HTTPConnection("127.0.0.1", media.port, timeout=10)
    for method in ("HEAD", "GET", "GET"):
        connection.request(method, "/panda/a%20b.mp4")
        response = connection.getresponse()
        assert response.read() == (b"" if method == "HEAD" else BODY)
        assert response.headers["Content-Length"] == str(len(BODY))
    assert [exchange.sent_bytes for exchange in media.log] == [0, len(BODY), len(BODY)]


def test_a_status_fault_replaces_the_answer_and_runs_out(media):
    media.faults = in_turn(
        {r"GET /panda/": [Fault.answer(429, headers={"Retry-After": "7"}), None]}
    )
    first, second, third = get(media), get(media), get(media)
    assert (first.status_code, first.headers["Retry-After"]) == (429, "7")
    assert second.content == third.content == BODY


def test_html_can_pose_as_a_video(media):
    media.faults = lambda request: Fault.answer(200, b"<html>", {"Content-Type": "video/mp4"})
    assert (get(media).content, get(media).headers["Content-Type"]) == (b"<html>", "video/mp4")


def test_a_reset_after_some_bytes_is_a_reset_for_the_client(media):
    media.faults = lambda request: Fault.reset(after_bytes=1000)
    with socket.create_connection(("127.0.0.1", media.port), timeout=10) as client:
        client.sendall(b"GET /panda/a%20b.mp4 HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(100)
        with pytest.raises(ConnectionResetError):
            drain(client)
    assert media.log[-1].sent_bytes == 1000


def test_a_truncated_body_ends_before_its_stated_length(media):
    media.faults = lambda request: Fault.truncate(after_bytes=1000)
    connection = http.client.HTTPConnection("127.0.0.1", media.port, timeout=10)
    connection.request("GET", "/panda/a%20b.mp4")
    with pytest.raises(http.client.IncompleteRead) as caught:
        connection.getresponse().read()
    assert caught.value.partial == BODY[:1000]


@pytest.mark.parametrize("extra", [-10, 10])
def test_a_lie_about_length_is_in_the_header_only(media, extra):
    media.faults = lambda request: Fault.lie(extra_bytes=extra)
    response = requests.get(f"{media.url}/panda/a%20b.mp4", stream=True, timeout=10)
    assert int(response.headers["Content-Length"]) == len(BODY) + extra
    assert response.raw.read(len(BODY), decode_content=False) == BODY[: len(BODY) + min(extra, 0)]


def test_a_stall_sends_nothing_until_it_ends(media):
    media.faults = lambda request: Fault.stall(after_bytes=500)
    response = requests.get(f"{media.url}/panda/a%20b.mp4", stream=True, timeout=0.3)
    assert response.raw.read(500) == BODY[:500]
    with pytest.raises(Exception, match=r"[Tt]imed out"):
        response.raw.read(1)


def test_stopping_ends_a_stall_and_open_connections(tmp_path):
    (tmp_path / "a.mp4").write_bytes(BODY)
    server = FaultyMediaServer(tmp_path, faults=lambda request: Fault.stall())
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /a.mp4 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(10) == b"HTTP/1.1 2"
        started = time.monotonic()
        server.stop()
        drain(client)
    assert time.monotonic() - started < 5


def test_a_redirect_leads_where_it_says(media):
    media.faults = in_turn({"GET": [Fault.redirect("http://169.254.169.254/")]})
    response = requests.get(f"{media.url}/panda/a%20b.mp4", allow_redirects=False, timeout=10)
    assert (response.status_code, response.headers["Location"]) == (302, "http://169.254.169.254/")


def test_ranges_and_headers_can_be_taken_away(media):
    media.faults = in_turn(
        {"GET": [Fault.ignore_range(), Fault.with_headers({"etag": None, "X-New": "1"})]}
    )
    whole, bare = get(media, Range="bytes=5-9"), get(media)
    assert (whole.status_code, whole.content) == (200, BODY)
    assert "ETag" not in bare.headers
    assert bare.headers["X-New"] == "1"


def test_a_throttled_body_arrives_slowly_and_whole(media):
    media.faults = lambda request: Fault.throttle(bytes_per_s=1e6)
    started = time.monotonic()
    assert get(media).content == BODY
    # Half of the time that the rate asks for; without it, the body is there within a millisecond or
    # two.
    assert time.monotonic() - started > len(BODY) / 1e6 / 2


def test_a_port_that_was_used_can_be_used_again(tmp_path):
    with FaultyMediaServer(tmp_path) as first:
        port = first.port
        requests.get(f"{first.url}/none", timeout=10)
    with FaultyMediaServer(tmp_path, port=port) as second:
        assert second.port == port
        assert requests.get(f"{second.url}/none", timeout=10).status_code == 404


def test_the_hub_client_downloads_a_pinned_file(hub, tmp_path):
    sha = hub.publish("org/data", {"data/train.parquet": BODY, "README.md": b"# hi"})
    info = HfApi(endpoint=hub.url).dataset_info("org/data")
    assert (info.sha, [s.rfilename for s in info.siblings]) == (
        sha,
        ["README.md", "data/train.parquet"],
    )
    for name, content in {"data/train.parquet": BODY, "README.md": b"# hi"}.items():
        path = hf_hub_download(
            "org/data",
            name,
            repo_type="dataset",
            revision=sha,
            endpoint=hub.url,
            local_dir=tmp_path,
        )
        assert Path(path).read_bytes() == content


def test_a_tree_tells_sizes_and_the_hashes_that_the_hub_would(hub):
    hub.publish("org/data", {"a/b/train.parquet": BODY, "a/x.json": b"{}", "top.txt": b"hello"})
    api = HfApi(endpoint=hub.url)
    top = api.list_repo_tree("org/data", repo_type="dataset")
    assert [entry.path for entry in top] == ["a", "top.txt"]
    entries = {
        e.path: e for e in api.list_repo_tree("org/data", repo_type="dataset", recursive=True)
    }
    assert set(entries) == {"a", "a/b", "a/b/train.parquet", "a/x.json", "top.txt"}
    assert entries["a/b/train.parquet"].lfs.sha256 == hashlib.sha256(BODY).hexdigest()
    # `printf hello | git hash-object --stdin`
    assert (entries["top.txt"].blob_id, entries["top.txt"].lfs) == (
        "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
        None,
    )
    [found] = api.get_paths_info("org/data", ["a/x.json", "nowhere"], repo_type="dataset")
    assert (found.path, found.size) == ("a/x.json", 2)


def test_a_long_tree_is_paged(hub, monkeypatch):
    monkeypatch.setattr(servers, "LIST_PAGE", 7)
    names = {f"{i:03d}.txt": b"x" for i in range(20)}
    hub.publish("org/data", names)
    found = HfApi(endpoint=hub.url).list_repo_tree("org/data", repo_type="dataset", recursive=True)
    assert [entry.path for entry in found] == sorted(names)
    assert sum("/tree/" in exchange.request.path for exchange in hub.log) == 3


def test_the_hub_filesystem_reads_ranges(hub):
    hub.publish("org/data", {"big.zip": BODY})
    filesystem = HfFileSystem(endpoint=hub.url)
    with filesystem.open("datasets/org/data/big.zip", "rb", block_size=1000) as file:
        file.seek(5000)
        assert file.read(10) == BODY[5000:5010]
    assert any(exchange.status == 206 for exchange in hub.log)


def test_each_revision_stays_reachable(hub):
    first = hub.publish("org/data", {"a.txt": b"one"})
    second = hub.publish("org/data", {"a.txt": b"two"})
    assert first != second == hub.publish("org/data", {"a.txt": b"two"})
    for revision, text in ((first, "one"), (second, "two"), ("main", "two")):
        url = f"{hub.url}/datasets/org/data/resolve/{revision}/a.txt"
        assert requests.get(url, timeout=10).text == text


def test_missing_things_are_named_as_the_hub_names_them(hub):
    hub.publish("org/data", {"a.txt": b"one"})
    api = HfApi(endpoint=hub.url)
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/none")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info("org/data", revision="0" * 40)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/data", "none.txt", repo_type="dataset", endpoint=hub.url)


def test_a_gated_repository_asks_for_its_token(hub):
    hub.publish("org/data", {"a.txt": b"one"}, token="hf_secret")
    url = f"{hub.url}/datasets/org/data/resolve/main/a.txt"
    refused = requests.get(url, timeout=10)
    assert (refused.status_code, refused.headers["X-Error-Code"]) == (401, "GatedRepo")
    assert (
        requests.get(url, headers={"Authorization": "Bearer hf_secret"}, timeout=10).text == "one"
    )


def test_a_renamed_repository_is_still_found_under_its_old_name(hub):
    hub.publish("org/old", {"data/a b.txt": b"one"})
    hub.rename("org/old", "org/new")
    assert HfApi(endpoint=hub.url).dataset_info("org/old").id == "org/new"
    assert (
        requests.get(f"{hub.url}/datasets/org/old/resolve/main/data/a%20b.txt", timeout=10).text
        == "one"
    )
    assert hub.log[-2].status == 307


def test_the_hub_serves_folders_and_hostile_names_as_given(hub, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.bin").write_bytes(BODY)
    hub.publish("org/folder", tmp_path)
    assert (
        requests.get(f"{hub.url}/datasets/org/folder/resolve/main/data/x.bin", timeout=10).content
        == BODY
    )
    hub.publish("org/evil", {"../out.txt": b"x"})
    assert HfApi(endpoint=hub.url).dataset_info("org/evil").siblings[0].rfilename == "../out.txt"
