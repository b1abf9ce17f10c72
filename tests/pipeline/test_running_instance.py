"""A running ``hourllava ui``, driven over GraphQL as the UI drives it."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from assets.records.lineage import product
from pipeline.demo.client import FINISHED, LOCATION
from pipeline.demo.instance import REPOSITORY, dagster

ROW = {
    "id": "v1",
    "video": "clips/v1.mp4",
    "data_source": "clips",
    "URL": None,
    "question_type": "scene/oe",
}


def write_deployment(folder: Path, rows: list[dict]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "drop").mkdir()
    deployment = folder / "deployment.yaml"
    deployment.write_text(
        "root: root\nparts: 1\nvariants: [tiny]\nannotations: {paths: [rows.jsonl]}\n"
        "sources: {clips: {kind: drop, folder: drop}}\n"
    )
    return deployment


def finish(client, run: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = client.runs([run]).get(run, {}).get("status")
        if state in FINISHED:
            return state
        time.sleep(0.5)
    raise TimeoutError(run)


@pytest.mark.slow
def test_assets_materialize_over_graphql_and_a_bad_file_is_told_to_its_owner(tmp_path):
    deployment = write_deployment(tmp_path, [{**ROW, "question": "What colour?", "answer": "Red."}])
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    with dagster(deployment, tmp_path / "dagster.log", home=tmp_path) as client:
        rows = (tmp_path / "rows.jsonl").read_text()
        (tmp_path / "rows.jsonl").write_text('{"colour": "red"}\n')
        run = client.launch("01_collect_sources", ["annotations"])
        assert finish(client, run) == "FAILURE"
        assert "colour" in client.failure(run)

        (tmp_path / "rows.jsonl").write_text(rows)
        run = client.launch("01_collect_sources", ["annotations", "catalogue"])
        assert finish(client, run) == "SUCCESS", client.failure(run)
        assert client.states("catalogue", [{}]) == ["FRESH"]
        lineage = json.loads((tmp_path / "root/lineage/catalogue/all.json").read_text())
        assert set(lineage["inputs"]) == {"annotations"}


START_SENSOR = """
mutation Start($selector: SensorSelector!) {
  startSensor(sensorSelector: $selector) {
    __typename ... on PythonError { message } ... on Sensor { name }
  }
}"""


def start_sensor(client, name: str) -> None:
    selector = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "sensorName": name,
    }
    assert client.query(START_SENSOR, selector=selector)["startSensor"]["__typename"] == "Sensor"


AUTOMATIC = """
{ runsOrError(filter: {tags: [{key: "hourllava/asked-by", value: "automation"}]}) {
  ... on Runs { results { runId status assetSelection { path } tags { key value } } } } }
"""


def automatic_runs(client) -> dict[str, str]:
    """Product -> status, of every run that automation asked for; each stands there once."""
    found: dict[str, str] = {}
    for run in client.query(AUTOMATIC)["runsOrError"]["results"]:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        for asset in run["assetSelection"]:
            partition = tags.get("dagster/partition")
            name = product(asset["path"][0], partition)
            assert name not in found, f"{name} was asked for twice"
            found[name] = run["status"]
    return found


def wait_for(client, wanted: dict[str, str], seconds: float = 600) -> dict[str, str]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = automatic_runs(client)
        if wanted.items() <= runs.items():
            return runs
        time.sleep(2)
    raise TimeoutError(f"{wanted}, not {runs}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_automation_makes_each_part_once_also_of_a_landing_before_its_first_tick(tmp_path):
    """Catalogued by hand; a file lands; only then is automation switched on. The videos are not
    there, so each part fails its check once, and nothing is made of it.
    """
    deployment = write_deployment(tmp_path, [{**ROW, "question": "What colour?", "answer": "Red."}])
    (tmp_path / "landing").mkdir()
    with deployment.open("a") as settings:
        settings.write("landing: landing\nhub_endpoint: http://127.0.0.1:9\n")
        settings.write("automation: {data: false}\ndownload: {coverage_threshold: 1.0}\n")
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    with dagster(deployment, tmp_path / "dagster.log", home=tmp_path) as client:
        run = client.launch("01_collect_sources", ["annotations", "catalogue"])
        assert finish(client, run) == "SUCCESS", client.failure(run)
        landed = {**ROW, "video": "clips/v2.mp4", "question": "What shape?", "answer": "Round."}
        (tmp_path / "landing/new.jsonl").write_text(json.dumps(landed) + "\n")
        os.utime(tmp_path / "landing/new.jsonl", (1e9, 1e9))
        for sensor in ("watch_outside_data", "data_automation"):
            start_sensor(client, sensor)
        wanted = {
            "annotations": "SUCCESS",
            "catalogue": "SUCCESS",
            "videos[part0|clips]": "FAILURE",
            "videos[part1|clips]": "FAILURE",
        }
        wait_for(client, wanted)
        time.sleep(70)  # one more tick
        assert automatic_runs(client) == wanted
