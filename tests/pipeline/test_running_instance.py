"""A running ``dagster dev``, driven over GraphQL as the UI drives it."""

import json
import shutil
import time
from pathlib import Path

import pytest

from pipeline.demo.client import FINISHED
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
        run = client.launch("01_collect_sources", ["annotations", "catalogue"])
        assert finish(client, run) == "SUCCESS", client.failure(run)
        assert client.states("catalogue", [{}]) == ["FRESH"]
        lineage = json.loads((tmp_path / "root/lineage/catalogue/all.json").read_text())
        assert set(lineage["inputs"]) == {"annotations"}

        (tmp_path / "rows.jsonl").write_text('{"colour": "red"}\n')
        run = client.launch("01_collect_sources", ["annotations"])
        assert finish(client, run) == "FAILURE"
        assert "colour" in client.failure(run)
