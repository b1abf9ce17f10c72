"""Names that come from outside are looked up, and never become a path."""

from __future__ import annotations

import shutil

import pytest
from starlette.testclient import TestClient

from assets.records.lineage import Lineage, product
from assets.serving import library as subject
from assets.serving.engine import Engine
from assets.serving.library import Library
from assets.serving.server import make_app
from assets.sources.base import VIDEO_SUFFIXES
from training.formats.storage import Storage


@pytest.fixture
def storage(tmp_path, media):
    """A deployment with one video, a stage, and an evaluation."""
    storage = Storage(str(tmp_path / "root"))
    folder = tmp_path / "root" / "VideoMarathon" / "videos" / "panda"
    folder.mkdir(parents=True)
    shutil.copy(media / "short.mp4", folder / "abc.mp4")
    for asset, place in (("stage1", "checkpoints/a"), ("stage3", "checkpoints/b")):
        Lineage(product=product(asset, "tiny"), version="1", folder=place).write(storage)
        storage.write_json(f"{place}/export/config.json", {})
    storage.write_bytes("evaluation/tiny/gallery.html", b"<h1>Answers</h1>")
    Lineage(product=product("evaluation", "tiny"), version="1", folder="evaluation/tiny").write(
        storage
    )
    return storage


@pytest.fixture
def library(storage, media, tmp_path):
    with Library({}, storage, [media], tmp_path / "uploads", upload_bytes=100_000) as library:
        yield library


def uploaded(library, source, shown="mine.mp4"):
    path = library.new_file()
    shutil.copy(source, path)
    return library.add(path, shown)


def test_the_deployments_checkpoints_are_listed_the_last_stage_first(library, storage):
    assert list(library.checkpoints()) == ["stage3[tiny]", "stage1[tiny]"]
    assert library.checkpoint("stage3[tiny]") == storage.local_folder("checkpoints/b/export")
    with pytest.raises(ValueError, match=r"no checkpoint '\.\./b'; there are stage3\[tiny\]"):
        library.checkpoint("../b")


def test_videos_of_the_deployment_and_of_the_folders_are_found_by_a_text(library, storage, media):
    assert library.videos("ABC") == ["panda/abc.mp4"]
    assert library.video("panda/abc.mp4").samefile(
        storage.path("VideoMarathon/videos/panda/abc.mp4")
    )
    assert library.video(f"{media.name}/long.mp4") == media / "long.mp4"
    assert not library.videos("picture")  # no video


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "panda/../../secret.mp4", "../a.mp4", "", "link.mp4"]
)
def test_what_is_not_listed_is_no_video(library, name):
    with pytest.raises(ValueError, match="no video"):
        library.video(name)


def test_a_link_that_leads_out_of_a_folder_is_not_listed(media, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "link.mp4").symlink_to(media / "short.mp4")
    (tmp_path / "films" / "folder").symlink_to(media)
    with Library({}, None, [tmp_path / "films"], tmp_path / "uploads") as library:
        assert library.videos() == []


def test_an_upload_is_examined_listed_first_and_removed_at_the_end(library, media, tmp_path):
    name = uploaded(library, media / "short.mp4", "../<b>mine</b>.mp4")
    assert library.videos()[0] == name
    assert not set(name.partition("/")[2]) & set("/<>")
    assert library.video(name).read_bytes() == (media / "short.mp4").read_bytes()
    for source, message in ((media / "picture.jpg", "no usable video"), (__file__, "no usable")):
        with pytest.raises(ValueError, match=message):
            uploaded(library, source)
    library.upload_bytes = 10
    with pytest.raises(ValueError, match="uploads end at 10 bytes"):
        uploaded(library, media / "short.mp4")
    assert len(list((tmp_path / "uploads").iterdir())) == 1
    library.__exit__()
    assert list((tmp_path / "uploads").iterdir()) == []


def test_only_so_many_uploads_are_kept(library, media, monkeypatch, tmp_path):
    monkeypatch.setattr(subject, "KEPT_VIDEOS", 2)
    first, *others = [uploaded(library, media / "short.mp4") for _ in range(3)]
    assert library.videos("upload") == others[::-1]
    with pytest.raises(ValueError, match="no video"):
        library.video(first)
    assert len(list((tmp_path / "uploads").iterdir())) == 2


def test_the_player_gets_ranges_and_the_gallery_may_run_nothing(library):
    with Engine(library, "cpu") as engine:
        client = TestClient(make_app(engine, None, page=False), base_url="http://127.0.0.1")
        part = client.get("/media/panda/abc.mp4", headers={"range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        assert part.headers["content-type"] == "video/mp4"
        assert client.get("/media/..%2f..%2fetc/passwd").status_code == 404
        page = client.get("/gallery/tiny")
        assert page.text == "<h1>Answers</h1>"
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "sandbox" in page.headers["content-security-policy"]
        assert client.get("/gallery/..").status_code == 404
        assert client.get("/gallery/7b").status_code == 404


def test_every_kind_of_video_file_is_listed(media, tmp_path):
    (tmp_path / "films").mkdir()
    for suffix in (*VIDEO_SUFFIXES, ".WMV", ".txt", ".srt"):
        shutil.copy(media / "short.mp4", tmp_path / "films" / f"film{suffix}")
    with Library({}, None, [tmp_path / "films"], tmp_path / "uploads") as library:
        assert library.videos() == sorted(f"films/film{end}" for end in (*VIDEO_SUFFIXES, ".WMV"))
