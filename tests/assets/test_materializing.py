"""From a drop folder to a part of long-video shards, as the UI materializes it: what each asset
shows and refuses.
"""

import base64
import io
import json

import dagster as dg
import pytest
import yaml
from PIL import Image

from tests.materializing import materialize_asset
from tests.model.media import clips

VIDEOS = ("a", "b", "c")


class World:
    """A deployment with one drop source, and an instance that keeps what is materialized."""

    def __init__(self, folder, instance: dg.DagsterInstance) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.assets = folder, instance, definitions().assets
        rows = [
            {"video": name, "data_source": "ego4d", "question": f"What {n}?", "answer": "Red."}
            for name in VIDEOS
            for n in range(3)
        ]
        rows.append({"video": "a", "data_source": "ego4d", "question": "What else?", "answer": ""})
        (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "root": "root",
            "parts": 1,
            "variants": ["tiny"],
            "annotations": {"paths": ["qa.jsonl"]},
            "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
            "download": {"min_free_bytes": 0, "coverage_threshold": 0.5},
            "shards": {"workers": 1},
        }
        (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
        (folder / "drop").mkdir()

    def drop(self, *names: str) -> None:
        for name in names:
            clips.encode(self.folder / "drop" / f"{name}.mp4", 30, rate=10)

    def make(
        self, asset: str, partition=None, config: dict | None = None
    ) -> dg.ExecuteInProcessResult:
        return materialize_asset(self.assets, self.instance, self.folder, asset, partition, config)


PART_OF_SOURCE = dg.MultiPartitionKey({"part": "part0", "source": "ego4d"})


def shown(result: dg.ExecuteInProcessResult, asset: str) -> dict:
    """Metadata of what was made: values, and the rows of tables."""
    assert result.success, [
        event.event_specific_data for event in result.all_events if event.is_step_failure
    ]
    (made,) = result.asset_materializations_for_node(asset)
    return {
        name: [record.data for record in value.records]
        if isinstance(value, dg.TableMetadataValue)
        else value.value
        for name, value in made.metadata.items()
        if name != "dagster/column_schema"
    }


def refused(result: dg.ExecuteInProcessResult) -> str:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data.description)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with dg.instance_for_test() as instance:
        world = World(tmp_path_factory.mktemp("world"), instance)
        assert shown(world.make("annotations"), "annotations")["rejected"] == [
            {"reason": "no_answer", "rows": 1}
        ]
        assert shown(world.make("catalogue"), "catalogue")["parts"] == ["part0"]
        yield world


@pytest.mark.slow
def test_a_part_makes_its_way_from_the_drop_folder_to_its_shards(world):
    world.drop("a")
    few = world.make("videos", PART_OF_SOURCE)
    coverage = {check.check_name: check for check in few.get_asset_check_evaluations()}["coverage"]
    assert (coverage.passed, coverage.partition) == (False, "part0|ego4d")
    assert (
        "coverage: ego4d, part0: 1 of 3 videos are there (33%), coverage_threshold asks for 50%"
        in refused(few)
    )
    assert "videos[part0|ego4d] (coverage: " in refused(world.make("conversations", "part0"))

    lenient = shown(world.make("videos", PART_OF_SOURCE, {"coverage_threshold": 0.2}), "videos")
    assert lenient["lineage"]["config"] == {"coverage_threshold": 0.2}

    world.drop("b")
    enough = world.make("videos", PART_OF_SOURCE)
    passed = {check.check_name: check.passed for check in enough.get_asset_check_evaluations()}
    assert passed == {"coverage": True, "nothing_more_to_get": False, "up_to_date": True}
    told = shown(enough, "videos")
    assert told["coverage"] == pytest.approx(2 / 3, rel=1e-3)
    assert told["question-answer pairs lost"] == 3
    assert told["hours"] == pytest.approx(6 / 3600, abs=1e-3)
    picture = base64.b64decode(told["durations"].partition("base64,")[2].rstrip(")"))
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert len(picture) < 50_000

    grouped = shown(world.make("conversations", "part0"), "conversations")
    assert grouped["dagster/row_count"] == 2
    assert grouped["rows not used"] == [{"reason": "video not available", "rows": 3}]
    shards = world.make("videomarathon_video", "part0")
    assert shown(shards, "videomarathon_video")["dagster/row_count"] == 2
    whole = {check.check_name: check.passed for check in shards.get_asset_check_evaluations()}
    assert whole == {"whole": True, "up_to_date": True}
