"""A checkpoint to start from is recognised by what it holds, and refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.hf import HourLlavaForCausalLM
from model.weights.convert import publish
from model.weights.kinds import recognise
from model.weights.starts import write_start
from model.weights.tiny import build_tiny


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "export"
    build_tiny(folder, seed="mine")
    return folder


@pytest.fixture(scope="module")
def released(own, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "Hour-LLaVA"
    publish(own, folder)
    return folder


@pytest.fixture
def onevision(released, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"):
        (tmp_path / "onevision").mkdir(exist_ok=True)
        (tmp_path / "onevision" / name).write_bytes((released / name).read_bytes())
    kept = {n: t for n, t in tensors(released).items() if "vision_resampler" not in n}
    save_file(kept, tmp_path / "onevision" / "model.safetensors")
    return tmp_path / "onevision"


def tensors(folder):
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def test_each_kind_is_recognised(own, released, onevision):
    found = [recognise(folder) for folder in (own, released, onevision)]
    assert found == ["own export", "released Hour-LLaVA", "LLaVA-OneVision"]


@pytest.mark.parametrize("kind", ["own", "released"])
def test_ones_own_and_the_released_form_give_the_same_model(own, released, kind, tmp_path):
    source = {"own": own, "released": released}[kind]
    write_start(source, tmp_path / "out", "tiny", 3, "seed")
    wanted = HourLlavaForCausalLM.from_pretrained(own).state_dict()
    made = HourLlavaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_a_stage_that_does_not_fit_the_kind_is_refused(released, onevision, tmp_path):
    with pytest.raises(ValueError, match=r"start\.stage is 1, 2 or 3"):
        write_start(released, tmp_path / "out", "tiny", 0, "seed")
    with pytest.raises(ValueError, match=r"no MemAug: their start\.stage is 0, not 3"):
        write_start(onevision, tmp_path / "out", "tiny", 3, "seed")


def test_an_export_of_another_size_says_what_differs(own, tmp_path):
    with pytest.raises(ValueError, match="variant is 'tiny', 3b has '3b'"):
        write_start(own, tmp_path / "out", "3b", 3, "seed")


def test_an_export_with_another_tensor_names_it(own, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in own.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    held = tensors(broken)
    held["model.strange"] = held.pop("model.image_newline")
    save_file(held, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 unknown: model\.strange"):
        write_start(broken, tmp_path / "out", "tiny", 3, "seed")


def test_anything_else_is_told_what_would_be_accepted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"Found tensors encoder\.weight; accepted: an export of"):
        recognise(tmp_path)
