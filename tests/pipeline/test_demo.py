"""The whole graph, through a running Dagster, on real media: what ``make demo`` does, in a folder
of its own.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from assets.records.lineage import all_records
from pipeline.cli import main
from pipeline.demo.run import run_demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_asset_was_made(storage):
    made = {record.product.partition("[")[0] for record in all_records(storage)}
    assert {
        "annotations",
        "catalogue",
        "videos",
        "conversations",
        "features",
        "hourllava_s3",
        "evaluation",
    } <= made
    assert {
        "base_model",
        "stage1",
        "stage2",
        "stage3",
        "vision_encoder",
        "videomarathon_json",
    } <= made


def test_what_was_broken_on_purpose_is_reported_with_its_reason(storage):
    rejected = pq.read_table(
        storage.local("VideoMarathon/annotations.rejected.parquet")
    ).to_pylist()
    assert {row["reason"] for row in rejected} == {"no_answer", "unknown_source"}
    reasons = {}
    for name in storage.list("VideoMarathon/catalogue/panda", ".parquet"):
        for row in pq.read_table(storage.local(name)).to_pylist():
            if row["status"] != "ok":
                reasons[row["id"]] = row["reason"]
    assert reasons == {"panda-gone": "http_404", "panda-half": "truncated"}


def test_losses_fall_in_every_stage(storage):
    for stage in (1, 2, 3):
        record = storage.read_json(f"lineage/stage{stage}/tiny.json")
        lines = storage.read_bytes(f"{record['folder']}/metrics.jsonl").splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        tenth = max(1, len(losses) // 10)
        assert sum(losses[-tenth:]) < sum(losses[:tenth]), stage


# In a process of its own: each dataset keeps some hundred descriptors open until the process ends.
READ_PLAINLY = """
import json, sys
from streaming import StreamingDataset
for part in sys.argv[1:]:
    dataset = StreamingDataset(local=part, batch_size=1)
    print(json.dumps([len(dataset), dataset[0]["kind"]]))
"""


def test_a_plain_streaming_dataset_reads_every_part(storage):
    folder = Path(storage.path("VideoMarathon/sharding"))
    parts = sorted(path.parent for path in folder.glob("*_part*/index.json"))
    assert len(parts) == 52
    command = [sys.executable, "-c", READ_PLAINLY, *map(str, parts)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for part, line in zip(parts, lines, strict=True):
        samples, kind = json.loads(line)
        manifest = json.loads((part / "manifest.json").read_text())
        assert samples == manifest["report"]["counts"]["samples"] > 0
        assert kind == part.name.rpartition("_part")[0]


def test_a_second_demo_has_nothing_to_do_and_changes_no_byte(demo, storage, capsys):
    before = hashes(Path(storage.path("VideoMarathon")))
    assert run_demo(demo / "deployment", demo) == 0
    said = capsys.readouterr().out
    assert said.count("already done") == 9
    assert "run" not in "".join(line for line in said.splitlines() if line.startswith("stages"))
    assert hashes(Path(storage.path("VideoMarathon"))) == before


def test_lineage_walks_from_the_checkpoint_to_the_annotations_and_back(demo, capsys):
    config = str(demo / "deployment" / "deployment.yaml")
    assert main(["lineage", "stage3[tiny]", "--verify", "--all", "--config", config]) == 0
    said = capsys.readouterr().out
    assert "jylins/videomarathon @ " in said
    for name in ("videomarathon_video[part0]", "videos[part0|panda]", "features[part0|tiny]"):
        assert f"{name}: whole, " in said
    assert "nothing is recorded" not in said
    assert said.splitlines()[-1].startswith("  whole: ")
    assert main(["lineage", "youcook2/youcook2-00", "--config", config]) == 0
    assert "stage3[tiny]" in capsys.readouterr().out


def test_why_tells_what_became_of_a_video(demo, capsys):
    config = str(demo / "deployment" / "deployment.yaml")
    assert main(["why", "panda/panda-gone", "--config", config]) == 0
    assert "404" in capsys.readouterr().out
