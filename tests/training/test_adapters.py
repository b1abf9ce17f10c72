"""Low-rank adapters: what is trained, that a run goes on to the same bytes, and that peft makes of
the kept adapter what the export holds.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.hf import HourLlavaForCausalLM
from model.inputs import SampleInputs, Visual
from tests.training.generated_samples import (
    LoaderBehaviour,
    losses,
    make_run,
    tiny_base,
    train_in_process,
)
from training.recipes import Lora

LORA = {"rank": 4, "alpha": 8, "rate": 1e-2}


def weights(run):
    return load_file(Path(run.out) / "export" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """8 steps with adapters in the language model, MemAug and projector whole."""
    run = make_run(tmp_path_factory.mktemp("adapters"), lora=LORA)
    result = train_in_process(run)
    return run, result


def samples():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 400, (12,), generator=generator)
    ids[3] = -200
    features = torch.randn(20, 16, 64, generator=generator)
    return [
        SampleInputs(
            "x", ids, torch.where(ids > 0, ids, -100), [Visual("features", None, features)]
        )
    ]


@torch.no_grad()
def logits(model):
    return model.eval()(samples=samples()).logits


@pytest.mark.slow
def test_the_loss_falls_with_adapters(trained):
    assert trained[1]["last_loss"] < trained[1]["first_loss"] - 1


def test_only_linear_layers_of_the_language_model_and_the_whole_modules_change(trained):
    before, after = load_file(tiny_base() / "model.safetensors"), weights(trained[0])
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    for name in changed:
        whole = name.startswith(("model.memaug.", "model.projector."))
        assert whole or name.endswith("_proj.weight"), name


def test_an_adapters_change_has_its_rank(trained):
    before, after = load_file(tiny_base() / "model.safetensors"), weights(trained[0])
    name = "model.llm.model.layers.1.mlp.down_proj.weight"
    strengths = torch.linalg.svdvals((after[name] - before[name]).double())
    assert strengths[3] > 1e-4 * strengths[0] > strengths[4]


def test_peft_puts_the_adapter_onto_the_start_and_computes_what_the_export_does(trained):
    from peft import PeftModel

    export = Path(trained[0].out) / "export"
    start = HourLlavaForCausalLM.from_pretrained(tiny_base())
    plain = logits(start)
    adapted = logits(PeftModel.from_pretrained(start, str(export / "adapter")))
    merged = logits(HourLlavaForCausalLM.from_pretrained(export))
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert (plain - merged).abs().max() > 0.1


@pytest.mark.slow
def test_a_run_with_adapters_that_crashed_ends_in_the_same_bytes(trained, tmp_path):
    again = make_run(tmp_path, lora=LORA)
    with pytest.raises(RuntimeError, match="told to fail"):
        train_in_process(again, LoaderBehaviour(crash_at=6))
    train_in_process(again)
    assert losses(again) == losses(trained[0])
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        path = Path("export") / name
        assert (again.out / path).read_bytes() == (trained[0].out / path).read_bytes()


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(trained):
    state = Path(trained[0].out) / "state" / "step-8"
    size = sum(path.stat().st_size for path in state.glob("*.distcp"))
    adapters = load_file(Path(trained[0].out) / "export/adapter/adapter_model.safetensors")
    tuned = sum(tensor.nbytes for tensor in adapters.values())
    assert 3 * tuned < size < 4 * tuned


def test_memaug_and_projector_can_have_adapters_too(tmp_path):
    modules = ["projector", "memaug", "llm"]
    run = make_run(tmp_path, lora={**LORA, "modules": modules}, max_steps=2)
    train_in_process(run)
    before, after = load_file(tiny_base() / "model.safetensors"), weights(run)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == set(modules)
    assert all(before[name].ndim == 2 for name in changed)
    config = json.loads((Path(run.out) / "export/adapter/adapter_config.json").read_text())
    assert (config["r"], config["modules_to_save"]) == (4, None)


def test_adapters_in_a_module_that_is_not_tuned_are_refused(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match=r"lora.modules names vision, and this run tunes"):
        replace(run, lora=Lora(modules=("vision",)))
    with pytest.raises(ValueError, match=r"adapters go into some of vision, .*; found lm"):
        make_run(tmp_path, lora={"modules": ["lm"]})
