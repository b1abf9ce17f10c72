"""Checkpoints: complete only when marked, independent of each other; a full disk is an error."""

from __future__ import annotations

import random
import re
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import training.checkpoint as module
from model.hf import HourLlavaForCausalLM
from tests.training.generated_samples import (
    LoaderBehaviour,
    losses,
    make_run,
    single_rank,
    tiny_base,
    train_in_process,
)
from training.checkpoint import Checkpoints
from training.checkpoint_folder import COMMITTED_NAME, committed, read_state
from training.loading import empty_model, load_weights
from training.optimizer import build_optimizer, select
from training.parallel import prepare
from training.recipes import RECIPES

RECIPE = RECIPES["tiny", 3]


@pytest.fixture
def ranks():
    with single_rank() as found:
        yield found


def build(ranks):
    """A sharded model and its optimizer, as the loop makes them."""
    wrapper = empty_model(tiny_base())
    select(wrapper.model, RECIPE.rates)
    prepare(wrapper.model, ranks, compiled=False)
    load_weights(wrapper, tiny_base())
    return wrapper.model, build_optimizer(wrapper.model, RECIPE)


def take_step(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad.to_local().copy_(
                torch.randn(parameter.to_local().shape, generator=generator)
            )
    optimizer.step()


def values(model, optimizer):
    parameters = {
        name: p.to_local().clone() for name, p in model.named_parameters() if p.requires_grad
    }
    moments = [
        s[key].to_local().clone()
        for s in optimizer.state.values()
        for key in ("exp_avg", "exp_avg_sq")
    ]
    return parameters, moments, [float(s["step"]) for s in optimizer.state.values()]


def test_what_is_read_is_what_was_written_although_training_went_on(ranks, tmp_path):
    model, optimizer = build(ranks)
    take_step(model, optimizer, 1)
    saved = values(model, optimizer)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    checkpoints.save(1, model, optimizer, {"position": {"epoch": 0}})
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    take_step(model, optimizer, 2)
    checkpoints.commit_written(wait=True)

    other_model, other_optimizer = build(ranks)
    state = checkpoints.load(checkpoints.newest(), other_model, other_optimizer)
    assert checkpoints.newest_whole() == checkpoints.newest()
    assert (state["step"], state["position"], state["updates"]) == (1, {"epoch": 0}, 1.0)
    loaded = values(other_model, other_optimizer)
    assert all(torch.equal(loaded[0][name], tensor) for name, tensor in saved[0].items())
    assert all(torch.equal(a, b) for a, b in zip(loaded[1], saved[1], strict=True))
    assert loaded[2] == saved[2]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_a_checkpoint_counts_only_when_it_is_marked(ranks, tmp_path):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    assert checkpoints.newest() is None
    checkpoints.save(4, model, optimizer, {})
    checkpoints.commit_written(wait=True)
    # What a kill leaves: a later step under a temporary name, without the mark.
    begun = tmp_path / "state" / ".tmp-step-8"
    shutil.copytree(tmp_path / "state" / "step-4", begun)
    (begun / COMMITTED_NAME).unlink()
    assert checkpoints.newest().name == "step-4"
    assert checkpoints.newest_whole().name == "step-4"
    checkpoints.remove_incomplete()
    assert not begun.exists()
    assert (tmp_path / "state" / "latest").read_text() == "step-4\n"


def test_a_save_replaces_what_a_killed_run_began(ranks, tmp_path):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    litter = tmp_path / "state" / ".tmp-step-3" / "__9_0.distcp"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"half")
    checkpoints.save(3, model, optimizer, {})
    checkpoints.commit_written(wait=True)
    assert not litter.exists()
    assert checkpoints.newest().name == "step-3"


def test_the_newest_two_are_kept_in_the_order_of_their_steps(ranks, tmp_path):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    for step in (9, 10, 100):
        checkpoints.save(step, model, optimizer, {})
    checkpoints.commit_written(wait=True)
    assert [path.name for path in committed(tmp_path / "state")] == ["step-10", "step-100"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        "latest",
        "step-10",
        "step-100",
    ]
    assert read_state(checkpoints.newest())["step"] == 100


def test_a_write_in_the_background_is_committed_only_after_it_ended(ranks, tmp_path, monkeypatch):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    pending: Future[None] = Future()
    monkeypatch.setattr(module.dcp, "async_save", lambda *args, **kwargs: pending)
    checkpoints.save(1, model, optimizer, {})
    assert checkpoints.commit_written() is None
    assert checkpoints.newest() is None
    pending.set_result(None)
    assert checkpoints.commit_written() == 1
    assert checkpoints.newest().name == "step-1"


def test_a_failed_write_says_what_stands_and_leaves_it_alone(ranks, tmp_path, monkeypatch):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    checkpoints.save(1, model, optimizer, {})
    checkpoints.commit_written(wait=True)
    failed: Future[None] = Future()
    failed.set_exception(OSError(28, "No space left on device"))
    monkeypatch.setattr(module.dcp, "async_save", lambda *args, **kwargs: failed)
    checkpoints.save(2, model, optimizer, {})
    with pytest.raises(OSError, match=r"No space left on device.*it continues from step-1"):
        checkpoints.commit_written()
    assert [path.name for path in (tmp_path / "state").glob("*step-*")] == ["step-1"]
    assert checkpoints.newest().name == "step-1"


def test_a_full_disk_is_noticed_before_anything_is_written(ranks, tmp_path, monkeypatch):
    model, optimizer = build(ranks)
    checkpoints = Checkpoints(tmp_path / "state", 2, ranks)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(
        OSError, match=r"a checkpoint takes [\d.]+ [kM]B, and 1.0 MB are free on that disk; make"
    ):
        checkpoints.save(2, model, optimizer, {})
    assert list((tmp_path / "state").glob("*/*.distcp")) == []


@pytest.mark.slow
def test_a_run_goes_on_after_the_disk_was_full(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    frees = iter([usage.free, 0])
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: usage._replace(free=next(frees, usage.free))
    )
    with pytest.raises(OSError, match="are free"):
        train_in_process(run)
    assert [path.name for path in committed(Path(run.out) / "state")] == ["step-4"]
    assert train_in_process(run)["steps"] == 8


def halve(step):
    (file,) = step.glob("*.distcp")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(step):
    (file,) = step.glob("*.distcp")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    file.write_bytes(content)


def make_unreadable(step):
    (step / COMMITTED_NAME).unlink()
    (step / COMMITTED_NAME).mkdir()


DAMAGES = {
    "half a file": (halve, r"\.distcp has [\d,]+ bytes instead of [\d,]+"),
    "64 flipped bytes": (flip, r"\.distcp has other content"),
    "an empty state": (lambda step: (step / "state.json").write_text(""), "state.json has 0 bytes"),
    "no random state": (
        lambda step: (step / "rng-0.safetensors").unlink(),
        "rng-0.safetensors is missing",
    ),
    "no metadata": (lambda step: (step / ".metadata").unlink(), ".metadata is missing"),
    "an empty marker": (lambda step: (step / COMMITTED_NAME).write_text(""), "COMMITTED is empty"),
    "half a marker": (
        lambda step: (step / COMMITTED_NAME).write_text('{"files": [{"path'),
        "COMMITTED is not readable",
    ),
    "no marker": (lambda step: (step / COMMITTED_NAME).unlink(), "COMMITTED is missing"),
    "an unreadable marker": (make_unreadable, "it cannot be read"),
    "a file in its place": (
        lambda step: (shutil.rmtree(step), step.write_text("")),
        "it cannot be read",
    ),
}


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """A run that ended after checkpoints of steps 2 and 4 of 5, and one like it that did not."""
    straight = make_run(tmp_path_factory.mktemp("straight"), max_steps=5, save_every=2, keep=3)
    train_in_process(straight)
    run = replace(straight, out=str(tmp_path_factory.mktemp("crashed") / "out"))
    shutil.copytree(straight.out, run.out)
    for name in ("state/step-5", "export"):
        shutil.rmtree(Path(run.out) / name)
    (Path(run.out) / "result.json").unlink()
    return run, straight


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_older_checkpoint_is_taken_when_the_newest_is_damaged(
    crashed, tmp_path, caplog, damage
):
    first, straight = crashed
    shutil.copytree(first.out, tmp_path / "out")
    run = replace(first, out=str(tmp_path / "out"))
    harm, fault = DAMAGES[damage]
    harm(tmp_path / "out/state/step-4")
    with caplog.at_level("INFO"):
        train_in_process(run)
    assert re.search(rf"step-4 is damaged \(step-4: .*{fault}.*\)", caplog.text)
    assert "going on from step-2" in caplog.text
    assert (tmp_path / "out/damaged/state/step-4.1").exists()
    export = "export/model.safetensors"
    assert (tmp_path / "out" / export).read_bytes() == (Path(straight.out) / export).read_bytes()
    assert losses(run) == losses(straight)


def test_where_all_checkpoints_are_damaged_nothing_is_touched_and_a_person_is_asked(
    crashed, tmp_path
):
    shutil.copytree(crashed[0].out, tmp_path / "out")
    run = replace(crashed[0], out=str(tmp_path / "out"))
    for step in ("step-2", "step-4"):
        flip(tmp_path / "out/state" / step)
    for _ in range(2):  # trying again does not begin at step 0
        with pytest.raises(ValueError, match=r"every checkpoint is damaged: step-4: .*step-2: .*"):
            train_in_process(run)
    assert len(committed(tmp_path / "out/state")) == 2
    assert len(losses(run)) == 5


@pytest.mark.slow
def test_milestones_stay_and_a_run_goes_back_to_one(tmp_path, caplog):
    run = make_run(tmp_path, save_every=2, milestone_every=3)
    train_in_process(run)
    state, out = Path(run.out) / "state", Path(run.out)
    assert [path.name for path in committed(state)] == ["step-3", "step-6", "step-8"]
    export = (out / "export/model.safetensors").read_bytes()
    first = losses(run)
    with pytest.raises(ValueError, match=r"no checkpoint of step 4; steps with one: 3, 6, 8"):
        train_in_process(replace(run, continue_from=4))

    back = replace(run, continue_from=3)
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(back, LoaderBehaviour(crash_at=6))
    assert "continuing from step-3" in caplog.text
    assert (out / "earlier-1/state/step-8/COMMITTED").exists()
    assert (out / "earlier-1/export/model.safetensors").read_bytes() == export
    assert len((out / "earlier-1/metrics.jsonl").read_text().splitlines()) == 8
    with caplog.at_level("INFO"):
        train_in_process(back)  # it went back once already
    assert re.search("continuing from step-[46]", caplog.text)
    assert not (out / "earlier-2").exists()
    assert (out / "export/model.safetensors").read_bytes() == export
    assert losses(run) == first


def test_the_start_is_loaded_bit_for_bit(ranks):
    wrapper = empty_model(tiny_base())
    select(wrapper.model, RECIPE.rates)
    prepare(wrapper.model, ranks, compiled=False)
    load_weights(wrapper, tiny_base())
    reference = HourLlavaForCausalLM.from_pretrained(tiny_base())
    for name, tensor in wrapper.state_dict().items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(whole, reference.state_dict()[name]), name
    turn, expected = (m.model.llm.model.rotary_emb.inv_freq for m in (wrapper, reference))
    assert torch.equal(turn, expected)
    assert wrapper.model.llm.lm_head.weight is wrapper.model.llm.model.embed_tokens.weight
