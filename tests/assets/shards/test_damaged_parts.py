"""A part of shards that was damaged: materializing it again names the damage, sets it aside, and
ends with the bytes of before.
"""

import json

import dagster as dg
import pytest
import yaml

from assets.records.lineage import Lineage
from assets.shards.assets import llava_shards
from assets.shards.part import part_folder
from tests.assets.shards.roots import MIXTURE, contents, make_root
from tests.materializing import materialize_asset
from training.formats import layout

PART = "llava_ov_si_onlyimg[part0]"
FOLDER = part_folder("llava_ov_si_onlyimg", 0)


class Deployed:
    """A root with images, its first part of shards, and an instance that remembers it."""

    def __init__(self, folder, instance) -> None:
        (folder / "mixtures.csv").write_text(MIXTURE)
        settings = {
            "root": "root",
            "variants": ["tiny"],
            "annotations": {"paths": ["none.jsonl"]},
            "sources": {"mine": {"kind": "drop", "folder": "drop"}},
            "collections": {"mixtures": "mixtures.csv"},
            "shards": {"workers": 1, "rows_per_shard": 8},
        }
        (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
        self.storage, self.instance, self.folder = make_root(folder / "root", 60), instance, folder
        Lineage("llava_onevision", "v1").write(self.storage)
        self.lines: list[str] = []

    @property
    def part(self):
        return self.folder / "root" / FOLDER

    def make(self, asset="llava_ov_si_onlyimg", partition="part0") -> dg.ExecuteInProcessResult:
        result = materialize_asset(llava_shards, self.instance, self.folder, asset, partition)
        logs = self.instance.all_logs(result.run_id)
        self.lines = [event.user_message for event in logs if event.dagster_event is None]
        return result

    def version(self) -> str:
        record = self.instance.get_latest_data_version_record(
            dg.AssetKey("llava_ov_si_onlyimg"), partition_key="part0"
        )
        return record.asset_materialization.tags["dagster/data_version"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with dg.instance_for_test() as instance:
        deployed = Deployed(tmp_path_factory.mktemp("deployed"), instance)
        assert deployed.make().success
        yield deployed


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shard.00001.mds", "index.json", "manifest.json", "examples.png"])
def test_one_flipped_byte_is_named_set_aside_and_written_again(made, name):
    before, version = contents(made.part), made.version()
    flip(made.part / name, place=len(before[name]) // 2)
    damaged = (made.part / name).read_bytes()

    result = made.make()

    assert result.success
    assert all(check.passed for check in result.get_asset_check_evaluations())
    (aside,) = (made.folder / "root/damaged" / FOLDER).glob(f"{name}.*")
    assert aside.read_bytes() == damaged
    (line,) = [line for line in made.lines if "set aside" in line]
    assert line == (
        f"{PART}: {FOLDER}/{name} has other content; set aside as damaged/{FOLDER}/{name}.1, made "
        "again"
    )
    after = contents(made.part)
    for bytes_of in (before, after):
        del bytes_of["lineage.json"]  # it names the run
    assert after == before
    assert made.version() == version
    assert Lineage.read(made.storage, PART).damage(made.storage, full=True) == []


@pytest.mark.slow
def test_only_the_damaged_shard_is_written_again(made):
    kept = {path: path.stat().st_ino for path in made.part.glob("*.mds")}
    flip(made.part / "shard.00001.mds")
    assert made.make().success
    renewed = {path.name for path, inode in kept.items() if path.stat().st_ino != inode}
    assert renewed == {"shard.00001.mds"}
    assert any("1 of its files were written again" in line for line in made.lines)


def test_a_whole_part_is_left_as_it_is(made):
    kept = {path: path.stat().st_ino for path in made.part.glob("*.mds")}
    assert made.make().success
    assert {path: path.stat().st_ino for path in kept} == kept
    assert any("the part is left as it is" in line for line in made.lines)


def test_a_part_without_a_receipt_is_compared_with_its_own_index(made):
    """A run that is ended between publishing a part and recording it leaves no receipt."""
    before = contents(made.part)
    for folder in ("lineage", "stamps"):
        for path in (made.folder / "root" / folder / "llava_ov_si_onlyimg").glob("*"):
            path.unlink()
    flip(made.part / "shard.00000.mds")
    result = made.make()
    assert result.success
    assert any("shard.00000.mds has other content; set aside" in line for line in made.lines)
    assert contents(made.part)["shard.00000.mds"] == before["shard.00000.mds"]


def test_nothing_is_made_from_a_damaged_collection_list(made):
    storage = made.storage
    name = f"{layout.LLAVA_ONEVISION}/annotations.files.json"
    storage.write_bytes(name, b"[\n\n]\n")
    from training.formats.receipts import describe_files

    record = Lineage("llava_onevision", "v1").with_files(storage, describe_files(storage, [name]))
    record.write(storage)
    storage.write_bytes(name, json.dumps([]).encode())
    result = made.make(partition="part1")
    assert not result.success
    (event,) = [event for event in result.all_events if event.is_step_failure]
    said = event.step_failure_data.user_failure_data.description
    assert f"llava_onevision: {name} has" in said
    assert "Materialize what is damaged again" in said
    Lineage("llava_onevision", "v1").write(storage)
