"""Two weeks of a deployment: landings good and bad, a correction, a late video, a failing disk, a
part that is given up, a withdrawn video, an upgrade. Every night the sensors' rules decide what is
really made. What is there at the end is what a clean build of the final data gives, byte by byte.
"""

import datetime as dt
import json
import os
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.storage.defs_state.base import set_defs_state_storage

from assets.automation.runs import BY_AUTOMATION
from assets.conversations import grouping
from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings
from assets.records.lineage import product, split_product
from assets.records.withdrawals import give_up_part
from assets.tracing.withdraw import finish_removal, plan_removal, remove_video
from pipeline.schedules import download_nightly
from pipeline.sensors import watch_outside_data
from tests.model.media import clips
from training.formats import layout
from training.formats.storage import Storage

# What is made of long videos without a GPU. The mixture also needs the two LLaVA collections.
MADE = dg.AssetSelection.assets(
    "annotations",
    "catalogue",
    "videos",
    "conversations",
    "videomarathon_video",
    "videomarathon_json",
)
LONG_AGO = 1_700_000_000


class Life:
    """A deployment of one drop folder, its instance, and the nights that pass."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, monkeypatch) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.defs = folder, instance, definitions()
        self.graph = self.defs.resolve_asset_graph()
        self.path = folder / "deployment.yaml"
        monkeypatch.setenv("HOURLLAVA_CONFIG", str(self.path))
        for name in ("drop", "landing"):
            (folder / name).mkdir(parents=True)
        # The sources of the tests' code location; only one of them has videos.
        self.settings = {
            "root": "root",
            "parts": 1,
            "variants": ["tiny"],
            "hub_endpoint": "http://127.0.0.1:9",
            "annotations": {"paths": ["rows.jsonl"]},
            "landing": "landing",
            "sources": {
                "ego4d": {"kind": "drop", "folder": "drop"},
                "panda": {"kind": "url"},
                "youcook2": {"kind": "url"},
            },
            "download": {"min_free_bytes": 0, "coverage_threshold": 0.5},
            "shards": {"workers": 1},
            "automation": {"retry_after_s": 0},
        }
        self.write_settings()
        self.storage = Storage(str(folder / "root"))
        self.cursor, self.watched = None, None
        self.runs: list[str] = []

    def write_settings(self, **changes: object) -> None:
        self.settings |= changes
        self.path.write_text(yaml.safe_dump(self.settings))

    @property
    def deployment(self) -> Deployment:
        return Deployment(config=str(self.path))

    def rows(self, file: str, videos: dict[str, str]) -> None:
        """A question file: video -> the answer that its rows give."""
        lines = [
            json.dumps(
                {
                    "id": f"{video}-{number}",
                    "video": video,
                    "data_source": "ego4d",
                    "question": f"What is {number}?",
                    "answer": answer,
                }
            )
            for video, answer in videos.items()
            for number in range(3)
        ]
        path = self.folder / file
        path.write_text("\n".join(lines) + "\n")
        os.utime(path, (LONG_AGO, LONG_AGO))

    def drop(self, *videos: str) -> None:
        for video in videos:
            path = self.folder / "drop" / f"{video}.mp4"
            # A clip's length depends on its name, so that no two have the same bytes.
            clips.encode(path, 30 + ord(video[0]) % 20, rate=10)
            os.utime(path, (LONG_AGO, LONG_AGO))

    def make(self, name: str, tags: dict[str, str] | None = None) -> bool:
        asset, partition = split_product(name)
        result = dg.materialize(
            self.defs.assets,
            selection=[asset],
            partition_key=partition,
            instance=self.instance,
            resources={"deployment": self.deployment},
            tags=tags,
            raise_on_error=False,
        )
        return result.success

    def watch(self) -> None:
        context = dg.build_sensor_context(self.instance, cursor=self.watched)
        result = watch_outside_data(context, deployment=self.deployment)
        self.watched = result.cursor
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests or ():
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions("part", list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition("part", key)

    def night(self) -> dict[str, bool]:
        """A look outside, ticks until automation asks for nothing more, the evening's downloads,
        and ticks again.

        Returns:
            What was made, in order -> whether its run succeeded.
        """
        self.watch()
        made = self.ticks()
        now = dt.datetime.now(dt.UTC)
        with set_defs_state_storage(None):  # a schedule enters the instance once more
            context = dg.build_schedule_context(self.instance, scheduled_execution_time=now)
            asked = download_nightly(context, deployment=self.deployment)
        for request in asked if isinstance(asked, list) else ():
            name = product("videos", str(request.partition_key))
            made[f"{name} again"] = self.make(name)
        return made | self.ticks()

    def ticks(self) -> dict[str, bool]:
        made: dict[str, bool] = {}
        for _ in range(12):
            requests = self.requests()
            if not requests:
                return made
            made |= {name: self.make(name, BY_AUTOMATION) for name in requests}
        raise AssertionError(f"never at rest: {made}")

    def requests(self) -> list[str]:
        result = dg.evaluate_automation_conditions(
            defs=self.defs,
            instance=self.instance,
            asset_selection=MADE,
            cursor=self.cursor,
            evaluation_time=dt.datetime.now(dt.UTC),
        )
        self.cursor = result.cursor
        found = []
        for key in self.graph.toposorted_asset_keys:
            asset = key.to_user_string()
            if not result.get_num_requested(key):
                continue
            if self.graph.get(key).is_partitioned:
                parts = sorted(result.get_requested_partitions(key))
                found += [product(asset, part) for part in parts]
            else:
                found.append(asset)
        return found

    def bytes(self) -> dict[str, bytes]:
        """Conversations, shards and the export: file -> content. Records name their run."""
        folders = (layout.CONVERSATIONS, layout.SHARDS, layout.CONVERSATIONS_JSON)
        names = [name for folder in folders for name in self.storage.list(folder)]
        return {
            name: self.storage.read_bytes(name)
            for name in names
            if not name.endswith(("lineage.json", "manifest.json"))
        }


def chain(part: str) -> set[str]:
    return {f"videos[{part}|ego4d]", f"conversations[{part}]", f"videomarathon_video[{part}]"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_weeks_end_with_the_bytes_of_a_clean_build(tmp_path, monkeypatch):
    with dg.instance_for_test() as instance:
        life = Life(tmp_path / "life", instance, monkeypatch)
        first = dict.fromkeys("abc", "Red.")
        life.rows("rows.jsonl", first)
        life.drop(*first)
        assert life.make("annotations")
        assert life.make("catalogue")

        # 1: what was catalogued by hand before any tick is made, each once.
        made = life.night()
        assert set(made) == chain("part0")
        assert all(made.values())
        assert life.make("videomarathon_json")
        # 2: a quiet night.
        assert life.night() == {}

        # 3: a landing is a part of its own, and costs only that.
        life.rows("landing/one.jsonl", {"g": "Blue.", "h": "Blue."})
        life.drop("g", "h")
        assert set(life.night()) == {
            "annotations",
            "catalogue",
            *chain("part1"),
            "videomarathon_json",
        }

        # 4: a landing whose videos are missing is tried once, and holds what is made of all parts.
        life.rows("landing/bad.jsonl", {"i": "Green.", "j": "Green.", "k": "Green."})
        made = life.night()
        assert made.pop("videos[part2|ego4d]") is False
        assert set(made) == {"annotations", "catalogue"}

        # 5: a later good one goes its way up to there; on this night the disk is full once.
        life.rows("landing/two.jsonl", {"l": "Black."})
        life.drop("l")
        group, failures = grouping.group_part, [OSError(28, "No space left on device")]

        def full_once(*args, **kwargs):
            if failures:
                raise failures.pop()
            return group(*args, **kwargs)

        monkeypatch.setattr(grouping, "group_part", full_once)
        made = life.night()
        assert set(made) == {"annotations", "catalogue", *chain("part3")}
        assert made["conversations[part3]"], "it was tried again, and then it was there"
        assert not failures

        # 6: a correction reaches the part that it touches.
        life.rows("landing/one.jsonl", {"g": "Yellow.", "h": "Blue."})
        made = life.night()
        assert set(made) == {"annotations", "catalogue", *chain("part1")}

        # 7: somebody types a part into a dialog; it is gone, and holds nothing.
        instance.add_dynamic_partitions("part", ["part9"])
        assert life.night() == {}
        assert "part9" not in instance.get_dynamic_partitions("part")

        # 8: the bad part is given up, and what waited for it goes on by itself.
        give_up_part(life.storage, "part2", "its videos cannot be had")
        assert set(life.night()) == {"videomarathon_json"}

        # 9: a video is withdrawn.
        settings = load_settings(life.path)
        plan = plan_removal(life.storage, settings, "ego4d/a", "a request of its maker")
        remove_video(life.storage, settings, plan)
        (life.folder / "drop/a.mp4").unlink(missing_ok=True)
        # The rows that name it go first, as `hourllava withdraw` has them made again.
        assert life.make("annotations")
        assert life.make("catalogue")
        made = life.night()
        assert all(made.values())
        finish_removal(life.storage, plan)
        assert b"ego4d/a" not in b"".join(life.bytes().values())

        # 10: an upgrade brings a setting, and code of another version. Nothing is made for it.
        life.write_settings(notices={"timeout_s": 10})
        monkeypatch.setattr("assets.records.publishing.code_version", lambda: "after the upgrade")
        assert life.night() == {}

        # 11 to 14: quiet nights.
        for _ in range(4):
            assert life.night() == {}
        final = life.bytes()
        assert any(name.endswith(".mds") for name in final)

    with dg.instance_for_test() as instance:
        clean = Life(tmp_path / "clean", instance, monkeypatch)
        clean.rows("rows.jsonl", first)
        clean.drop(*(set("abcghl") - {"a"}))
        assert clean.make("annotations")
        assert clean.make("catalogue")
        # A video's part is that of its first landing, so they land in their order.
        for name, rows in (
            ("one", {"g": "Yellow.", "h": "Blue."}),
            ("bad", {"i": "Green.", "j": "Green.", "k": "Green."}),
            ("two", {"l": "Black."}),
        ):
            clean.rows(f"landing/{name}.jsonl", rows)
            assert clean.make("annotations")
            assert clean.make("catalogue")
        give_up_part(clean.storage, "part2", "its videos cannot be had")
        settings = load_settings(clean.path)
        plan = plan_removal(clean.storage, settings, "ego4d/a", "a request of its maker")
        remove_video(clean.storage, settings, plan)
        assert clean.make("annotations")
        assert clean.make("catalogue")
        clean.night()
        assert clean.make("videomarathon_json")
        assert clean.bytes() == final
