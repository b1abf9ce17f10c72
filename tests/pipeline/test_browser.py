"""The web UI as a person uses it: Chromium clicks on the demo's deployment and reads what the pages
say.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.definitions import definitions
from pipeline.demo.client import DagsterClient
from pipeline.demo.instance import dagster
from tests.pipeline.browser import Ui, browser, missing_chromium

# The first test of the session that asks for the demo waits until it is made.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(missing_chromium()), reason=str(missing_chromium())),
]

SHARDS = "videomarathon_video"
DOWNSTREAM = ("hourllava_s3", "stage3", "evaluation")


@pytest.fixture(scope="module")
def client(demo) -> Iterator[DagsterClient]:
    with dagster(demo / "deployment" / "deployment.yaml", demo / "dagster.log", demo) as client:
        yield client


@pytest.fixture(scope="module")
def window(client) -> Iterator[Ui]:
    with browser(client.url) as ui:
        yield ui


@pytest.fixture
def ui(window) -> Iterator[Ui]:
    """The one window, at the start page; an error on a page that a test opens fails the test."""
    window.problems.clear()
    window.open()
    yield window
    assert window.problems == []


@pytest.fixture
def lost_part(storage, tmp_path) -> Iterator[tuple[Path, dict[str, bytes]]]:
    """One part of the long videos' shards, taken away: its folder, and its bytes by name."""
    folder = Path(storage.path(f"VideoMarathon/sharding/{SHARDS}_part0"))
    content = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lineage.json"
    }
    shutil.move(folder, tmp_path / folder.name)
    yield folder, content
    if not folder.exists():
        shutil.move(tmp_path / folder.name, folder)


def test_a_lost_part_comes_back_by_clicking_with_the_same_bytes_and_nothing_downstream_gets_stale(
    ui, client, lost_part
):
    folder, content = lost_part
    ui.open_asset(SHARDS)
    ui.choose_partition("part0")
    run = ui.materialize()
    assert ui.end_of_run() == "Success"
    assert {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lineage.json"
    } == content
    assert json.loads((folder / "lineage.json").read_text())["run_id"].startswith(run)

    ui.open_asset(SHARDS)
    ui.choose_partition("part0")
    expect(
        ui.page.get_by_role("link", name=run)
    ).to_be_visible()  # the run of the newest materialization
    for asset, partition in zip(
        DOWNSTREAM, ({}, {"variant": "tiny"}, {"variant": "tiny"}), strict=True
    ):
        assert client.states(asset, [partition]) == ["FRESH"], asset


def test_a_shards_page_tells_what_its_manifest_tells(ui, storage):
    manifest = storage.read_json(f"VideoMarathon/sharding/{SHARDS}_part0/manifest.json")["report"]
    ui.open_asset(SHARDS)
    ui.choose_partition("part0")
    metadata = ui.metadata()
    assert metadata["dagster/row_count"] == str(manifest["counts"]["samples"])
    assert metadata["text tokens (estimate)"] == str(manifest["tokens"])
    assert manifest["version"] in metadata["lineage"]
    assert metadata["dagster/uri"] == storage.path(f"VideoMarathon/sharding/{SHARDS}_part0")
    for example in manifest["examples"]:
        assert example["id"] in metadata["examples"]


def test_a_shards_check_stands_on_its_page_as_passed(ui):
    ui.open_asset(SHARDS)
    ui.tab("Checks").click()
    ui.page.get_by_text("whole", exact=True).first.click()
    expect(ui.page.get_by_text("2 shards, 36 samples: all as the index says")).to_be_visible()


def test_the_lineage_of_a_shard_shows_what_it_was_made_from_and_what_is_made_from_it(ui):
    ui.open_asset(SHARDS)
    ui.tab("Lineage").click()
    nodes = ui.graph_nodes().filter(has_text="Latest event")
    expect(nodes).to_have_count(3)
    left_to_right = sorted(
        (node.bounding_box()["x"], node.text_content().split("Latest event")[0])
        for node in nodes.all()
    )
    assert [name for _, name in left_to_right] == ["conversations", SHARDS, "hourllava_s3"]


def test_the_whole_graph_shows_every_group_and_every_asset(ui):
    assets = definitions().resolve_all_asset_specs()
    ui.open_graph()
    groups = {spec.group_name for spec in assets}
    expect(ui.graph_nodes()).to_have_count(len(groups))
    assert set(ui.graph_nodes().all_text_contents()) == groups

    ui.open_all_groups()
    expect(ui.small_nodes()).to_have_count(len(assets))
    shown = [
        name.partition("…") for name in ui.small_nodes().all_text_contents()
    ]  # long names are cut in the middle
    for name in (spec.key.to_user_string() for spec in assets):
        assert any(name.startswith(head) and name.endswith(tail) for head, _, tail in shown), name


def test_a_stage_3_page_shows_its_losses_and_their_curve(ui, storage):
    record = storage.read_json("lineage/stage3/tiny.json")
    result = storage.read_json(f"{record['folder']}/result.json")
    ui.open_asset("stage3")
    ui.choose_partition("tiny")
    metadata = ui.metadata()
    assert float(metadata["first loss"]) == pytest.approx(result["first_loss"], rel=1e-3)
    assert float(metadata["last loss"]) == pytest.approx(result["last_loss"], rel=1e-3)
    for product in record["inputs"]:
        assert product in metadata["lineage"]
    curve = ui.open_picture("loss curve")
    assert curve.evaluate("image => image.complete && image.naturalWidth") > 300
