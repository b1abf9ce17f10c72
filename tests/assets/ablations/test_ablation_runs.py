"""The runs of the arms: what each reads and starts from, that none is believed for another; and a
study that is trained, scored and compared for real.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from assets.ablations.runs import (
    arm_of,
    arm_run,
    needs_pretraining,
    pretraining_run,
    read_products,
)
from assets.deployment.ablation import run_keys
from assets.deployment.settings import load_settings
from assets.inference.checkpoint import load_checkpoint
from assets.records.lineage import Lineage, input_versions
from tests.assets.ablations.study import build_study
from tests.materializing import materialize_products
from training.formats.kinds import LONG_VIDEO_KIND, SHORT_VIDEO_KIND, SINGLE_IMAGE_KIND
from training.formats.storage import Storage
from training.run_config import RunConfig


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return build_study(tmp_path_factory.mktemp("study"), seeds=2)


@pytest.fixture(scope="module")
def runs(study) -> dict[str, tuple[RunConfig, str]]:
    """The run and the folder of every arm, by its partition."""
    settings = load_settings(study)
    storage = Storage(settings.root)
    keys = run_keys(settings.ablation.chosen("tiny", False), 2)
    found = {}
    for key in keys:
        inputs = input_versions(storage, read_products(settings, storage, key))
        own = needs_pretraining(settings, key)
        start = str(storage.local_folder("checkpoints/tiny/base/export"))
        pretrained = (start, inputs["base_model[tiny]"]) if own else None
        found[key] = arm_run(settings, storage, key, inputs, pretrained)
    return found


@pytest.mark.slow
def test_no_run_of_an_arm_is_believed_for_another(runs):
    names = [folder.rpartition("/")[2] for _, folder in runs.values()]
    assert len(set(names)) == len(names) == 2 * 19
    assert all(
        folder.startswith(f"checkpoints/tiny/ablation/{k}/") for k, (_, folder) in runs.items()
    )


@pytest.mark.slow
def test_all_arms_have_the_same_seeds_steps_and_number_of_rows(runs):
    assert {run.seed for run, _ in runs.values()} == {"ablation 1", "ablation 2"}
    assert all(runs[key][0].seed.endswith(key[-1]) for key in runs)
    for run, _ in runs.values():
        videos = run.rows[LONG_VIDEO_KIND] + run.rows[SHORT_VIDEO_KIND]
        # 64 rows about long videos, 96 about short ones: so many that each alone would do.
        assert (videos, run.rows[SINGLE_IMAGE_KIND]) == (64, 40)
        assert (run.stage, run.max_steps) == (3, 2)


def test_a_stream_without_rows_is_left_out(runs):
    names = {key: [stream.name for stream in run.streams] for key, (run, _) in runs.items()}
    assert (
        names["uniform-1"] == names["long_0-1"] == ["short", "long"]
    )  # images are in the long one
    assert names["long_100-1"] == ["long"]
    assert runs["long_100-1"][0].rows[SHORT_VIDEO_KIND] == 0


def test_features_and_the_exports_encoder_are_of_one_vision_encoder(runs, study):
    settings = load_settings(study)
    encoder = str(Path(settings.root) / "checkpoints/tiny/vision_encoder")
    assert {run.vision_start for run, _ in runs.values()} == {encoder}


def test_an_arm_without_memaug_tunes_what_is_left(runs):
    for key, (run, _) in runs.items():
        assert ("memaug" in run.recipe.rates) == ("no_memaug" not in key), key


def test_stage_1_of_an_arms_own_memaug_is_of_that_memaug(study):
    settings = load_settings(study)
    storage = Storage(settings.root)
    own = [
        k for k in ("blocks_8-1", "no_positions-1", "uniform-1") if needs_pretraining(settings, k)
    ]
    assert own == ["blocks_8-1", "no_positions-1"]
    for key in own:
        inputs = input_versions(storage, read_products(settings, storage, key))
        run, folder = pretraining_run(settings, storage, key, inputs)
        assert run.model == arm_of(settings, key)[0].model
        assert (run.stage, dict(run.recipe.rates).keys()) == (1, {"memaug"})
        assert folder.startswith(f"checkpoints/tiny/ablation/{key}/stage1-")
        assert run.features_version is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_arms_are_trained_scored_and_compared_in_one_table(study):
    keys = ("uniform-1", "blocks_1-1")
    runs = [f"{asset}={key}" for key in keys for asset in ("ablation", "ablation_scores")]
    materialize_products(study, *runs, "ablation_table")
    storage = Storage(load_settings(study).root)
    for key, blocks in (("uniform-1", 2), ("blocks_1-1", 1)):
        record = Lineage.read(storage, f"ablation[{key}]")
        model, processor = load_checkpoint(storage.local_folder(f"{record.folder}/export"), "cpu")
        assert processor.config.memaug_depth == len(model.model.memaug.blocks) == blocks
        encoder = load_file(Path(storage.path("checkpoints/tiny/vision_encoder/model.safetensors")))
        stored = load_file(storage.local(f"{record.folder}/export/model.safetensors"))
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        assert encoder[name].equal(stored["model.vision.layers.0.up.weight"])
        bill = storage.read_json(f"{record.folder}/bill.json")
        assert (bill["product"], bill["rows"]) == (f"ablation[{key}]", 64 + 40)
    table = storage.read_json("evaluation/tiny/ablation/table.json")
    rows = {row["arm"]: row for row in table["groups"]["all"]}
    assert rows.keys() == {"uniform", "blocks_1"}
    assert {row["asked"] for row in rows.values()} == {4}
    assert rows["blocks_1"]["gain"] == pytest.approx(
        rows["blocks_1"]["accuracy"] - rows["uniform"]["accuracy"]
    )
    assert {"count", "name"} <= table["groups"].keys()
    made = Lineage.read(storage, "ablation_table")
    assert made.inputs.keys() == {f"ablation_scores[{key}]" for key in keys}
    assert made.counts["not scored yet"] == 2 * 19 - 2
    # Nothing is trained again for what is there.
    folders = {key: Lineage.read(storage, f"ablation[{key}]").version for key in keys}
    answers = Path(storage.path("evaluation/tiny/ablation/uniform-1.parquet")).stat().st_mtime_ns
    materialize_products(study, "ablation=uniform-1", "ablation_scores=uniform-1")
    assert Lineage.read(storage, "ablation[uniform-1]").version == folders["uniform-1"]
    assert (
        Path(storage.path("evaluation/tiny/ablation/uniform-1.parquet")).stat().st_mtime_ns
        == answers
    )
