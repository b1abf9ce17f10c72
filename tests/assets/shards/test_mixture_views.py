"""The stage-3 mixture: an index over parts, reproducible, without a copy, a link, or a name that
leaves the folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from assets.shards.mixture_views import write_mixture, write_views
from assets.shards.part import INDEX, MANIFEST, part_folder
from assets.shards.writer import write_kind_part, write_long_video_part
from tests.assets.shards.roots import contents, make_conversations, make_root, quiet, settings_for
from training.formats import layout
from training.formats.kinds import MIXED_KINDS
from training.formats.storage import Storage
from training.recipes import ShardInput


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("parts")
    storage, settings = make_root(root), settings_for(root)
    for kind in MIXED_KINDS:
        for part in range(10):
            write_kind_part(storage, settings, kind, part, quiet)
    for part in range(3):
        make_conversations(storage, part, videos=4, samples=3)
        write_long_video_part(storage, settings, part, quiet)
    return root


@pytest.fixture
def storage(parts, tmp_path) -> Storage:
    shutil.copytree(parts, tmp_path / "root")
    return Storage(str(tmp_path / "root"))


def names(storage: Storage, stream: int) -> list[str]:
    return [
        shard["raw_data"]["basename"]
        for shard in storage.read_json(f"{layout.STAGE3_MIXTURE}/{stream}/{INDEX}")["shards"]
    ]


@pytest.mark.slow
def test_the_streams_are_those_of_the_specification(storage):
    report = write_mixture(storage, [0, 1, 2])
    first, second = (
        {name.partition("/")[0] for name in names(storage, stream)} for stream in (0, 1)
    )
    image_kinds = ("llavavideo_text", "llavavideo_si", "llavavideo_mi")
    assert first == {f"llavavideo_video_part{part}" for part in range(2, 10)} | {
        f"{kind}_part{part}" for kind in image_kinds for part in range(1, 6)
    }
    assert second == {f"videomarathon_video_part{part}" for part in range(3)} | {
        f"{kind}_part{part}" for kind in image_kinds for part in range(5, 10)
    }
    for kind in image_kinds:
        halves = [
            [n for n in names(storage, stream) if n.startswith(f"{kind}_part5/")]
            for stream in (0, 1)
        ]
        shards = storage.read_json(f"{part_folder(kind, 5)}/{INDEX}")["shards"]
        assert [*halves[0], *halves[1]] == [
            f"{kind}_part5/{shard['raw_data']['basename']}" for shard in shards
        ]
        samples = storage.read_json(f"{part_folder(kind, 5)}/{MANIFEST}")["first_half"]["samples"]
        assert abs(2 * samples - sum(shard["samples"] for shard in shards)) <= 1
    total = sum(report.counts[f"stream {stream}: samples"] for stream in (0, 1))
    assert total == report.counts["samples"] == sum(row["samples"] for row in report.table)


def test_views_hold_nothing_but_an_index_and_are_the_same_every_time(storage):
    report = write_mixture(storage, [0, 1, 2])
    folder = Path(storage.path(layout.STAGE3_MIXTURE))
    before = contents(folder)
    assert set(before) == {"0/index.json", "1/index.json", "manifest.json"}
    assert not any(path.is_symlink() for path in Path(storage.path(layout.SHARDS)).rglob("*"))
    assert write_mixture(storage, [0, 1, 2]) == report
    assert contents(folder) == before
    for stream in (0, 1):
        for name in names(storage, stream):
            assert ".." not in name
            assert storage.exists(f"{layout.SHARDS}/{name}")


def test_a_new_part_extends_the_long_stream_only(storage):
    before = write_mixture(storage, [0, 1])
    short = names(storage, 0)
    after = write_mixture(storage, [0, 1, 2])
    assert names(storage, 0) == short
    assert after.version != before.version
    assert after.counts["samples"] - before.counts["samples"] == 12


def test_a_part_that_is_not_there_is_named(storage):
    with pytest.raises(FileNotFoundError, match="videomarathon_video_part7; materialize"):
        write_mixture(storage, [0, 7])


def test_an_index_that_names_a_file_elsewhere_is_refused(storage):
    index = Path(storage.path(f"{part_folder('videomarathon_video', 0)}/{INDEX}"))
    content = json.loads(index.read_text())
    content["shards"][0]["raw_data"]["basename"] = "../../../secret.mds"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not a file of this part"):
        write_views(storage, [[ShardInput("videomarathon_video", 0)]])
