"""One rank, in this process: steps, resuming, what a run leaves behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file

import training.loop
from model.hf import HourLlavaForCausalLM
from tests.training.generated_samples import (
    LoaderBehaviour,
    losses,
    make_run,
    sample_ids,
    tiny_base,
    train_in_process,
)
from training.export import export_vision_encoder
from training.formats.machine_faults import MachineFault
from training.loop import Diverged

# The third step of this run has no visuals.
TEXT_ALONE = {"global_batch": 2, "micro_batch": 2, "seed": "x"}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def named(optimizer):
    return [
        pair
        for group in optimizer.param_groups
        for pair in zip(group["names"], group["params"], strict=True)
    ]


def weights(run):
    return load_file(Path(run.out) / "export" / "model.safetensors")


@pytest.mark.slow
def test_the_loss_falls_and_the_result_says_so(run):
    result = train_in_process(run)
    assert result["steps"] == 8
    assert result["samples"] == 64
    assert result["last_loss"] < result["first_loss"] - 1
    assert losses(run)[0] == pytest.approx(
        torch.log(torch.tensor(512.0)).item(), abs=0.3
    )  # random weights: uniform


@pytest.mark.slow
def test_a_run_that_crashed_ends_in_the_same_bytes_as_one_that_did_not(run, tmp_path):
    train_in_process(run)
    (tmp_path / "second").mkdir()
    again = make_run(tmp_path / "second")
    with pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(again, LoaderBehaviour(crash_at=6))
    assert losses(again)[:4] == losses(run)[:4]
    assert not (Path(again.out) / "result.json").exists()
    train_in_process(again)
    assert losses(again) == losses(run)
    assert sample_ids(again) == sample_ids(run)
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(run).items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"savings": {"optimizer_on_host": True}},
        {"savings": {"parameters_on_host": True}},
        {"lora": {"rank": 4, "alpha": 8, "rate": 1e-2}},
    ],
    ids=["plain", "optimizer on host", "parameters on host", "adapters"],
)
def test_a_run_with_a_step_of_text_alone_goes_on_to_the_same_bytes(tmp_path, fields):
    run = make_run(tmp_path, **TEXT_ALONE, max_steps=7, save_every=4, **fields)
    train_in_process(run)
    assert all(int(name[7:]) % 2 == 0 for name in sample_ids(run)[3])
    again = replace(run, out=str(tmp_path / "again"))
    with pytest.raises(MachineFault):  # after which a checkpoint is written, however fast the disk
        train_in_process(again, LoaderBehaviour(crash_at=5, machine_fault=True))
    assert (Path(again.out) / "state/step-5").exists()
    train_in_process(again)
    assert losses(again) == losses(run)
    assert all(torch.equal(weights(again)[name], tensor) for name, tensor in weights(run).items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_step_of_text_alone_moves_every_tuned_parameter(tmp_path, monkeypatch, stage):
    """By the moments of the steps before it."""
    made = []
    build = training.loop.build_optimizer

    def built(*given):
        made.append(build(*given))
        return made[-1]

    monkeypatch.setattr("training.loop.build_optimizer", built)
    train_in_process(make_run(tmp_path, **TEXT_ALONE, stage=stage, max_steps=3))
    (optimizer,) = made
    counts = {name: int(optimizer.state[parameter]["step"]) for name, parameter in named(optimizer)}
    assert set(counts.values()) == {3}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("usable", [4, 2], ids=["all", "nothing usable in the last groups"])
def test_gradients_kept_over_the_groups_of_a_step_are_those_reduced_pack_by_pack(
    tmp_path, monkeypatch, usable, stage
):
    monkeypatch.setattr("training.loop.group_samples", lambda _: 4)
    plan = training.loop.plan_memory
    ended = []
    for kept in (False, True):
        monkeypatch.setattr(
            "training.loop.plan_memory",
            lambda *given, kept=kept, **named: replace(plan(*given, **named), keeps_gradients=kept),
        )
        (folder := tmp_path / str(kept)).mkdir()
        run = make_run(folder, stage=stage, global_batch=16, micro_batch=4, max_steps=3)
        result = train_in_process(run, LoaderBehaviour(usable=usable))
        assert result["samples"] == 3 * 4 * usable
        ended.append((losses(run), weights(run)))
    (plain_losses, plain), (kept_losses, found) = ended
    assert plain_losses == kept_losses
    assert None not in plain_losses
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_a_finished_run_is_left_alone(run):
    first = train_in_process(run)
    before = (Path(run.out) / "export" / "model.safetensors").stat().st_mtime_ns
    assert train_in_process(run) == first
    assert (Path(run.out) / "export" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_changes_the_modules_of_its_recipe_and_no_others(tmp_path, stage):
    run = make_run(tmp_path, stage=stage, max_steps=2)
    train_in_process(run)
    before, after = load_file(tiny_base() / "model.safetensors"), weights(run)
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    owners = {"image_newline": "llm"}
    assert {owners.get(name, name) for name in changed} <= set(run.modules)
    assert set(run.modules) - {"vision"} <= {
        owners.get(name, name) for name in changed
    }  # features pass no encoder


@pytest.mark.slow
def test_the_export_loads_with_from_pretrained_and_scores_as_training_did(run):
    train_in_process(run)
    model = HourLlavaForCausalLM.from_pretrained(Path(run.out) / "export")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(run.out) / "export")
    from model.processor import Processor

    sample = Processor(model.config.model_config, tokenizer).sample(
        [{"from": "human", "value": "What is 2?"}, {"from": "gpt", "value": "It is text."}],
        id="x",
        seed=0,
    )
    with torch.no_grad():
        output = model.model([sample])
    assert float(output.loss_sum) / output.supervised == pytest.approx(losses(run)[-1], abs=1.0)


def test_the_vision_encoder_is_exported_by_itself(run, tmp_path):
    from model.weights.vision_encoder import load_vision_encoder

    export_vision_encoder(tiny_base(), tmp_path / "encoder")
    encoder = load_vision_encoder(tmp_path / "encoder")
    whole = HourLlavaForCausalLM.from_pretrained(tiny_base()).model.vision
    pixels = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(encoder(pixels), whole.eval()(pixels))


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_its_samples_are_named(tmp_path):
    run = make_run(tmp_path)
    result = train_in_process(run, LoaderBehaviour(infinite=(3,)))
    assert result["skipped_steps"] == 1
    record = json.loads((Path(run.out) / "nonfinite.jsonl").read_text())
    assert "sample-3" in record["ids"]
    assert losses(run)[record["step"] - 1] is None
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run).values())


def test_steps_that_are_not_finite_in_a_row_end_the_run(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(Diverged, match="3 steps in a row, up to step 3"):
        train_in_process(run, LoaderBehaviour(infinite=tuple(range(64))))
    before, last = load_file(tiny_base() / "model.safetensors"), Path(run.out) / "export"
    assert not last.exists()
    assert before  # the start is untouched, and nothing pretends to be trained


@pytest.mark.slow
def test_small_packs_and_large_ones_give_the_same_step(run, tmp_path):
    train_in_process(replace(run, max_steps=3))
    (tmp_path / "small").mkdir()
    small = make_run(tmp_path / "small", max_steps=3, micro_batch=2, micro_tokens=100)
    train_in_process(small)
    assert losses(small) == pytest.approx(losses(run), rel=1e-4)


def test_the_published_average_weighs_packs_and_not_tokens(tmp_path):
    run = make_run(
        tmp_path, max_steps=2, micro_tokens=100, loss="micro_batch"
    )  # several packs of different weight
    train_in_process(run)
    (tmp_path / "tokens").mkdir()
    other = make_run(tmp_path / "tokens", max_steps=2, micro_tokens=100)
    train_in_process(other)
    assert losses(run)[0] == losses(other)[0]
    assert abs(losses(run)[1] - losses(other)[1]) > 1e-3


def test_a_pack_without_samples_has_no_part_in_the_published_average(tmp_path, monkeypatch):
    """With one pack that has some, both averages are the same."""
    monkeypatch.setattr("training.loop.group_samples", lambda _: 4)
    norms = []
    for loss in ("tokens", "micro_batch"):
        (folder := tmp_path / loss).mkdir()
        run = make_run(folder, loss=loss, micro_batch=4, max_steps=1)
        train_in_process(run, LoaderBehaviour(usable=1))
        record = json.loads((Path(run.out) / "metrics.jsonl").read_text())
        assert record["packs"] == 2
        norms.append(record["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_a_start_of_another_variant_is_refused(tmp_path):
    run = make_run(tmp_path, variant="3b")
    with pytest.raises(ValueError, match="holds variant 'tiny', but the run is of variant '3b'"):
        train_in_process(run)


def test_too_few_samples_are_refused(run):
    with pytest.raises(ValueError, match="less than one global batch of 8"):
        train_in_process(run, LoaderBehaviour(count=7))


def test_recomputed_activations_give_the_same_losses(run, tmp_path):
    train_in_process(replace(run, max_steps=2))
    (tmp_path / "recomputed").mkdir()
    other = make_run(tmp_path / "recomputed", max_steps=2, checkpointing=True)
    train_in_process(other)
    assert losses(other) == pytest.approx(losses(run), rel=1e-5)


def test_a_missing_tensor_in_the_start_is_named(tmp_path):
    start = tmp_path / "start"
    shutil.copytree(tiny_base(), start)
    from safetensors.torch import save_file

    tensors = load_file(start / "model.safetensors")
    del tensors["model.memaug.blocks.0.up.weight"]
    save_file(tensors, start / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors: model\.memaug\.blocks\.0\.up\.weight"):
        train_in_process(make_run(tmp_path, start=str(start)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_give_the_same_losses(run, tmp_path):
    train_in_process(replace(run, max_steps=2))
    (tmp_path / "compiled").mkdir()
    other = make_run(tmp_path / "compiled", max_steps=2, compile=True, micro_batch=4)
    with torch._dynamo.config.patch(
        recompile_limit=2, fail_on_recompile_limit_hit=True
    ):  # all packs differ in length
        train_in_process(other)
    assert losses(other) == pytest.approx(losses(run), rel=1e-5)
