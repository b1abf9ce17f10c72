"""The bill of materials of a checkpoint, against what MosaicML's own reader finds in the shards."""

import json
import shutil
from pathlib import Path

import pytest

from assets.checkpoints.bill import BILL, VIDEOS, read_bill, trained_videos, write_bill
from assets.records.lineage import Lineage
from assets.records.withdrawals import Withdrawal, Withdrawals
from assets.shards.mixture_views import write_views
from assets.shards.writer import write_kind_part, write_long_video_part
from tests.assets.shards.roots import make_conversations, make_root, quiet, settings_for
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND, MULTI_IMAGE_KIND, SHORT_VIDEO_KIND, TEXT_KIND
from training.formats.storage import Storage
from training.recipes import ShardInput
from training.run_config import parse_run

INPUTS = {"stage2[tiny]": "two", "hourllava_s3": "mixed"}
LICENSED = {"panda": {"kind": "url", "licence": "CC BY 4.0"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A mixture of whole and half parts of four kinds."""
    root = tmp_path_factory.mktemp("bill")
    storage, settings = make_root(root), settings_for(root)
    for kind in (TEXT_KIND, SHORT_VIDEO_KIND, MULTI_IMAGE_KIND):
        write_kind_part(storage, settings, kind, 0, quiet)
    for part in range(2):
        make_conversations(storage, part, videos=4, samples=3, duration=1800.0)
        write_long_video_part(storage, settings, part, quiet)
    short = [ShardInput(SHORT_VIDEO_KIND, 0), ShardInput(TEXT_KIND, 0)]
    long = [ShardInput(LONG_VIDEO_KIND, 0), ShardInput(LONG_VIDEO_KIND, 1, 0)]
    write_views(storage, [short, [*long, ShardInput(MULTI_IMAGE_KIND, 0, 1)]])
    Lineage("hourllava_s3", "mixed", inputs={"conversations[part0]": "c"}).write(storage)
    Lineage("conversations[part0]", "c", inputs={"annotations": "a"}).write(storage)
    Lineage("annotations", "a", inputs={"jylins/videomarathon": "f" * 40}).write(storage)
    return root


@pytest.fixture
def storage(made, tmp_path) -> Storage:
    shutil.copytree(made, tmp_path / "root")
    return Storage(str(tmp_path / "root"))


def run_on(storage: Storage):
    streams = [
        {
            "name": name,
            "root": storage.path(layout.SHARDS),
            "indexes": (f"{layout.MIXTURE}/{number}/index.json",),
        }
        for number, name in enumerate(("short", "long"))
    ]
    return parse_run(
        {
            "variant": "tiny",
            "stage": 3,
            "start": "nowhere",
            "out": storage.path("checkpoints/tiny/stage3/k"),
            "streams": streams,
            "features_root": "nowhere",
            "videos_root": "nowhere",
        }
    )


def bill_of(storage: Storage, **sources):
    settings = settings_for(Path(storage.root))
    settings = type(settings).model_validate({**settings.model_dump(), "sources": LICENSED})
    return write_bill(storage, settings, run_on(storage), "stage3[tiny]", INPUTS)


def truth(storage: Storage) -> list[dict]:
    """Every row that the run reads, by the library that training uses."""
    from streaming.base.format import reader_from_json

    rows = []
    for number in (0, 1):
        index = storage.read_json(f"{layout.STAGE3_MIXTURE}/{number}/index.json")
        for entry in index["shards"]:
            reader = reader_from_json(storage.path(layout.SHARDS), "", entry)
            rows += [reader[place] for place in range(entry["samples"])]
    return rows


def test_rows_videos_and_hours_are_those_of_the_shards(storage):
    bill, rows = bill_of(storage), truth(storage)
    assert bill["rows"] == len(rows)
    videos = {
        row["video"] if row["kind"] == LONG_VIDEO_KIND else f"LLaVA-Video-178K/{row['video']}"
        for row in rows
        if row["video"]
    }
    assert bill["videos"] == len(videos)
    assert trained_videos(storage, "checkpoints/tiny/stage3/k") == videos
    long = {row["video"] for row in rows if row["kind"] == LONG_VIDEO_KIND}
    by_source = {(row["kind"], row["source"]): row for row in bill["sources"]}
    panda = by_source[LONG_VIDEO_KIND, "panda"]
    assert panda == {
        "kind": LONG_VIDEO_KIND,
        "source": "panda",
        "rows": sum(row["kind"] == LONG_VIDEO_KIND for row in rows),
        "videos": len(long),
        "hours": len(long) / 2,
        "licence": "CC BY 4.0",
    }
    assert by_source[TEXT_KIND, "llava_onevision"]["licence"] == "not stated in the settings"
    assert sum(row["rows"] for row in bill["sources"]) == bill["rows"]
    assert sum(row["rows"] for row in bill["shards"]) == bill["rows"]


def test_revisions_and_the_checkpoint_that_it_started_from_stand_in_it(storage):
    earlier = Lineage("stage2[tiny]", "two", folder="checkpoints/tiny/stage2/j")
    earlier.write(storage)
    storage.write_json("checkpoints/tiny/stage2/j/bill.json", {"product": "stage2[tiny]"})
    bill = bill_of(storage)
    assert bill["revisions"] == {"jylins/videomarathon": "f" * 40}
    assert bill["started from"] == {
        "product": "stage2[tiny]",
        "version": "two",
        "bill": {"product": "stage2[tiny]"},
    }


def test_the_same_inputs_give_the_same_bytes_and_another_shard_another_bill(storage):
    def written() -> list[bytes]:
        bill_of(storage)
        return [storage.read_bytes(f"checkpoints/tiny/stage3/k/{name}") for name in (BILL, VIDEOS)]

    first = written()
    assert written() == first
    make_conversations(storage, 0, videos=3, samples=3, duration=1800.0)
    write_long_video_part(storage, settings_for(Path(storage.root)), 0, quiet)
    write_views(storage, [[ShardInput(TEXT_KIND, 0)], [ShardInput(LONG_VIDEO_KIND, 0)]])
    assert written() != first


def test_what_was_withdrawn_before_is_named_and_not_among_the_videos(storage):
    Withdrawals({}, {"panda/gone": Withdrawal("asked for", "2026-01-01T00:00:00Z")}).write(storage)
    bill = bill_of(storage)
    assert bill["withdrawn before"] == ["panda/gone"]
    assert "panda/gone" not in trained_videos(storage, "checkpoints/tiny/stage3/k")


def test_a_list_of_videos_that_was_changed_is_not_believed(storage):
    bill_of(storage)
    storage.write_bytes(f"checkpoints/tiny/stage3/k/{VIDEOS}", b"panda/other\n")
    with pytest.raises(ValueError, match=r"other content than bill\.json says"):
        trained_videos(storage, "checkpoints/tiny/stage3/k")


def test_a_checkpoint_without_a_bill_has_none(storage):
    assert trained_videos(storage, "checkpoints/tiny/stage3/none") is None
    assert read_bill(storage, Lineage("stage1[tiny]", "v", folder="nowhere")) is None
    bill = bill_of(storage)
    record = Lineage("stage3[tiny]", "v", folder="checkpoints/tiny/stage3/k")
    assert read_bill(storage, record) == json.loads(json.dumps(bill))


def test_a_shard_that_cannot_be_read_is_named_and_the_list_is_not_called_whole(storage):
    folder = f"{layout.SHARDS}/{LONG_VIDEO_KIND}_part0"
    (first, *_) = storage.read_json(f"{folder}/index.json")["shards"]
    name = first["raw_data"]["basename"]
    storage.write_bytes(f"{folder}/{name}", storage.read_bytes(f"{folder}/{name}")[:40])
    bill = bill_of(storage)
    assert bill["unread shards"] == [f"{LONG_VIDEO_KIND}_part0/{name}"]
    assert trained_videos(storage, "checkpoints/tiny/stage3/k") is None
