"""A deployment with everything that the arms of an ablation are made from, small and real."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from assets.checkpoints.base import prepare_base
from assets.deployment.settings import Settings, load_settings
from assets.records.lineage import Lineage
from assets.shards.mixture_views import write_views
from assets.shards.writer import write_kind_part
from model.weights.tiny import build_tiny
from tests.assets.shards.roots import MIXTURE, quiet
from tests.training.shard_runs import LONG_PARTS, make_corpus
from training.export import export_vision_encoder
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.kinds import IMAGE_KIND, LONG_VIDEO_KIND, SHORT_VIDEO_KIND, SINGLE_IMAGE_KIND
from training.formats.storage import Storage
from training.recipes import ShardInput
from training.run_identity import weights_version

SMALL = {
    "global_batch": 4, "max_steps": 2, "workers": 0, "tensorboard": False, "save_every": 100,
}  # fmt: skip


def build_study(folder: Path, **study: object) -> Path:
    """Write the deployment into an empty folder; returns its settings.

    Args:
        study: of the section `ablation`.
    """
    root = folder / "root"
    root.mkdir()
    (folder / "rows.jsonl").write_text("")
    make_corpus(root)
    questions = [
        {
            "id": f"q{number}",
            "media": "video",
            "path": "clip.mp4",
            "question": f"What is {number}?",
            "answer": "one",
            "candidates": ["one", "two"],
            "task": ("count", "name")[number % 2],
        }
        for number in range(4)
    ]
    (root / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    settings = {
        "root": "root",
        "variants": ["tiny"],
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {},
        "collections": {"mixtures": "root/mixtures.csv"},
        "shards": {"workers": 1, "rows_per_shard": 8},
        "features": {"device": "cpu"},
        "training": {"cpu_threads": 1, "overrides": {"stage1": SMALL, "stage3": SMALL}},
        "evaluation": {"questions": "root/questions.jsonl"},
        "automation": {"data": False},
        "ablation": {"others": {SINGLE_IMAGE_KIND: 40}, **study},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(settings))
    (root / "mixtures.csv").write_text(MIXTURE)
    _make_products(load_settings(path), root)
    return path


def _make_products(settings: Settings, root: Path) -> None:
    storage = Storage(str(root))
    for part in range(10):
        report = write_kind_part(storage, settings, IMAGE_KIND, part, quiet)
        Lineage(f"{IMAGE_KIND}[part{part}]", report.version).write(storage)
    streams = [
        [ShardInput(SHORT_VIDEO_KIND, part) for part in range(2, 10)],
        [
            *(ShardInput(LONG_VIDEO_KIND, part) for part in range(LONG_PARTS)),
            *(ShardInput(SINGLE_IMAGE_KIND, part) for part in range(6, 10)),
        ],
    ]
    mixture = write_views(storage, streams)
    Lineage(layout.MIXTURE, mixture.version, layout.STAGE3_MIXTURE).write(storage)
    base = prepare_base(storage, settings, "tiny", quiet)
    Lineage("base_model[tiny]", base.version, base.folder).write(storage)
    folder = layout.stage_folder("tiny", 1, "abc")
    build_tiny(root / folder / "export", seed="stage 1")
    version = weights_version(root / folder / "export")
    Lineage("stage1[tiny]", version, folder).write(storage)
    build_tiny(root / "tuned", seed="stage 2")
    folder = layout.vision_encoder("tiny")
    export_vision_encoder(root / "tuned", root / folder)
    Lineage("vision_encoder[tiny]", weights_version(root / folder), folder).write(storage)
    (root / layout.features("tiny")).parent.mkdir(parents=True, exist_ok=True)
    (root / "features").rename(root / layout.features("tiny"))
    names = [f"part{part}" for part in range(LONG_PARTS)]
    for name in names:
        Lineage(f"features[{name}|tiny]", data_version(name)).write(storage)
    storage.write_json(layout.PARTS, {"parts": [{"name": name} for name in names]})
