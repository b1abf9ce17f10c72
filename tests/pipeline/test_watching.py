"""What the watching sensor sees outside, and what it keeps in order: versions, and the list of
parts.
"""

import os
import time

import dagster as dg
import pytest
import yaml

from assets.annotations.watched import NOTHING_THERE
from assets.automation.state import NOT_REACHABLE
from assets.deployment.resources import Deployment
from assets.records.withdrawals import give_up_part
from training.formats import layout
from training.formats.storage import Storage

NOBODY = "http://127.0.0.1:9"  # a port where nothing listens


class Looks:
    """A deployment and an instance, and the sensor's looks at them."""

    def __init__(self, folder, instance: dg.DagsterInstance, **settings: object) -> None:
        (folder / "landing").mkdir()
        (folder / "rows.jsonl").touch()
        self.folder, self.instance, self.cursor = folder, instance, None
        self.settings = {
            "root": "root",
            "annotations": {"paths": ["rows.jsonl"]},
            "landing": "landing",
            "hub_endpoint": NOBODY,
            "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
            **settings,
        }
        self.storage = Storage(str(folder / "root"))

    def look(self) -> dict[str, str]:
        """One tick; the versions that it records."""
        from pipeline.sensors import watch_outside_data

        path = self.folder / "deployment.yaml"
        path.write_text(yaml.safe_dump(self.settings))
        context = dg.build_sensor_context(self.instance, cursor=self.cursor)
        result = watch_outside_data(context, deployment=Deployment(config=str(path)))
        self.cursor = result.cursor
        for request in result.dynamic_partitions_requests:
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions("part", list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition("part", key)
        return {
            event.asset_key.to_user_string(): event.tags["dagster/data_version"]
            for event in result.asset_events
        }

    def catalogue(self, *parts: str) -> None:
        self.storage.write_json(layout.PARTS, {"parts": [{"name": part} for part in parts]})

    def parts(self) -> list[str]:
        return sorted(self.instance.get_dynamic_partitions("part"))


@pytest.fixture
def looks(tmp_path):
    with dg.instance_for_test() as instance:
        yield Looks(tmp_path, instance)


def test_an_empty_landing_folder_and_files_instead_of_a_hub_are_states_like_others(looks):
    seen = looks.look()
    assert seen["landing"] == seen["hub_annotations"] == NOTHING_THERE
    assert looks.look() == {}


def test_a_landing_is_seen_once_and_its_end_too(looks):
    looks.look()
    file = looks.folder / "landing/new.jsonl"
    file.write_text("{}\n")
    assert looks.look() == {}, "it may still be being copied"
    os.utime(file, (time.time() - 60,) * 2)
    (version,) = looks.look().values()
    assert looks.look() == {}
    file.unlink()
    assert looks.look() == {"landing": NOTHING_THERE} != {"landing": version}


def test_a_hub_that_was_never_reached_is_recorded_as_that_and_stops_nothing_else(looks):
    seen = looks.look()
    assert seen["hub_llava_video"] == NOT_REACHABLE
    assert seen["landing"] == NOTHING_THERE


def test_a_hub_that_is_away_for_a_while_keeps_the_version_that_was_seen(looks):
    looks.settings["collections"] = {"video_revision": "a" * 40}
    assert looks.look()["hub_llava_video"] == "a" * 40
    looks.settings["collections"] = {}
    assert looks.look() == {}
    looks.settings["collections"] = {"video_revision": "a" * 40}
    assert looks.look() == {}, "nothing new where it is reached again"


@pytest.mark.parametrize("typed", ["part7", "part07", "typo", "part0|ego4d"])
def test_a_part_that_somebody_typed_leaves_the_list(looks, typed):
    looks.catalogue("part0", "part1")
    looks.instance.add_dynamic_partitions("part", ["part0", "part1", typed])
    looks.look()
    assert looks.parts() == ["part0", "part1"]


def test_a_given_up_part_leaves_the_list_and_a_part_that_is_not_listed_joins_it(looks):
    looks.catalogue("part0", "part1", "part2")
    looks.instance.add_dynamic_partitions("part", ["part0", "part1"])
    give_up_part(looks.storage, "part1", "its videos are gone")
    looks.look()
    assert looks.parts() == ["part0", "part2"]


def test_without_a_catalogue_the_list_is_left_alone(looks):
    """The root may only be away: a disk that is not mounted."""
    looks.instance.add_dynamic_partitions("part", ["part0"])
    looks.look()
    assert looks.parts() == ["part0"]


@pytest.mark.slow
@pytest.mark.parametrize("asset", ["conversations", "videomarathon_video", "videos", "features"])
@pytest.mark.parametrize("part", ["part7", "typo"])
def test_a_step_for_a_part_that_somebody_typed_says_so(looks, asset, part):
    from pipeline.definitions import definitions

    looks.catalogue("part0")
    looks.look()
    looks.instance.add_dynamic_partitions("part", [part])
    keys = {
        "videos": {"part": part, "source": "ego4d"},
        "features": {"part": part, "variant": "3b"},
    }
    result = dg.materialize(
        definitions().assets,
        selection=[asset],
        partition_key=dg.MultiPartitionKey(keys[asset]) if asset in keys else part,
        instance=looks.instance,
        resources={"deployment": Deployment(config=str(looks.folder / "deployment.yaml"))},
        raise_on_error=False,
    )
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    said = failed.step_failure_data.user_failure_data.description
    assert said.startswith(f"there is no part '{part}'; the catalogue has part0.")


@pytest.mark.slow
def test_what_asks_for_no_video_counts_as_fetched_without_a_run(looks):
    """Two of three download runs of a new part had nothing to fetch."""
    from pipeline.definitions import definitions

    looks.settings["sources"] |= {"panda": {"kind": "url"}, "youcook2": {"kind": "url"}}
    looks.settings["parts"] = 1
    (looks.folder / "rows.jsonl").write_text(
        '{"video": "a", "data_source": "ego4d", "question": "What?", "answer": "Red."}\n'
    )
    looks.look()
    for _ in range(2):
        result = dg.materialize(
            definitions().assets,
            selection=["annotations", "catalogue"],
            instance=looks.instance,
            resources={"deployment": Deployment(config=str(looks.folder / "deployment.yaml"))},
        )
        assert result.success
        videos = dg.AssetKey("videos")
        assert looks.instance.get_materialized_partitions(videos) == {
            "part0|panda",
            "part0|youcook2",
        }
        events = looks.instance.fetch_materializations(videos, limit=9).records
        assert len(events) == 2
