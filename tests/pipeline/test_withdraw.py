"""Withdrawing a video, as the job does it: gone from everything, and never fetched again."""

import json
import shutil
import signal
import subprocess
import sys

import dagster as dg
import pytest
import yaml

from assets.annotations.catalogue import Catalogue, read_catalogue
from assets.checkpoints.bill import BILL, VIDEOS, trained_videos
from assets.deployment.settings import load_settings
from assets.fetching.archive_members import RECORD
from assets.fetching.disk import scratch
from assets.records.lineage import Lineage
from assets.records.withdrawals import Withdrawals, give_up_part
from assets.shards.mixture_views import write_views
from assets.tracing.holdings import find_holdings
from assets.tracing.withdraw import Removal, plan_removal
from pipeline.cli import main
from pipeline.why import why
from tests.materializing import materialize_asset
from tests.model.media import clips
from training.formats import layout
from training.formats.hashing import stable_hash
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.receipts import DAMAGED
from training.formats.storage import Storage
from training.recipes import ShardInput

pytestmark = pytest.mark.slow
GONE, KEPT = "ego4d/b", "ego4d/a"
PART_OF_SOURCE = dg.MultiPartitionKey({"part": "part0", "source": "ego4d"})


class World:
    """A deployment with one drop source and everything that can hold one of its videos."""

    def __init__(self, folder, instance) -> None:
        from pipeline.definitions import definitions

        self.folder, self.instance, self.defs = folder, instance, definitions()
        rows = [
            {"video": name, "data_source": "ego4d", "question": f"What {n}?", "answer": "Red."}
            for name in ("a", "b", "c")
            for n in range(3)
        ]
        rows.append({"video": "b", "data_source": "ego4d", "question": "What else?", "answer": ""})
        (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "deployment.yaml").write_text(
            yaml.safe_dump(
                {
                    "root": "root",
                    "parts": 1,
                    "variants": ["tiny"],
                    "annotations": {"paths": ["qa.jsonl"]},
                    "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
                    "download": {"min_free_bytes": 0, "coverage_threshold": 0.5},
                    "shards": {"workers": 1},
                }
            )
        )
        (folder / "drop").mkdir()
        for name in ("a", "b", "c"):
            clips.encode(folder / "drop" / f"{name}.mp4", 30, rate=10)
        self.settings = load_settings(folder / "deployment.yaml")
        self.storage = Storage(self.settings.root)
        self.make_all()

    def make(self, asset: str, partition=None) -> dg.ExecuteInProcessResult:
        result = materialize_asset(self.defs.assets, self.instance, self.folder, asset, partition)
        assert result.success, [e.event_specific_data for e in result.all_events if e.is_failure]
        return result

    def make_all(self) -> None:
        """Every product, the later ones as their makers leave them."""
        self.make_data()
        for video in (KEPT, GONE):
            self.storage.write_bytes(
                layout.feature_file(layout.features("tiny"), video), video.encode()
            )
        Lineage("features[part0|tiny]", "f", run_id="0123456789").write(self.storage)
        self.mix()
        self.train()

    def make_data(self) -> None:
        """From the annotations to the shards."""
        self.make("annotations")
        self.make("catalogue")
        self.make("videos", PART_OF_SOURCE)
        self.make("conversations", "part0")
        self.make(LONG_VIDEO_KIND, "part0")
        self.make("videomarathon_json")

    def mix(self) -> None:
        write_views(self.storage, [[ShardInput(LONG_VIDEO_KIND, 0)]])
        of_part = Lineage.read(self.storage, f"{LONG_VIDEO_KIND}[part0]").version
        inputs = {f"{LONG_VIDEO_KIND}[part0]": of_part}
        Lineage(layout.MIXTURE, "m", inputs=inputs, folder=layout.STAGE3_MIXTURE).write(
            self.storage
        )

    def train(self) -> None:
        from assets.checkpoints.bill import write_bill
        from training.run_config import parse_run

        folder = "checkpoints/tiny/stage3/k"
        run = {"variant": "tiny", "stage": 3, "start": "", "out": self.storage.path(folder)}
        index = f"{layout.MIXTURE}/0/index.json"
        run["streams"] = [
            {"name": "long", "root": self.storage.path(layout.SHARDS), "indexes": (index,)}
        ]
        write_bill(
            self.storage,
            self.settings,
            parse_run({**run, "features_root": "", "videos_root": ""}),
            "stage3[tiny]",
            {layout.MIXTURE: "m"},
        )
        Lineage("stage3[tiny]", "s", inputs={layout.MIXTURE: "m"}, folder=folder).write(
            self.storage
        )

    def withdraw(self, **config) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def("withdraw_video").execute_in_process(
            run_config={
                "ops": {"withdraw": {"config": {"video": "b", "reason": "asked for", **config}}},
                "resources": {
                    "deployment": {"config": {"config": str(self.folder / "deployment.yaml")}}
                },
            },
            instance=self.instance,
            raise_on_error=False,
        )

    def asked_for(self) -> set[str]:
        """What the newest backfill makes."""
        backfill = self.instance.get_backfills()[0]
        return {
            item.asset_key.to_user_string()
            + (f"[{item.partition_key}]" if item.partition_key else "")
            for item in backfill.asset_backfill_data.target_subset.iterate_asset_partitions()
        }

    def make_asked_for(self) -> None:
        """What that backfill makes, as Dagster's daemon would run it."""
        self.make_data()
        self.mix()

    def names(self) -> set[str]:
        return set(self.storage.list())


REBUILT = {
    "annotations",
    "catalogue",
    "videos[part0|ego4d]",
    "conversations[part0]",
    "features[part0|tiny]",
    "videomarathon_json",
    f"{LONG_VIDEO_KIND}[part0]",
    layout.MIXTURE,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished deployment, made once and copied for each test."""
    with dg.instance_for_test() as instance:
        folder = tmp_path_factory.mktemp("finished")
        World(folder, instance)
        yield folder


@pytest.fixture
def world(finished, tmp_path):
    from pipeline.definitions import definitions

    shutil.copytree(finished, tmp_path / "copy")
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("part", ["part0"])
        world = World.__new__(World)
        world.folder, world.instance, world.defs = tmp_path / "copy", instance, definitions()
        world.settings = load_settings(world.folder / "deployment.yaml")
        world.storage = Storage(world.settings.root)
        yield world


def holders(world, video=GONE) -> set[str]:
    return {
        holding.product for holding in find_holdings(world.storage, world.settings, video).found
    }


def test_a_dry_run_names_everything_that_holds_the_video_and_changes_nothing(world):
    before = world.names()
    assert holders(world) == REBUILT - {"catalogue"}
    result = world.withdraw()
    assert result.success
    (event,) = [event for event in result.all_events if event.is_successful_output]
    said = event.step_output_data.metadata["withdrawal"].value
    for text in (
        "nothing is changed yet",
        "removed: VideoMarathon/videos/ego4d/b.mp4",
        "removed: VideoMarathon/features/tiny/ego4d/b.safetensors",
        "trained on it, not touched: checkpoints/tiny/stage3/k",
        f"your own file {world.folder}/drop/b.mp4",
        "rows about it in qa.jsonl, and as they were read",
        *(f"made again without it: {name}" for name in REBUILT),
    ):
        assert text in said
    assert world.names() == before
    assert world.instance.get_backfills() == []


def test_a_withdrawn_video_is_gone_from_everything_and_stays_away(world):
    assert world.withdraw(dry_run=False).success
    assert not world.storage.exists(f"{layout.VIDEOS}/{GONE}.mp4")
    assert not world.storage.exists(layout.feature_file(layout.features("tiny"), GONE))
    assert world.storage.exists(layout.feature_file(layout.features("tiny"), KEPT))
    assert world.asked_for() == REBUILT
    record = Removal.read(world.storage, GONE)
    assert record.finished
    assert record.reason == "asked for"
    assert [file.path for file in record.removed] == [
        "VideoMarathon/features/tiny/ego4d/b.safetensors",
        "VideoMarathon/videos/ego4d/b.mp4",
    ]
    assert all(len(file.sha256) == 64 and file.bytes for file in record.removed)

    world.make_asked_for()
    assert holders(world) == set()
    assert holders(world, KEPT) >= {"conversations[part0]", f"{LONG_VIDEO_KIND}[part0]"}
    # The file in the drop folder is still there; nothing takes it.
    world.make("videos", PART_OF_SOURCE)
    assert not world.storage.exists(f"{layout.VIDEOS}/{GONE}.mp4")
    assert "withdrawn" in "\n".join(why(world.storage, world.settings, "b"))
    world.train()
    assert GONE not in trained_videos(world.storage, "checkpoints/tiny/stage3/k")
    assert world.storage.read_json(f"checkpoints/tiny/stage3/k/{BILL}")["withdrawn before"] == [
        GONE
    ]


def test_copies_that_no_product_knows_go_as_well(world):
    incoming = scratch(world.storage, "ego4d", f"{stable_hash('b'):016x}")
    (incoming / "b.part").write_bytes(b"half")
    staged = scratch(world.storage, "staged", "ego4d", "0" * 8)
    (staged / RECORD).write_text('{"clips/other.mp4": "000000.mp4", "clips/b.mp4": "000001.mp4"}')
    (staged / "000000.mp4").write_bytes(b"kept")
    (staged / "000001.mp4").write_bytes(b"staged")
    aside = f"{DAMAGED}/{layout.VIDEOS}/{GONE}.mp4.1"
    world.storage.write_bytes(aside, b"damaged")
    of_part = f"{DAMAGED}/{layout.conversations('part0')}.1"
    world.storage.write_bytes(of_part, b"rows")
    others = [f"{DAMAGED}/{layout.VIDEOS}/{name}.mp4.1" for name in (KEPT, f"{GONE}.0")]
    for other in others:
        world.storage.write_bytes(other, b"of another video")
    refused = layout.feature_quarantine(layout.features("7b"), GONE)
    world.storage.write_json(refused, {"video": GONE})
    assert world.withdraw(dry_run=False).success
    assert not (incoming / "b.part").exists()
    assert not (staged / "000001.mp4").exists()
    assert (staged / "000000.mp4").exists()
    assert not world.storage.exists(aside)
    assert not world.storage.exists(of_part)
    assert all(map(world.storage.exists, others))
    assert not world.storage.exists(refused)


# Removes the video as `remove_video` does, and dies by SIGKILL right before one of its writes and
# removals.
DYING = """
import os, signal, sys
from pathlib import Path
from assets.annotations.catalogue import Catalogue
from assets.deployment.settings import load_settings
from assets.tracing.withdraw import plan_removal, remove_video
from training.formats.storage import Storage

left = [int(sys.argv[2])]

def dying(method):
    def call(*arguments, **options):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return method(*arguments, **options)
    return call

settings = load_settings(Path(sys.argv[1]))
storage = Storage(settings.root)
plan = plan_removal(storage, settings, sys.argv[3], "asked for")
for kind, name in (
    (Storage, "write_json"), (Storage, "remove"), (Catalogue, "update"), (Catalogue, "compact")
):
    setattr(kind, name, dying(getattr(kind, name)))
remove_video(storage, settings, plan)
"""


@pytest.mark.parametrize("killed_at", range(6))
def test_killed_at_any_moment_it_goes_on_where_it_was(world, killed_at):
    plan = plan_removal(world.storage, world.settings, GONE, "asked for")
    config = str(world.folder / "deployment.yaml")
    died = subprocess.run([sys.executable, "-c", DYING, config, str(killed_at), GONE])
    assert died.returncode == -signal.SIGKILL
    assert world.withdraw(dry_run=False).success
    record = Removal.read(world.storage, GONE)
    assert record.finished
    assert {file.path for file in record.removed} == {file.path for file in plan.removed}
    assert set(record.rebuilt) == REBUILT
    assert world.asked_for() == REBUILT
    assert not world.storage.exists(f"{layout.VIDEOS}/{GONE}.mp4")


def test_a_running_download_is_left_alone_and_the_withdrawal_waits_for_it(world):
    with Catalogue(world.storage, "ego4d", "part0"):
        failed = world.withdraw(dry_run=False)
    assert not failed.success
    assert world.storage.exists(f"{layout.VIDEOS}/{GONE}.mp4")
    assert GONE in Withdrawals.read(world.storage).videos
    assert world.withdraw(dry_run=False).success
    assert not world.storage.exists(f"{layout.VIDEOS}/{GONE}.mp4")


def test_products_of_a_part_that_was_given_up_are_removed_because_nothing_makes_them_again(world):
    parts = world.storage.read_json(layout.PARTS)["parts"]
    world.storage.write_json(layout.PARTS, {"parts": [*parts, {**parts[0], "name": "part1"}]})
    give_up_part(world.storage, "part0", "for a test")
    assert world.withdraw(dry_run=False).success
    assert not world.storage.exists(layout.conversations("part0"))
    assert not world.storage.exists(layout.shards(LONG_VIDEO_KIND, "part0"))
    assert world.asked_for() == {"annotations", "catalogue", "videomarathon_json", layout.MIXTURE}


def test_a_video_that_nothing_asks_for_yet_can_be_kept_away(world):
    assert world.withdraw(video="ego4d/never", dry_run=False).success
    assert "ego4d/never" in Withdrawals.read(world.storage).videos
    failed = world.withdraw(video="never-with-no-source", dry_run=False)
    (event,) = [event for event in failed.all_events if event.is_step_failure]
    told = event.step_failure_data.user_failure_data.description
    assert "no such video is catalogued" in told


def test_a_withdrawn_row_is_not_tried_again_whatever_the_settings_ask_for(world):
    assert world.withdraw(dry_run=False).success
    table = read_catalogue(world.storage, "ego4d", "part0").to_pylist()
    rows = {row["video"]: row for row in table}
    if GONE in rows:
        assert (rows[GONE]["status"], rows[GONE]["reason"]) == ("permanent", "withdrawn")
        assert rows[GONE]["path"] is None


def test_the_command_line_shows_does_and_reports(world, monkeypatch, capsys):
    home = world.folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("{}")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("part", ["part0"])
    config = ["--config", str(world.folder / "deployment.yaml")]
    video = str(world.folder / "root" / layout.VIDEOS / "ego4d" / "b.mp4")
    assert main(["withdraw", video, "--reason", "asked for", "--dry-run", *config]) == 0
    assert "nothing is changed yet" in capsys.readouterr().out
    assert main(["withdraw", video, "--reason", "asked for", *config]) == 0
    assert "makes them again" in capsys.readouterr().out
    assert main(["bill", "stage3", *config]) == 0
    assert f"! trained on {GONE}, which was withdrawn" in capsys.readouterr().out
    assert main(["why", "b", *config]) == 0
    assert "withdrawn" in capsys.readouterr().out


def test_a_bill_is_whole_after_the_withdrawal(world):
    assert world.withdraw(dry_run=False).success
    assert GONE in trained_videos(world.storage, "checkpoints/tiny/stage3/k")
    assert world.storage.exists(f"checkpoints/tiny/stage3/k/{VIDEOS}")
