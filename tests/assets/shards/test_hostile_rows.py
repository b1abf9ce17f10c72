"""Bad rows and pictures of one file, as a part's asset meets them: each costs itself, is counted
and named, and everything else is written.
"""

from __future__ import annotations

import json

import dagster as dg
import pytest
import yaml

from assets.deployment.parts import LLAVA_PARTS, part_of
from assets.records.lineage import Lineage
from assets.shards.mds import read_column
from tests.assets.shards.roots import MIXTURE, encoded, make_root, picture, turns
from tests.materializing import materialize_asset

MARKER = "QA_GT_caption_based_noisy"


@pytest.mark.slow
def test_every_bad_row_costs_itself_and_is_named(tmp_path):
    from pipeline.definitions import definitions

    storage = make_root(tmp_path / "root", images=2)
    images = tmp_path / "root/LLaVA-OneVision/images/set"
    whole = encoded(picture(7, size=(320, 240)), "JPEG")
    (images / "whole.jpg").write_bytes(whole)
    (images / "half.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    middle = len(whole) // 2
    (images / "zeroed.jpg").write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])

    def row(name, image="whole.jpg", conversations=None):
        return json.dumps(
            {
                "id": name,
                "image": f"set/{image}",
                "conversations": conversations or turns("<image>\nWhat?", f"It is {name}."),
            }
        )

    system = [{"from": "system", "value": "Be brief."}, *turns("<image>\nWhat?", "Short.")]
    lines = [
        row("good"),
        row("half", "half.jpg"),
        '{"id": "broken", "image": "set/whole.jpg", "conversations": [{"from": "hum',
        row("zeroed", "zeroed.jpg"),
        row("hidden end", conversations=turns("<image>\nWhat?", f"A <|im_{MARKER}end|> B")),
        row("hidden nothing", conversations=turns("<image>\nWhat?", MARKER)),
        row("marked", conversations=turns("<image>\nWhat?", f"Yes{MARKER}.")),
        row("system", conversations=system),
    ]
    annotations = tmp_path / "root/LLaVA-OneVision/annotations/shapes.json"
    annotations.write_text("\n".join(lines) + "\n")
    (tmp_path / "mixtures.csv").write_text(MIXTURE)
    settings = {
        "root": "root",
        "parts": 1,
        "variants": ["tiny"],
        "annotations": {"paths": ["none.jsonl"]},
        "sources": {"clips": {"kind": "drop", "folder": "drop"}},
        "collections": {"mixtures": "mixtures.csv"},
        "shards": {"workers": 1, "max_drop_share": 1.0},
    }
    (tmp_path / "deployment.yaml").write_text(yaml.safe_dump(settings))
    Lineage("llava_onevision", "1").write(storage)
    counts: dict[str, int] = {}
    named: list[str] = []
    kept: set[str] = set()
    keys = ["row 2", *(f"image set/{name}.jpg" for name in ("whole", "half", "zeroed"))]
    with dg.instance_for_test() as instance:
        for part in sorted({part_of(key, LLAVA_PARTS) for key in keys}):
            result = materialize_asset(
                definitions().assets, instance, tmp_path, "llavavideo_si", f"part{part}"
            )
            folder = f"VideoMarathon/sharding/llavavideo_si_part{part}"
            if not storage.exists(f"{folder}/manifest.json"):
                assert not result.success
                continue
            report = storage.read_json(f"{folder}/manifest.json")["report"]
            for name, count in report["counts"].items():
                counts[name] = counts.get(name, 0) + count
            named += report["named"]
            kept |= {name.rpartition(":")[2] for name in read_column(storage, folder, "id")}
    assert kept == {"good", "marked", "system"}
    assert {name: count for name, count in counts.items() if ": " in name} == {
        "dropped: empty answer": 1,
        "dropped: image damaged": 2,
        "dropped: row is not valid JSON": 1,
        "dropped: stray token": 1,
        "changed: leftover marker taken out": 1,
        "changed: system turn left out": 1,
    }
    assert any(line.startswith("shapes#2: row is not valid JSON") for line in named)
