"""One byte is flipped in a file of each kind: nothing is made from it, and materializing its
product again names it, sets it aside and ends with the bytes of before.
"""

import json

import dagster as dg
import pytest
import yaml

from assets.records.lineage import Lineage
from tests.assets.features.conftest import make_encoder
from tests.materializing import materialize_asset
from tests.model.media import clips
from training.formats.storage import Storage

pytestmark = pytest.mark.slow

SOURCE_PART = dg.MultiPartitionKey({"part": "part0", "source": "ego4d"})
VARIANT_PART = dg.MultiPartitionKey({"part": "part0", "variant": "tiny"})
ROOM = "VideoMarathon"
# Asset, partition, a file of its product, and who refuses to be made from it.
KINDS = [
    ("annotations", None, f"{ROOM}/annotations.parquet", ("conversations", "part0")),
    ("catalogue", None, f"{ROOM}/parts.json", None),
    ("videos", SOURCE_PART, f"{ROOM}/videos/ego4d/a.mp4", ("features", VARIANT_PART)),
    ("conversations", "part0", f"{ROOM}/conversations/part0.parquet", ("videomarathon_json", None)),
    ("videomarathon_json", None, f"{ROOM}/jsons/videomarathon.json", None),
    ("features", VARIANT_PART, f"{ROOM}/features/tiny/ego4d/b.safetensors", None),
    (
        "videomarathon_video",
        "part0",
        f"{ROOM}/sharding/videomarathon_video_part0/shard.00000.mds",
        None,
    ),
]


class World:
    """A deployment with one drop source and every asset of its long videos made."""

    def __init__(self, folder, instance, root="root", **sections) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.assets = folder, instance, definitions().assets
        self.storage = Storage(root if "://" in root else str(folder / root))
        rows = [
            {"video": name, "data_source": "ego4d", "question": f"What {n}?", "answer": "Red."}
            for name in ("a", "b")
            for n in range(3)
        ]
        (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        make_encoder(folder / "encoder", seed=1)
        settings = {
            "root": root,
            "parts": 1,
            "variants": ["tiny"],
            "annotations": {"paths": ["qa.jsonl"]},
            "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
            "download": {"min_free_bytes": 0},
            "shards": {"workers": 1},
            "features": {"encoder": "encoder", "decode_workers": 1, "device": "cpu"},
            **sections,
        }
        (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
        (folder / "drop").mkdir()
        for number, name in enumerate(("a", "b")):
            clips.encode(folder / "drop" / f"{name}.mp4", 30 + number, rate=10)
        for asset, partition, *_ in KINDS:
            assert self.make(asset, partition).success

    def make(self, asset, partition=None) -> dg.ExecuteInProcessResult:
        result = materialize_asset(self.assets, self.instance, self.folder, asset, partition)
        logs = self.instance.all_logs(result.run_id)
        self.lines = [event.user_message for event in logs if event.dagster_event is None]
        return result

    def refusal(self, asset, partition) -> str:
        result = self.make(asset, partition)
        assert not result.success
        (event,) = [event for event in result.all_events if event.is_step_failure]
        return str(event.step_failure_data.user_failure_data.description)

    def flip(self, name: str, at: bytes = b"") -> tuple[bytes, bytes]:
        """Change one byte in the middle, or the first one of `at`; the bytes before and after."""
        path = self.folder / "root" / name
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[whole.index(at) if at else len(whole) // 2] ^= 1
        path.unlink()  # the file in the drop folder may be the same one
        path.write_bytes(damaged)
        return whole, bytes(damaged)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with dg.instance_for_test() as instance:
        yield World(tmp_path_factory.mktemp("world"), instance)


@pytest.mark.parametrize(("asset", "partition", "name", "user"), KINDS, ids=[k[0] for k in KINDS])
def test_a_damaged_file_is_named_set_aside_and_made_again(world, asset, partition, name, user):
    record_of = f"{asset}[{partition}]" if partition else asset
    before = Lineage.read(world.storage, record_of)
    whole, damaged = world.flip(name)
    if user:
        assert f"{record_of}: {name} has other content" in world.refusal(*user)

    assert world.make(asset, partition).success

    (line,) = [line for line in world.lines if "set aside as" in line]
    assert line == (
        f"{record_of}: {name} has other content; set aside as damaged/{name}.1, made again"
    )
    assert world.storage.read_bytes(f"damaged/{name}.1") == damaged
    assert world.storage.read_bytes(name) == whole
    after = Lineage.read(world.storage, record_of)
    assert (after.version, after.receipt) == (before.version, before.receipt)
    assert after.damage(world.storage, full=True) == []


@pytest.mark.parametrize("first", ["videos", "catalogue"])
def test_a_damaged_table_of_videos_is_made_again_and_nothing_is_fetched_for_it(world, first):
    name = f"{ROOM}/catalogue/ego4d/part0.parquet"
    videos = f"videos[{SOURCE_PART}]"
    before = Lineage.read(world.storage, videos)
    world.flip(name, at=b"ego4d/a")  # a table is known by its rows, so one of them is hurt
    assert f"{name} is damaged" in world.refusal("conversations", "part0")
    if first == "catalogue":
        assert world.make("catalogue").success
        assert any(f"{name} has other content; set aside as" in line for line in world.lines)
        assert f"materialize {videos} again" in world.refusal("conversations", "part0")
    made = world.make("videos", SOURCE_PART)
    assert made.success
    after = Lineage.read(world.storage, videos)
    assert (after.counts["fetched"], after.counts["adopted"]) == (0, 2)
    assert (after.version, after.receipt, after.failed) == (before.version, before.receipt, {})
    assert world.make("conversations", "part0").success
