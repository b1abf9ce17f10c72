"""Why is this video not in my shards? The answer is true at every step of the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue
from assets.annotations.collect import collect_annotations
from assets.conversations.grouping import group_part
from assets.shards.writer import write_long_video_part
from pipeline.demo.servers import MediaServer
from pipeline.why import why
from tests.servers.clips import clip
from tests.servers.world import acquire, make_settings, question, quiet
from training.formats.storage import Storage


@pytest.fixture
def world(tmp_path: Path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "v0.mp4").write_bytes(clip(0))
    with MediaServer(served) as media:
        rows = [question(f"v{n}.mp4", "web", f"{media.url}/v{n}.mp4") for n in range(3)]
        rows += [question("lost", "vimeo"), {**question("mute", "web"), "answer": ""}]
        settings = make_settings(
            tmp_path,
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            rows,
            variants=["tiny"],
        )
        yield Storage(settings.root), settings


def answer(world, video: str) -> str:
    return "\n".join(why(*world, video))


def test_every_step_of_a_videos_way_is_told(world):
    storage, settings = world
    assert "materialize annotations" in answer(world, "web/v0")
    collect_annotations(storage, settings, quiet)
    assert "1 question-answer pairs, but it is not catalogued" in answer(world, "v0")
    build_catalogue(storage, settings, quiet)
    assert "pending" in answer(world, "web/v0")
    assert "materialize videos" in answer(world, "web/v0")
    acquire(storage, settings, "web")
    assert "VideoMarathon/videos/web/v0.mp4, 0.1 min, h264 96x64" in answer(world, "v0")
    assert "materialize conversations" in answer(world, "v0")
    group_part(storage, settings, 0, quiet)
    text = answer(world, "web/v0.mp4")
    assert "conversations: 1 samples" in text
    assert "features for tiny: not extracted yet" in text
    assert "shards: not written yet" in text
    storage.write_bytes("VideoMarathon/features/tiny/web/v0.safetensors", b"")
    assert "features for tiny: there" in answer(world, "v0")
    storage.remove("VideoMarathon/features/tiny/web/v0.safetensors")
    storage.write_json(
        "VideoMarathon/features/tiny/web/v0.quarantine.json",
        {"reason": "too_long", "detail": "9 h"},
    )
    assert "features for tiny: refused, too_long: 9 h" in answer(world, "v0")
    storage.remove("VideoMarathon/videos/web/v0.mp4")
    assert "the file is gone" in answer(world, "v0")


def test_failures_come_with_what_can_be_done(world):
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    acquire(storage, settings, "web")
    assert "permanent, http_404" in answer(world, "v1")
    assert "download.retry lists http_404" in answer(world, "v1")
    with Catalogue(storage, "web", "part0") as catalogue:
        catalogue.update("v2", status="permanent", reason="geo", message="not in your country")
    assert "HTTPS_PROXY" in answer(world, "v2")


def test_videos_that_no_usable_row_asks_for(world):
    storage, settings = world
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    assert "qa.jsonl, row 3: unknown_source" in answer(world, "lost")
    assert "sources are web" in answer(world, "vimeo/lost")
    assert "no_answer" in answer(world, "mute")
    assert "no annotation file asks for it (qa.jsonl)" in answer(world, "web/never-heard-of")


@pytest.mark.slow
def test_the_shards_themselves_are_looked_into(world):
    storage, settings = world

    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    acquire(storage, settings, "web")
    group_part(storage, settings, 0, quiet)
    write_long_video_part(storage, settings, 0, quiet)
    assert (
        "shards: 1 of its 1 samples are in VideoMarathon/sharding/videomarathon_video_part0"
        in answer(world, "web/v0")
    )
