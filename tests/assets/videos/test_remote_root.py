"""The root may be an object store: everything but the journal of work in progress lies there."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from assets.annotations.catalogue import Catalogue, present_videos, read_catalogue
from assets.videos.acquire import acquire_part
from pipeline.why import why
from tests.servers.clips import clip
from tests.servers.faulty import FaultyHubServer, FaultyMediaServer
from tests.servers.hostile import tar_gz, zipped
from tests.servers.world import acquire, catalogued, make_settings, question
from training.formats import layout
from training.formats.storage import Storage


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    name = f"memory://{uuid.uuid4().hex}/deep"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory:/"), recursive=True)


def clips_in(folder: Path, count: int) -> Path:
    """The folder, made, with clips `v0.mp4` and so on."""
    folder.mkdir()
    for number in range(count):
        (folder / f"v{number}.mp4").write_bytes(clip(number))
    return folder


@pytest.mark.slow
def test_videos_and_their_catalogue_reach_an_object_store(root, tmp_path):
    served = clips_in(tmp_path / "served", 3)
    files = {
        "a.mp4": clip(4),
        "x.zip": zipped({"b.mp4": clip(5)}),
        "y.tar.gz": tar_gz({"c.mp4": clip(6)}),
    }
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "d.mp4").write_bytes(clip(7))
    with FaultyMediaServer(served) as media, FaultyHubServer() as hub:
        hub.publish("someone/clips", files)
        rows = [question(f"v{n}", "web", f"{media.url}/v{n}.mp4") for n in range(3)]
        rows += [question(name, "set") for name in "abc"] + [question("d", "own")]
        settings = make_settings(
            tmp_path / "deployment",
            {
                "web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]},
                "set": {
                    "kind": "hub",
                    "repo": "someone/clips",
                    "files": ["*.mp4"],
                    "archives": ["*.zip", "*.tar.gz"],
                },
                "own": {"kind": "drop", "folder": str(drop)},
            },
            rows,
            root=root,
            hub_endpoint=hub.url,
        )
        storage = catalogued(settings)
        for source in ("web", "set", "own"):
            assert acquire(storage, settings, source).coverage == 1.0, source
        asked = len(media.log) + len(hub.log)
        for source in ("web", "own"):
            assert acquire(storage, settings, source).counts["fetched"] == 0
        assert len(media.log) + len(hub.log) == asked
    store = fsspec.filesystem("memory")
    base = root.removeprefix("memory:/")
    assert store.cat(f"{base}/VideoMarathon/videos/web/v1.mp4") == clip(1)
    assert store.cat(f"{base}/VideoMarathon/videos/set/c.mp4") == clip(6)
    with store.open(f"{base}/VideoMarathon/catalogue/web/part0.parquet") as file:
        assert pq.read_table(file)["status"].to_pylist() == ["ok"] * 3
    assert read_catalogue(storage, "set", "part0")["status"].to_pylist() == ["ok"] * 3
    assert [video.video for video in present_videos(storage, settings, "part0")] == [
        "own/d",
        "set/a",
        "set/b",
        "set/c",
        "web/v0",
        "web/v1",
        "web/v2",
    ]
    assert any("VideoMarathon/videos/own/d.mp4" in line for line in why(storage, settings, "d"))
    assert not [
        path for path in (tmp_path / "cache").rglob("*.mp4") if ".tmp-incoming" in path.parts
    ]


@pytest.mark.slow
def test_what_a_killed_machine_had_fetched_is_found_again_when_another_one_went_on(root, tmp_path):
    served = clips_in(tmp_path / "served", 2)
    with FaultyMediaServer(served) as media:
        settings = make_settings(
            tmp_path / "deployment",
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            [question(f"v{n}", "web", f"{media.url}/v{n}.mp4") for n in range(2)],
            root=root,
        )
        killed, other = catalogued(settings), Storage(root, tmp_path / "other")
        catalogue = Catalogue(killed, "web", "part0")
        name = f"{layout.VIDEOS}/web/v0.mp4"
        killed.write_bytes(name, clip(0))
        catalogue.update("v0", status="ok", path=name, sha256="not looked at", size=len(clip(0)))
        catalogue._journal.close()
        with Catalogue(other, "web", "part0") as catalogue:
            catalogue.update("v1", status="transient", reason="connection")
        said: list[str] = []
        report = acquire_part(killed, settings, "web", "part0", said.append)
        assert (report.counts["adopted"], report.counts["fetched"]) == (1, 1)
        assert {one.request.path for one in media.log} == {"/v1.mp4"}
    table = read_catalogue(other, "web", "part0")
    assert table["status"].to_pylist() == ["ok", "ok"]
    assert table["sha256"][0].as_py() == hashlib.sha256(clip(0)).hexdigest()
    assert len([line for line in said if "belongs to an earlier table" in line]) == 1
