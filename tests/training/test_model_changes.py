"""A run that trains a changed model: what it starts with, what it exports, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.changes import ModelChanges
from model.config import PRESETS
from model.hf import HourLlavaForCausalLM
from model.initialise import drawn
from model.weights.convert import publish
from tests.training.generated_samples import losses, make_run, tiny_base, train_in_process
from training.loading import MEMAUG, empty_model, load_weights

EVERYTHING = {
    "temporal_forgetting": "question_guided",
    "memory_scale": 0.0,
    "memaug_blocks": 3,
    "memaug_positions": False,
    "template_tokens": "seen",
}


def test_another_number_of_blocks_is_drawn_anew_and_all_else_is_the_starts():
    stored = load_file(tiny_base() / "model.safetensors")

    def loaded(blocks):
        wrapper = empty_model(tiny_base(), ModelChanges(memaug_blocks=blocks))
        wrapper.to_empty(device="cpu").tie_weights()
        load_weights(wrapper, tiny_base(), "a seed")
        return wrapper.state_dict()

    state = loaded(3)
    assert sum(name.startswith(f"{MEMAUG}blocks.2.") for name in state) > 0
    for name, tensor in state.items():
        if name.startswith(MEMAUG):
            new = drawn(name.removeprefix("model."), tuple(tensor.shape), "a seed")
            assert torch.equal(tensor, new), name
        elif name in stored:
            assert torch.equal(tensor, stored[name]), name
    same = loaded(2)
    assert all(torch.equal(same[name], tensor) for name, tensor in stored.items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run"), model=EVERYTHING, max_steps=2, save_every=2)
    train_in_process(run)
    return run


@pytest.mark.slow
def test_the_export_holds_the_changes_and_goes_on_with_them(trained, tmp_path):
    export = Path(trained.out) / "export"
    config = ModelChanges(**EVERYTHING).applied(PRESETS["tiny"])
    model = HourLlavaForCausalLM.from_pretrained(export)
    assert model.config.model_config == config
    assert len(model.model.memaug.blocks) == 3
    described = json.loads((export / "processor_config.json").read_text())
    assert described["hour_llava"]["template_tokens"] == "seen"
    again = dataclasses.replace(trained, start=str(export), out=str(tmp_path / "out"), model=None)
    train_in_process(again)
    assert (
        HourLlavaForCausalLM.from_pretrained(tmp_path / "out/export").config.model_config == config
    )
    with pytest.raises(
        ValueError, match="no setting for temporal_forgetting, memory_scale, memaug"
    ):
        publish(export, tmp_path / "published")


@pytest.mark.slow
def test_the_loss_depends_on_each_change(trained, tmp_path):
    found = {}
    for name, value in [("nothing", None), *EVERYTHING.items()]:
        (tmp_path / name).mkdir()
        changes = {} if value is None else {"model": {name: value}}
        run = make_run(tmp_path / name, max_steps=1, save_every=1, global_batch=2, **changes)
        train_in_process(run)
        found[name] = losses(run)[0]
    assert len(set(found.values())) == len(found), found


def test_a_model_without_memaug_trains_and_is_refused_where_memaug_is_tuned(tmp_path):
    run = make_run(
        tmp_path, model={"memaug_blocks": 0}, max_steps=2, save_every=2, rates={"llm": 1e-3}
    )
    train_in_process(run)
    export = Path(run.out) / "export"
    assert not any("memaug" in name for name in load_file(export / "model.safetensors"))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="has no MemAug, and the run tunes it; set model: "):
        train_in_process(make_run(tmp_path / "b", start=str(export)))
