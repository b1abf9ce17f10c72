"""The graph from videos to the scores of stage 3, whose work is jobs of a real Slurm and whose root
is a bucket: the products of a local deployment, byte for byte.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from assets.records.lineage import Lineage, all_records
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.own import write_released
from pipeline.verify import verify
from tests.assets.shards.roots import MIXTURE, TEXT_SET, turns, write
from tests.materializing import materialize_products
from tests.model.media import clips
from tests.servers.s3 import s3_root
from training.formats.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TEXTS = f"LLaVA-OneVision/annotations/{TEXT_SET}"
PRODUCTS = (
    "annotations", "catalogue", "videos=part0|ego4d", "base_model=tiny",
    "vision_encoder=tiny", "features=part0|tiny", "conversations=part0", "videomarathon_json",
    "videomarathon_video=part0", "llavavideo_text=part0", "hourllava_s3", "stage3=tiny",
    "evaluation=tiny",
)  # fmt: skip
JOBS = {
    "vision_encoder-tiny", "features-part0-tiny", "conversations-part0", "videomarathon_json",
    "videomarathon_video-part0", "llavavideo_text-part0", "stage3-tiny", "evaluation-tiny",
}  # fmt: skip
# The nodes' own interpreter, with the package that it has: it runs only after `setup`.
INTERPRETER = f"""#!/bin/sh
[ "$FROM_SETUP" = ready ] || exit 9
echo >> "$(dirname "$0")/used"
PYTHONPATH={REPOSITORY} exec {sys.executable} "$@"
"""


def build_deployment(folder: Path, root: str, **sections: object) -> Path:
    """Two videos and questions about them, a released checkpoint, a collection of texts, and the
    settings of a variant that is tuned from that checkpoint; returns their file.
    """
    rows = [
        {"video": name, "data_source": "ego4d", "question": f"What {n}?", "answer": "Red."}
        for name in ("a", "b")
        for n in range(3)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "drop").mkdir()
    for number, name in enumerate(("a", "b")):
        clips.encode(folder / "drop" / f"{name}.mp4", 30 + number, rate=10)
    write_released(folder / "released", "graph")
    (folder / "mixtures.csv").write_text(MIXTURE)
    questions = [
        {"id": "film", "media": "video", "path": "drop/a.mp4"},
        {"id": "text", "media": "text", "path": ""},
    ]
    asked = {"question": "Which?", "answer": "one", "candidates": ["one", "two"], "task": "which"}
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps(question | asked) + "\n" for question in questions)
    )
    tuning = {"max_steps": 3, "global_batch": 2, "workers": 0, "tensorboard": False}
    start = {"folder": "released", "stage": 3}
    settings = {
        "root": root,
        "parts": 1,
        # The second one trains every stage, so there are shards of the collections.
        "variants": {"tiny": {"preset": "tiny", "start": start}, "whole": {"preset": "tiny"}},
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {"ego4d": {"kind": "drop", "folder": "drop"}},
        "collections": {"mixtures": "mixtures.csv"},
        "download": {"min_free_bytes": 0},
        "shards": {"workers": 1},
        "features": {"decode_workers": 1, "device": "cpu"},
        "training": {
            "processes": 1,
            "cpu_threads": 1,
            "long_videos_only": True,
            "overrides": {"stage3": tuning},
        },
        "evaluation": {"questions": "questions.jsonl"},
        "automation": {"data": False},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section}
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(settings))
    storage = Storage(root if "://" in root else str(folder / root))
    write(folder / "texts.json", [{"id": "t", "conversations": turns("Say one.", "One.")}])
    storage.write_bytes(TEXTS, (folder / "texts.json").read_bytes())
    Lineage("llava_onevision", "written by hand").write(storage)
    return path


def test_videos_become_a_tuned_and_scored_checkpoint_the_same_as_without_slurm(cluster, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "local").mkdir()
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    (nodes / "python").write_text(INTERPRETER)
    (nodes / "python").chmod(0o700)
    pool = {
        "engine": "slurm",
        "partition": "p",
        "python": str(nodes / "python"),
        "setup": ["export FROM_SETUP=ready"],
    }
    compute = {"gpu": {**pool, "nodes": 2}, "cpu": pool, "poll_s": 0.3}
    alone = build_deployment(tmp_path / "local", "root", training={"processes": 2})
    with s3_root() as root, ThreadPoolExecutor() as beside:
        config = build_deployment(tmp_path / "jobs", root, compute=compute)
        locally = beside.submit(materialize_products, alone, *PRODUCTS)
        materialize_products(config, *PRODUCTS)
        locally.result()
        storage = Storage(root)
        made = {record.product: (record.version, record.receipt) for record in all_records(storage)}
        assert verify(storage, all_records(storage)).wrong == []
    local = all_records(Storage(str(tmp_path / "local/root")))
    assert made == {record.product: (record.version, record.receipt) for record in local}
    assert {name.partition("=")[0] for name in PRODUCTS} <= {record.asset for record in local}

    folders = {path.name.split("-", 2)[2]: path for path in (tmp_path / "jobs/.jobs").iterdir()}
    assert set(folders) == JOBS
    # The stage's own job ran on both nodes; its checks are a second one, on one node.
    assert {len(list(job.glob("control-*"))) for job in folders["stage3-tiny"].iterdir()} == {2, 1}
    assert len((nodes / "used").read_text().splitlines()) > len(JOBS)
    assert cluster.processes() == []
