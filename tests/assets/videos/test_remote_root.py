"""The root may be an object store: everything but the journal of work in progress lies there."""

from __future__ import annotations

import uuid

import fsspec
import pyarrow.parquet as pq
import pytest

from assets.annotations.catalogue import present_videos, read_catalogue
from pipeline.why import why
from tests.servers.clips import clip
from tests.servers.faulty import FaultyHubServer, FaultyMediaServer
from tests.servers.hostile import tar_gz, zipped
from tests.servers.world import acquire, catalogued, make_settings, question


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    name = f"memory://{uuid.uuid4().hex}/deep"
    yield name
    fsspec.filesystem("memory").rm(name.removeprefix("memory:/"), recursive=True)


@pytest.mark.slow
def test_videos_and_their_catalogue_reach_an_object_store(root, tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    for number in range(3):
        (served / f"v{number}.mp4").write_bytes(clip(number))
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
