"""Variants: a list is the full recipe, a mapping gives names and starts, and the graph follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from assets.deployment.settings import Settings, load_settings
from assets.deployment.variants import encoder_from, previous
from model.weights.released import RELEASED
from training.formats.kinds import LLAVA_KINDS

REPOSITORY = Path(__file__).parents[3]


def settings_of(
    folder: Path,
    variants: object,
    source: str = "own",
    features: dict[str, object] | None = None,
    **training: object,
) -> Settings:
    chosen: dict[str, object] = {
        "root": "data",
        "variants": variants,
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {source: {"kind": "drop", "folder": "drop"}},
        "training": training,
        "features": features or {},
    }
    if source != "own":
        asked = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "any"}
        chosen["questions"] = {"sources": [source], "describer": asked}
    (folder / "deployment.yaml").write_text(yaml.safe_dump(chosen))
    return load_settings(folder / "deployment.yaml")


def lectures(**start: object) -> dict[str, object]:
    return {"lectures": {"preset": "3b", "start": start}}


def test_a_list_of_presets_is_the_full_recipe_of_each(tmp_path):
    settings = settings_of(tmp_path, ["3b", "7b"])
    assert {name: v.preset for name, v in settings.variants.items()} == {"3b": "3b", "7b": "7b"}
    assert all(variant.stages == (1, 2, 3) for variant in settings.variants.values())
    assert settings.llava_kinds == LLAVA_KINDS


@pytest.mark.parametrize(
    ("finished", "stages", "before", "encoder"),
    [
        (0, (1, 2, 3), "base_model", "stage2"),
        (1, (2, 3), "base_model", "stage2"),
        (2, (3,), "base_model", "base_model"),
        (3, (3,), "base_model", "base_model"),
    ],
)
def test_a_start_decides_which_stages_are_trained(tmp_path, finished, stages, before, encoder):
    settings = settings_of(tmp_path, lectures(folder="given", stage=finished))
    variant = settings.variants["lectures"]
    assert variant.stages == stages
    assert previous(variant, stages[0]) == before
    assert encoder_from(variant) == encoder
    assert variant.start is not None
    assert variant.start.folder == tmp_path / "given"  # counted from the settings file


def test_the_stage_of_a_released_checkpoint_need_not_be_said(tmp_path):
    for repo, known in RELEASED.items():
        variant = settings_of(tmp_path, lectures(repo=repo)).variants["lectures"]
        assert variant.first_stage == min(known.stage + 1, 3)


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        (lectures(repo="someone/something"), "say which stage the checkpoint has finished"),
        (lectures(stage=3), "give either repo or folder"),
        (lectures(folder="x", stage=4), "less than or equal to 3"),
        ({"a/b": {"preset": "3b"}}, "it is the name of a folder and of partitions"),
        ({"a|b": {"preset": "3b"}}, "it is the name of a folder and of partitions"),
        ({}, "name at least one variant"),
        (["4b"], "variants.4b.preset"),
    ],
)
def test_what_cannot_be_a_variant_is_refused_by_name(tmp_path, variants, says):
    with pytest.raises(ValueError, match=says):
        settings_of(tmp_path, variants)


def test_long_videos_alone_need_no_collection_unless_an_early_stage_is_trained(tmp_path):
    late, full = lectures(folder="x", stage=3), ["3b"]
    assert settings_of(tmp_path, late, long_videos_only=True).llava_kinds == ()
    assert settings_of(tmp_path, late).llava_kinds == LLAVA_KINDS[1:]
    assert settings_of(tmp_path, full, long_videos_only=True).llava_kinds == LLAVA_KINDS


# In a process of its own: the code location reads its settings while it is imported.
GRAPH = """
import json
import dagster as dg
from assets.automation.conditions import state_of
from pipeline.definitions import definitions
from training.formats.storage import Storage
defs = definitions()
graph = defs.resolve_asset_graph()
with dg.instance_for_test() as instance:
    state = state_of(instance, graph, Storage("nowhere"))
    late = (
        "stage1", "stage2", "vision_encoder", "short_video_features", "stage3", "evaluation"
    )
    wanted = {
        name: state.wanted(name)
        for asset in late if asset in state.graph
        for name in state.products(asset)
    }
print(json.dumps({
    "assets": sorted(key.to_user_string() for key in graph.get_all_asset_keys()),
    "wanted": wanted,
    "jobs": sorted(job.name for job in defs.resolve_all_job_defs()),
}))
"""


def graph_of(folder: Path) -> dict[str, object]:
    environment = {**os.environ, "HOURLLAVA_CONFIG": str(folder / "deployment.yaml")}
    command = [sys.executable, "-c", GRAPH]
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_variants_of_different_starts_share_a_graph_and_need_only_what_is_theirs(tmp_path):
    settings_of(
        tmp_path,
        {
            "full": {"preset": "3b"},
            "adapted": {"preset": "3b", "start": {"folder": "x", "stage": 1}},
            "lectures": {"preset": "3b", "start": {"folder": "x", "stage": 3}},
        },
    )
    found = graph_of(tmp_path)
    checkpoints = {
        name: [o for o in others if o.split("[")[0] in ("base_model", "stage1", "stage2", "stage3")]
        for name, others in found["wanted"].items()
    }
    assert checkpoints == {
        "stage1[full]": ["base_model[full]"],
        "stage2[full]": ["stage1[full]"],
        "stage2[adapted]": ["base_model[adapted]"],
        "vision_encoder[full]": ["stage2[full]"],
        "vision_encoder[adapted]": ["stage2[adapted]"],
        "vision_encoder[lectures]": ["base_model[lectures]"],
        "stage3[full]": ["stage2[full]"],
        "stage3[adapted]": ["stage2[adapted]"],
        "stage3[lectures]": ["base_model[lectures]"],
        "evaluation[full]": ["base_model[full]", "stage1[full]", "stage2[full]", "stage3[full]"],
        "evaluation[adapted]": ["base_model[adapted]", "stage2[adapted]", "stage3[adapted]"],
        "evaluation[lectures]": ["base_model[lectures]", "stage3[lectures]"],
    }


@pytest.mark.slow
def test_ones_own_videos_from_a_tuned_checkpoint_need_no_early_stage_and_no_collection(tmp_path):
    settings_of(tmp_path, lectures(folder="x", stage=3), long_videos_only=True)
    found = graph_of(tmp_path)
    assert not {"stage1", "stage2", "llava_onevision", "llava_video", "hub_llava_video"} & set(
        found["assets"]
    )
    assert not [name for name in found["assets"] if name.startswith("llava")]
    assert {"06_prepare_start", "10_train_stage3"} <= set(found["jobs"])
    assert not {"03_shard_llava", "07_train_to_stage2"} & set(found["jobs"])


@pytest.mark.slow
def test_a_variant_and_a_source_may_have_the_same_name(tmp_path):
    settings_of(tmp_path, lectures(folder="x", stage=3), source="lectures", long_videos_only=True)
    found = graph_of(tmp_path)["wanted"]
    assert found["vision_encoder[lectures]"] == ["base_model[lectures]"]


@pytest.mark.slow
def test_kept_features_of_short_videos_are_an_asset_that_stage_3_is_made_from(tmp_path):
    settings_of(tmp_path, ["tiny", "3b"], features={"short_videos": True})
    found = graph_of(tmp_path)
    wanted, parts = found["wanted"], [f"part{part}" for part in range(2, 10)]
    names = [f"short_video_features[{part}|3b]" for part in parts]
    assert [name for name in wanted["stage3[3b]"] if name.startswith("short_video")] == names
    assert not [name for name in wanted["stage2[3b]"] if name.startswith("short_video")]
    made = [name for name in wanted if name.startswith("short_video_features[")]
    assert sorted(name for name in made if name.endswith("|3b]")) == names
    assert wanted["short_video_features[part2|3b]"] == [
        "llava_video",
        "llavavideo_video[part2]",
        "vision_encoder[3b]",
    ]
    assert "08_extract_short_video_features" in found["jobs"]


@pytest.mark.parametrize(
    ("features", "training", "said"),
    [
        ({"encoder": "somewhere"}, {}, "take features.encoder out, or short_videos"),
        ({}, {"long_videos_only": True}, "no short video is trained on; take one of the two out"),
    ],
)
def test_features_of_short_videos_that_nobody_could_use_are_refused(
    tmp_path, features, training, said
):
    with pytest.raises(ValueError, match=said):
        settings_of(tmp_path, ["3b"], features={"short_videos": True, **features}, **training)
