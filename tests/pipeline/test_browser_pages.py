"""Pages of a small deployment in the UI: the front page, a part that was given up, a failure.

With HOURLLAVA_PICTURES naming a folder, pictures of what is seen are kept there.
"""

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
import yaml
from playwright.sync_api import expect

from assets.checkpoints.assets import stage_opening
from assets.deployment.variants import Variant, checkpoints_of
from assets.evaluation.report import checkpoint_columns, score_columns
from assets.records.rendering import table
from pipeline.demo.client import FINISHED, DagsterClient
from pipeline.demo.instance import REPOSITORY, dagster
from tests.pipeline.browser import Ui, browser, missing_chromium
from training.metrics import METRICS_NAME

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_chromium()), reason=str(missing_chromium())),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[DagsterClient]:
    """A running Dagster whose deployment has one row, and two parts."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    rows = [
        {"video": f"clips/v{n}.mp4", "data_source": "clips", "question": "What?", "answer": "Red."}
        for n in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "drop").mkdir()
    settings = {
        "root": "root",
        "parts": 2,
        "variants": ["tiny"],
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {"clips": {"kind": "drop", "folder": "drop"}},
        "automation": {"data": False},
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
    with dagster(folder / "deployment.yaml", folder / "dagster.log", folder) as client:
        with contextlib.chdir(folder), dg.DagsterInstance.from_config(str(folder)) as instance:
            instance.report_runless_asset_event(finished_stage(folder))
            instance.report_runless_asset_event(finished_evaluation())
        yield client


def finished_stage(folder: Path) -> dg.AssetMaterialization:
    """What a long run of stage 3 tells of itself, by the code that tells it."""
    noise = random.Random(0)
    lines = [
        json.dumps({"step": n, "loss": 9 / (1 + n / 100) + noise.random(), "stream": "ab"[n % 2]})
        for n in range(1, 3001)
    ]
    (folder / METRICS_NAME).write_text("\n".join(lines) + "\n")
    run = SimpleNamespace(out=str(folder), stage=3)
    opening = stage_opening(run, SimpleNamespace(first_loss=9.1, last_loss=0.8))
    return dg.AssetMaterialization("stage3", partition="tiny", metadata=opening)


def finished_evaluation() -> dg.AssetMaterialization:
    """The tables of an evaluation of many kinds of questions."""
    rows = [
        {
            "questions": f"a kind of question {n}", "gain": 0.123, "asked": 1234,
            "interval": "0.55 to 0.69", "chance": 0.25, "base_model": 0.5, "stage1": 0.5,
            "stage2": 0.5, "stage3": 0.6, "nothing shown": 0.3, "written": 0.55,
        }
        for n in range(6)
    ]  # fmt: skip
    tables = {
        "scores of stage 3": table(score_columns(rows, "stage3")),
        "every checkpoint": table(checkpoint_columns(rows, checkpoints_of(Variant(preset="tiny")))),
    }
    return dg.AssetMaterialization("evaluation", partition="tiny", metadata=tables)


@pytest.fixture(scope="module")
def ui(client) -> Iterator[Ui]:
    with browser(client.url, width=1600) as window:
        yield window


def keep(ui: Ui, name: str) -> None:
    if folder := os.environ.get("HOURLLAVA_PICTURES"):
        ui.page.wait_for_timeout(1000)
        ui.page.screenshot(path=str(Path(folder) / f"{name}.png"), animations="disabled")


def finish(client: DagsterClient, run: str) -> str:
    deadline = time.monotonic() + 240
    while (state := client.runs([run]).get(run, {}).get("status")) not in FINISHED:
        assert time.monotonic() < deadline, state
        time.sleep(1)
    return state


LAUNCH = """
mutation L($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  ... on RunConfigValidationInvalid { errors { message } } } }"""


def launch(client: DagsterClient, job: str, op: str, **config: str) -> str:
    selector = {
        "repositoryLocationName": "hourllava",
        "repositoryName": "__repository__",
        "pipelineName": job,
    }
    run_config = {"ops": {op: {"config": config}}}
    parameters = {"selector": selector, "mode": "default", "runConfigData": run_config}
    launched = client.query(LAUNCH, p=parameters)["launchPipelineExecution"]
    return launched["run"]["runId"]


def test_a_stages_page_shows_its_loss_at_once(ui):
    ui.open("/assets/stage3?partition=tiny&view=partitions")
    picture = ui.page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    expect(ui.page.get_by_text("first tenth of the steps").first).to_be_visible()
    keep(ui, "stage")


def test_no_column_of_an_evaluation_is_cut_off_at_1600_pixels(ui):
    ui.open("/assets/evaluation?partition=tiny&view=partitions")
    for column in ("95 % (Wilson)", "asked", "gain", "written"):
        cell = ui.page.get_by_text(column, exact=True).first
        expect(cell).to_be_visible()
        box = cell.bounding_box()
        assert box
        assert box["x"] + box["width"] <= 1600, column
    keep(ui, "evaluation")


def test_the_front_page_says_what_is_next_and_names_a_part_that_was_given_up(client, ui):
    assert finish(client, client.launch("01_collect_sources", ["annotations", "catalogue"])) == (
        "SUCCESS"
    )
    given_up = launch(client, "give_up_part", "give_up", part="part1", reason="its videos are gone")
    assert finish(client, given_up) == "SUCCESS"
    ui.open("/assets/0_start_here")
    expect(ui.page.get_by_text("its videos are gone").first).to_be_visible(timeout=150_000)
    expect(ui.page.get_by_text("Next: ").first).to_be_visible()
    keep(ui, "front-page")


def test_a_part_that_was_given_up_is_no_partition_any_more(client, ui):
    ui.open("/assets/conversations?view=partitions")
    expect(ui.page.get_by_text("part0", exact=True).first).to_be_visible()
    expect(ui.page.get_by_text("part1", exact=True)).to_have_count(0)
    keep(ui, "given-up-part")


def test_a_failure_is_told_in_a_sentence_that_says_what_to_do(client, ui):
    run = launch(client, "give_up_part", "give_up", part="part7", reason="a part that is not there")
    assert finish(client, run) == "FAILURE"
    ui.open(f"/runs/{run}")
    expect(ui.page.get_by_text("the catalogue has part0, part1").first).to_be_visible()
    keep(ui, "failure")
