"""Pages of a small deployment in the UI: the front page, a part that was given up, a failure.

With HOURLLAVA_PICTURES naming a folder, pictures of what is seen are kept there.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import expect

from pipeline.demo.client import FINISHED, DagsterClient
from pipeline.demo.instance import REPOSITORY, dagster
from tests.pipeline.browser import Ui, browser, missing_chromium

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
        yield client


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
