"""What belongs to the identity of a run, and what does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace

import pytest

from model.changes import ModelChanges
from model.config import PRESETS
from training.recipes import Lora
from training.run_config import RunConfig, SavingsWanted, StreamConfig, parse_run
from training.run_identity import (
    differences,
    identity_of,
    short_name,
    version_of_weights,
    weights_version,
)

VERSION = "0" * 32


@pytest.fixture
def run(tmp_path):
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text(json.dumps({"hour_llava": PRESETS["tiny"].to_dict()}))
    (start / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}, "merges": []}}))
    (start / "model.safetensors").write_bytes(b"weights")
    for part in range(2):
        folder = tmp_path / f"shards/kind_part{part}"
        folder.mkdir(parents=True)
        (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [part]}))
    indexes = [f"kind_part{part}/index.json" for part in range(2)]
    streams = [{"name": "s", "root": str(tmp_path / "shards"), "indexes": indexes}]
    return parse_run(
        {
            "variant": "tiny",
            "stage": 3,
            "start": str(start),
            "out": str(tmp_path / "out"),
            "streams": streams,
        }
    )


# Another value of every field that is not a path to content.
COUNT = {
    "variant": "3b", "stage": 2, "seed": "another", "global_batch": 16, "max_length": 512,
    "epochs": 3, "rates": {"memaug": 1e-3}, "warmup": 0.5, "clip": 2.0, "betas": (0.8, 0.9),
    "weight_decay": 0.1, "max_steps": 5, "loss": "micro_batch", "canonical_nodes": 2,
    "shuffle_block": 64, "features_version": "f", "held_out_share": 0.1, "stream_batch": 4,
    "lora": Lora(), "model": ModelChanges(memory_scale=0.5), "rows": {"llavavideo_si": 3},
    "short_video_features_root": "/elsewhere",
}  # fmt: skip
DO_NOT_COUNT = {
    "out": "/elsewhere", "start_version": VERSION, "features_root": "/elsewhere",
    "videos_root": "/elsewhere", "micro_batch": 1, "save_every": 7, "device": "cpu",
    "compile": True, "checkpointing": True, "micro_tokens": 100, "workers": 9, "prefetch": 9,
    "data_timeout_s": 1.0, "features_cache": "/elsewhere", "features_cache_bytes": 1,
    "max_dropped_share": 0.5, "keep": 5, "milestone_every": 3, "continue_from": 4,
    "on_other_state": "set_aside", "nonfinite_limit": 9, "tensorboard": False,
    "held_out_every": 7, "held_out_samples": 8,
    "shard_cache": "/elsewhere", "shard_cache_bytes": 1, "machine_wait_s": 1.0, "tracker": "mlflow",
    "savings": SavingsWanted(memaug=True), "longest_frames": 14_400,
}  # fmt: skip


def test_every_field_of_a_run_counts_or_does_not():
    contents = {"start", "streams", "vision_start"}  # by what is there, see below
    of_rates = {"reference_effective"}  # the same rates for all is what the tiny variant has
    named = {field.name for field in dataclasses.fields(RunConfig)}
    assert named - set(COUNT) - set(DO_NOT_COUNT) == contents | of_rates, (
        "a new field: does it change the steps? Then training.run_identity counts it"
    )


@pytest.mark.parametrize("field", COUNT)
def test_a_setting_that_changes_the_steps_is_another_run(run, field):
    identity = identity_of(run, VERSION)
    other = identity_of(replace(run, **{field: COUNT[field]}), VERSION)
    assert other != identity
    renamed = {"features_version": "features", "short_video_features_root": "short_videos"}
    name = renamed.get(field, field)
    assert any(told.startswith(f"{name} is ") for told in differences(identity, other))


@pytest.mark.parametrize("field", DO_NOT_COUNT)
def test_a_setting_of_the_machine_is_the_same_run(run, field):
    changed = replace(run, **{field: DO_NOT_COUNT[field]})
    assert identity_of(changed, VERSION) == identity_of(run, VERSION)


def test_the_size_of_micro_batches_counts_where_their_means_are_averaged(run):
    averaged = replace(run, loss="micro_batch")
    for change in ({"micro_batch": 1}, {"micro_tokens": 100}):
        assert identity_of(replace(averaged, **change), VERSION) != identity_of(averaged, VERSION)


def test_a_setting_at_its_default_leaves_no_trace(run):
    identity = identity_of(run, VERSION)
    assert not {"seed", "max_steps", "loss", "weight_decay", "features", "short_videos"} & set(
        identity
    )
    said = replace(run, weight_decay=0.0, betas=run.recipe.betas, seed="hour-llava")
    assert identity_of(said, VERSION) == identity


def test_the_identity_of_a_run_is_the_one_of_the_first_release_that_had_one(run):
    # A change of this name parts every run in progress from its checkpoints.
    assert short_name(identity_of(run, VERSION)) == "cf2cd1c724a6"


def test_the_same_contents_under_another_path_are_the_same_run(run, tmp_path):
    moved = tmp_path / "another/mount"
    for name in ("start", "shards"):
        shutil.copytree(tmp_path / name, moved / name)
    (stream,) = run.streams
    here = replace(
        run, start=str(moved / "start"), streams=(replace(stream, root=str(moved / "shards")),)
    )
    assert identity_of(here, weights_version(moved / "start")) == identity_of(
        run, weights_version(tmp_path / "start")
    )
    upper = StreamConfig("renamed", str(moved), tuple(f"shards/{name}" for name in stream.indexes))
    assert identity_of(replace(run, streams=(upper,)), VERSION) == identity_of(run, VERSION)


def test_another_vision_encoder_is_another_run_wherever_it_lies(run, tmp_path):
    identities = []
    for name, weights in (("here", b"a"), ("there", b"a"), ("other", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        changed = replace(run, vision_start=str(tmp_path / name))
        identities.append(identity_of(changed, VERSION))
    here, there, other = identities
    assert here == there
    assert identity_of(run, VERSION) != here != other


def test_other_contents_or_another_order_are_another_run(run, tmp_path):
    identity = identity_of(run, VERSION)
    (stream,) = run.streams
    turned = replace(run, streams=(replace(stream, indexes=stream.indexes[::-1]),))
    assert identity_of(turned, VERSION) != identity
    assert identity_of(run, "1" * 32) != identity
    for path, change in {
        "shards/kind_part1/index.json": '{"version": 2, "shards": [7]}',
        "start/tokenizer.json": '{"model": {"vocab": {"b": 0}, "merges": []}}',
    }.items():
        before = (tmp_path / path).read_text()
        (tmp_path / path).write_text(change)
        assert identity_of(run, VERSION) != identity
        (tmp_path / path).write_text(before)
    assert identity_of(run, VERSION) == identity


def test_a_configuration_counts_by_what_it_says_and_not_by_how_it_is_written(run, tmp_path):
    identity, path = identity_of(run, VERSION), tmp_path / "start/config.json"
    described = PRESETS["tiny"].to_dict()
    del described["anyres_max"]  # as if a later release had added it, with the value of before
    path.write_text(json.dumps({"transformers_version": "9", "hour_llava": described}))
    assert identity_of(run, VERSION) == identity
    described["memory"] = {**described["memory"], "min_frames": 7}
    path.write_text(json.dumps({"hour_llava": described}))
    assert differences(identity, identity_of(run, VERSION))[0].startswith("model is ")


def test_what_is_missing_is_named(run, tmp_path):
    (tmp_path / "shards/kind_part1/index.json").unlink()
    with pytest.raises(
        ValueError, match=r"kind_part1/index\.json does not exist; write its shards"
    ):
        identity_of(run, VERSION)
    (tmp_path / "start/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors file"):
        weights_version(tmp_path / "start")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        identity_of(replace(run, start=str(tmp_path)), VERSION)


def test_weights_have_one_version_wherever_it_is_computed(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"a")
    (tmp_path / "b.safetensors").write_bytes(b"b")
    from training.formats.hashing import hash_file

    hashes = {name: hash_file(tmp_path / name) for name in ("b.safetensors", "a.safetensors")}
    assert weights_version(tmp_path) == version_of_weights(hashes)


CHANGES = {
    "temporal_forgetting": "keyframe",
    "memory_scale": 0.25,
    "memaug_blocks": 8,
    "memaug_positions": False,
    "template_tokens": "seen",
}


def test_every_change_of_the_model_is_another_run_and_none_is_the_same(run):
    plain = short_name(identity_of(run, VERSION))
    names = [
        short_name(identity_of(replace(run, model=ModelChanges(**{name: value})), VERSION))
        for name, value in CHANGES.items()
    ]
    assert len({plain, *names}) == 1 + len(CHANGES)
    assert set(CHANGES) == {field.name for field in dataclasses.fields(ModelChanges)}
    as_it_is = ModelChanges(temporal_forgetting="uniform", memory_scale=1.0, memaug_blocks=2)
    assert short_name(identity_of(replace(run, model=as_it_is), VERSION)) == plain
