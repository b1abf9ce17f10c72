"""Corrections through Dagster: an edited answer, a mended URL, a removed row, a removed file. Each
reaches the part that it touches, and no other one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest
import yaml

from assets.annotations.catalogue import read_catalogue
from assets.deployment.parts import part_of
from assets.records.lineage import Lineage
from pipeline.definitions import definitions
from tests.assets.test_materializing import shown
from tests.materializing import materialize_asset
from tests.model.media import clips
from training.formats import layout
from training.formats.storage import Storage

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
VIDEOS = ("a", "b", "c", "d")
PART = {name: f"part{part_of(f'ego4d/{name}', 2)}" for name in VIDEOS}
ASSETS = ("videos", "conversations", "part_rows")


class World:
    """A deployment of one drop source in two parts, made up to the conversations."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance, self.defs = folder, instance, definitions()
        loaded = yaml.safe_load((TESTS / "deployment.yaml").read_text())
        self.rows = [
            {
                "id": f"{name}{n}",
                "video": name,
                "data_source": "ego4d",
                "question": f"What {n}?",
                "answer": "Red.",
            }
            for name in VIDEOS
            for n in range(3)
        ]
        settings = {
            "root": "root",
            "parts": 2,
            "landing": "landing",
            "variants": ["tiny"],
            "annotations": {"paths": ["qa.jsonl"]},
            "sources": loaded["sources"],
            "download": {"min_free_bytes": 0, "coverage_threshold": 0.0},
            "shards": {"workers": 1},
        }
        (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
        (folder / "drop").mkdir()
        (folder / "landing").mkdir()
        for name in VIDEOS:
            clips.encode(folder / "drop" / f"{name}.mp4", 30, rate=10)
        self.storage = Storage(str(folder / "root"))
        self.cursor: object = None
        self.write()

    def write(self) -> None:
        write(self.folder / "qa.jsonl", self.rows)

    def land(self, name: str, *rows: dict) -> None:
        write(self.folder / "landing" / name, rows)

    def make(self, asset: str, partition: object = None) -> dict:
        result = materialize_asset(self.defs.assets, self.instance, self.folder, asset, partition)
        return shown(result, asset)

    def collect(self) -> tuple[dict, dict]:
        """What the annotations and the catalogue show of themselves."""
        return self.make("annotations"), self.make("catalogue")

    def follow(self) -> set[str]:
        """Make what automation asks for, until nothing more is; what that was."""
        made: set[str] = set()
        for _ in range(8):
            asked = self.asked()
            for name in sorted(asked, reverse=True):
                asset, _, key = name.rstrip("]").partition("[")
                part, _, source = key.partition("|")
                keys = {"part": part, "source": source}
                self.make(asset, dg.MultiPartitionKey(keys) if source else part)
            if not asked and not self.asked():
                return made
            made |= asked
        raise AssertionError(made)

    def asked(self) -> set[str]:
        result = dg.evaluate_automation_conditions(
            defs=self.defs,
            instance=self.instance,
            asset_selection=dg.AssetSelection.assets("videos", "conversations"),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        return {
            f"{name}[{key}]"
            for name in ("videos", "conversations")
            for key in result.get_requested_partitions(dg.AssetKey(name))
        }

    def answers(self, part: str) -> dict[str, str]:
        """Id of a question -> its answer, as the samples of a part have it."""
        table = pq.read_table(self.storage.local(layout.conversations(part)))
        texts = [json.loads(text) for text in table["conversations"].to_pylist()]
        return {
            f"{sample['video']} {human['value'].replace('<image>', '').strip()}": gpt["value"]
            for sample, turns in zip(table.to_pylist(), texts, strict=True)
            for human, gpt in zip(turns[::2], turns[1::2], strict=True)
        }

    def told(self) -> int:
        """How many versions of parts' rows Dagster was told."""
        return len(
            self.instance.fetch_materializations(dg.AssetKey("part_rows"), limit=100).records
        )


def write(path: Path, rows: object) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(path, (1, 1))


def changes(shown: dict) -> dict[str, int]:
    return {row["what"]: row["rows"] for row in shown["rows since the collection before"]}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # What automation asks for, it reads from the register of the settings that this names.
    monkeypatch.setenv("HOURLLAVA_CONFIG", str(tmp_path / "deployment.yaml"))
    with dg.instance_for_test() as instance:
        world = World(tmp_path, instance)
        world.asked()
        world.collect()
        made = world.follow()
        assert {name for name in made if name.startswith("conv")} == {
            f"conversations[{part}]" for part in set(PART.values())
        }
        yield world


def test_an_edited_answer_reaches_its_own_part_and_no_other(world: World) -> None:
    told = world.told()
    before = {part: Lineage.read(world.storage, f"conversations[{part}]") for part in PART.values()}
    world.rows[4]["answer"] = "Blue."  # of b
    world.write()
    annotations, catalogue = world.collect()
    assert changes(annotations) == {"came": 0, "changed": 1, "gone": 0}
    assert annotations["changed files"] == [
        {"file": "qa.jsonl", "came": 0, "changed": 1, "gone": 0}
    ]
    assert catalogue["parts with other rows than before"] == [PART["b"]]
    assert world.told() == told + 1
    assert world.follow() >= {f"conversations[{PART['b']}]"}
    assert world.answers(PART["b"])["ego4d/b What 1?"] == "Blue."
    for part in set(PART.values()) - {PART["b"]}:
        assert Lineage.read(world.storage, f"conversations[{part}]") == before[part]
    record = Lineage.read(world.storage, f"conversations[{PART['b']}]")
    rows = f"part_rows[{PART['b']}]"
    assert record.inputs[rows] == Lineage.read(world.storage, rows).version
    assert Lineage.read(world.storage, rows).inputs == {
        "annotations": Lineage.read(world.storage, "annotations").version
    }


def test_a_landing_file_corrects_and_its_removal_brings_the_old_answer_back(world: World) -> None:
    world.land("mended.jsonl", {**world.rows[0], "answer": "Green."})
    annotations, catalogue = world.collect()
    assert changes(annotations) == {"came": 0, "changed": 1, "gone": 0}
    assert annotations["counts"][0]["what"] == "rows_read"
    assert "rejected" not in annotations, "a corrected row is none that was set aside"
    assert catalogue["parts with other rows than before"] == [PART["a"]]
    assert catalogue["parts"] == ["part0", "part1"]
    world.follow()
    assert world.answers(PART["a"])["ego4d/a What 0?"] == "Green."
    (world.folder / "landing/mended.jsonl").unlink()
    annotations, _ = world.collect()
    assert changes(annotations) == {"came": 0, "changed": 1, "gone": 0}
    world.follow()
    assert world.answers(PART["a"])["ego4d/a What 0?"] == "Red."


def test_removed_rows_go_and_a_video_without_rows_keeps_its_file(world: World) -> None:
    before = world.storage.read_bytes("VideoMarathon/videos/ego4d/d.mp4")
    world.rows = [row for row in world.rows if row["video"] != "d"]
    world.write()
    annotations, catalogue = world.collect()
    assert changes(annotations) == {"came": 0, "changed": 0, "gone": 3}
    assert catalogue["parts with other rows than before"] == [PART["d"]]
    world.follow()
    assert not any("/d " in name for name in world.answers(PART["d"]))
    table = read_catalogue(world.storage, "ego4d", PART["d"]).to_pylist()
    (gone,) = [row for row in table if row["id"] == "d"]
    assert (gone["status"], gone["reason"], gone["questions"]) == ("not_asked", "no_rows", 0)
    assert world.storage.read_bytes("VideoMarathon/videos/ego4d/d.mp4") == before
    coverage = world.storage.read_json(f"VideoMarathon/catalogue/ego4d/{PART['d']}.report.json")
    assert coverage["coverage"] == 1.0
    # The rows come back, and so does the video: to the part where it always was.
    world.land("back.jsonl", {**VIDEO_D, "id": "new"})
    _, catalogue = world.collect()
    assert catalogue["parts with other rows than before"] == [PART["d"]]
    assert catalogue["parts"] == ["part0", "part1"]
    world.follow()
    assert world.answers(PART["d"])["ego4d/d Again?"] == "Yes."


VIDEO_D = {"video": "d", "data_source": "ego4d", "question": "Again?", "answer": "Yes."}


def test_a_corrected_duration_makes_a_video_be_fetched_again(world: World) -> None:
    for row in world.rows:
        if row["video"] == "a":
            row["duration"] = 40.0  # it has three seconds
    world.write()
    _, catalogue = world.collect()
    assert catalogue["parts with other rows than before"] == [PART["a"]]
    world.follow()
    rows = read_catalogue(world.storage, "ego4d", PART["a"]).to_pylist()
    (found,) = [row for row in rows if row["id"] == "a"]
    assert (found["status"], found["reason"]) == ("permanent", "duration_differs")
    assert world.storage.exists("damaged/VideoMarathon/videos/ego4d/a.mp4.1"), "nothing is deleted"
    for row in world.rows:
        row.pop("duration", None)
    world.write()
    world.collect()
    world.follow()
    rows = read_catalogue(world.storage, "ego4d", PART["a"]).to_pylist()
    assert {row["status"] for row in rows if row["id"] == "a"} == {"ok"}


def test_known_rows_and_hostile_ones_end_nothing(world: World) -> None:
    hostile = [
        {**world.rows[0], "data_source": ["ego4d"]},
        {**world.rows[0], "video": {"name": "a"}},
        {**world.rows[0], "data_source": {"is": "ego4d"}},
        {**world.rows[0], "duration": 10**400, "id": {"deep": [1]}, "question": "Odd?"},
    ]
    world.land("strange.jsonl", *world.rows, *hostile)
    annotations, _ = world.collect()
    rejected = {row["reason"]: row["rows"] for row in annotations["rejected"]}
    assert rejected in (
        {"no_video": 1, "unknown_source": 2},
        {"no_video": 1, "unknown_source": 2, "not_an_object": 1},  # the reader takes no such number
    )
    counts = {row["what"]: row["count"] for row in annotations["counts"]}
    assert counts["superseded"] == len(world.rows)
