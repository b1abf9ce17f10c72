"""The front page says what to do next, through Dagster, and only when that has changed."""

import dagster as dg
import pytest
import yaml

from assets.automation.conditions import state_of
from assets.deployment.resources import Deployment
from assets.deployment.settings import load_settings
from assets.records.lineage import Lineage
from assets.records.withdrawals import Withdrawals, give_up_part
from assets.tracing.assets import FRONT_PAGE
from assets.tracing.overview import Overview
from assets.tracing.overview import overview as overview_of
from training.formats import layout
from training.formats.storage import Storage


@pytest.fixture
def world(tmp_path):
    settings = {
        "root": "root",
        "variants": ["tiny"],
        "annotations": {"paths": ["qa.jsonl"]},
        "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(settings))
    return Storage(str(tmp_path / "root")), load_settings(tmp_path / "deployment.yaml"), tmp_path


def overview(storage: Storage, settings) -> Overview:
    from pipeline.definitions import definitions

    graph = definitions().resolve_asset_graph()
    with dg.instance_for_test() as instance:
        state = state_of(instance, graph, storage)
    return overview_of(state, settings, Withdrawals.read(storage))


def make(storage: Storage, *names: str, **more) -> None:
    for name in names:
        Lineage(name, f"version of {name}", **more).write(storage)


def make_everything(storage: Storage, settings) -> None:
    storage.write_json(layout.PARTS, {"parts": [{"name": "part0"}, {"name": "part1"}]})
    make(storage, "annotations")
    from assets.deployment.parts import part_name
    from training.formats.kinds import LLAVA_KINDS

    make(storage, "catalogue", "llava_onevision", "llava_video", layout.MIXTURE)
    make(storage, *(f"{kind}[{part_name(n)}]" for kind in LLAVA_KINDS for n in range(10)))
    for part in ("part0", "part1"):
        make(storage, f"videos[{part}|ego4d]", f"conversations[{part}]")
        make(storage, f"videomarathon_video[{part}]", f"features[{part}|tiny]")
    for name in ("base_model", "stage1", "stage2", "vision_encoder", "stage3", "evaluation"):
        make(storage, f"{name}[tiny]")


def test_an_empty_deployment_says_where_to_begin(world):
    storage, settings, _ = world
    found = overview(storage, settings)
    assert found.headline == "Nothing is made yet. Begin with the job 01_collect_sources."
    assert [row["job"] for row in found.steps][:3] == [
        "01_collect_sources",
        "03_shard_llava",
        "04_acquire_videos",
    ]
    assert found.steps[0]["made"] == "0/4"
    assert found.steps[2]["made"] == "none"  # there are no parts yet


def test_the_first_step_with_something_missing_is_next(world):
    storage, settings, _ = world
    make_everything(storage, settings)
    storage.remove("lineage/features/part1+tiny.json")
    storage.remove("lineage/stage3/tiny.json")
    assert overview(storage, settings).headline == (
        "Next: features of long videos. Run the job 08_extract_features; 1 of 2 are missing."
    )


def test_what_is_broken_comes_first_then_what_is_out_of_date_then_that_all_is_well(world):
    storage, settings, _ = world
    make_everything(storage, settings)
    assert overview(storage, settings).headline == "Everything is made and up to date."
    make(storage, "stage3[tiny]", inputs={layout.MIXTURE: "an older one"})
    found = overview(storage, settings)
    assert found.headline == (
        "Out of date: stage3[tiny] (changed: hourllava_s3 (read as an older one, now version of "
        "h)). Run the job 10_train_stage3."
    )
    make(storage, "videos[part0|ego4d]", failed={"coverage": "1 of 9 <b>videos</b>"})
    found = overview(storage, settings)
    assert "the first is videos[part0|ego4d]" in found.headline
    assert found.broken[0]["why"] == "coverage: 1 of 9 <b>videos</b>"


def test_a_part_that_was_given_up_is_no_longer_missing_or_broken(world):
    storage, settings, _ = world
    make_everything(storage, settings)
    storage.remove("lineage/conversations/part1.json")
    make(storage, "videos[part1|ego4d]", failed={"coverage": "too few"})
    give_up_part(storage, "part1", "no videos")
    found = overview(storage, settings)
    assert found.headline == "Everything is made and up to date."
    assert [(row["part"], row["reason"]) for row in found.given_up] == [("part1", "no videos")]


def test_the_sensor_tells_dagster_once_and_again_when_something_changed(world):
    storage, _settings, folder = world
    from pipeline.definitions import definitions

    defs = definitions()
    sensor = defs.resolve_sensor_def("tell_front_page")
    resources = {"deployment": Deployment(config=str(folder / "deployment.yaml"))}

    def tick(cursor):
        with dg.instance_for_test() as instance:
            context = dg.build_sensor_context(
                instance=instance,
                cursor=cursor,
                resources=resources,
                repository_def=defs.get_repository_def(),
            )
            return sensor.evaluate_tick(context)

    first = tick(None)
    (event,) = first.asset_events
    assert event.asset_key == dg.AssetKey(FRONT_PAGE)
    assert "Begin with the job 01_collect" in event.metadata["next"].value
    assert tick(first.cursor).asset_events == []
    make(storage, "annotations")
    (event,) = tick(first.cursor).asset_events
    assert "are missing" in event.metadata["next"].value


def test_the_jobs_that_it_names_exist(world):
    storage, settings, _ = world
    from pipeline.definitions import definitions

    jobs = {job.name for job in definitions().resolve_all_job_defs()}
    assert {row["job"] for row in overview(storage, settings).steps} <= jobs
