"""Checkpoints of others become ours and back, and what does not fit is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionModel,
)

from model.config import PRESETS
from model.hf import HourLlavaForCausalLM
from model.initialise import STD
from model.weights import convert, tensors
from model.weights.names import published_name, shapes
from model.weights.tiny import write_tokenizer
from tests.model import golden

CASE = "v9.r_random_sampling"
CONFIG = golden.config_of(golden.facts(f"full_model/{CASE}")["config"])


@pytest.fixture
def released(tmp_path):
    """The golden weights as a released checkpoint: published names, three files and an index, a
    tokenizer.
    """
    directory = tmp_path / "released"
    write(directory, golden.tensors("full_model/v9.weights"))
    return directory


def write(directory, tensors, files=3):
    directory.mkdir()
    write_tokenizer(directory, 100)
    names = sorted(tensors)
    weight_map = {name: f"model-{number % files}.safetensors" for number, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file(
            {name: tensors[name] for name in names if weight_map[name] == file}, directory / file
        )
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def held(directory):
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("variant", ["3b", "7b"])
def test_our_tensors_are_the_released_ones_by_name_and_shape(variant):
    recorded = golden.facts(f"state_dict/hour_llava_{variant}")["shapes"]
    ours = {published_name(name): list(shape) for name, shape in shapes(PRESETS[variant]).items()}
    if PRESETS[variant].llm.tie_word_embeddings:
        ours["lm_head.weight"] = ours["model.embed_tokens.weight"]
    assert ours == recorded


def test_a_converted_checkpoint_gives_the_recorded_logits(released, tmp_path):
    convert.convert_released(released, tmp_path / "ours", CONFIG)
    model = HourLlavaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    original, samples = golden.model_of(CASE), golden.samples_of(CASE, seed=3)
    with torch.no_grad():
        expected = original.llm.lm_head(
            original.run_llm(original.prepare(samples, forgetting="uniform"))
        )
        assert torch.equal(model(samples=samples).logits[0], expected)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert model.config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_there_and_back_is_the_same_bytes(released, tmp_path):
    convert.convert_released(released, tmp_path / "ours", CONFIG)
    convert.publish(tmp_path / "ours", tmp_path / "back")
    source, back = held(released), held(tmp_path / "back")
    assert source.keys() == back.keys()
    assert all(torch.equal(source[name], back[name]) for name in source)
    recorded = golden.facts(f"full_model/{CASE}")["config"]
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert {name: written[name] for name in recorded if name in written} == {
        name: value for name, value in recorded.items() if name in written
    }


def test_onevision_weights_start_stage_one_with_a_new_memaug(released, tmp_path):
    tensors = {
        name: tensor for name, tensor in held(released).items() if "vision_resampler" not in name
    }
    write(tmp_path / "onevision", tensors)
    convert.convert_onevision(tmp_path / "onevision", tmp_path / "one", CONFIG)
    convert.convert_onevision(tmp_path / "onevision", tmp_path / "two", CONFIG)
    model = HourLlavaForCausalLM.from_pretrained(tmp_path / "one").model
    state = model.state_dict()
    for name, tensor in tensors.items():
        ours = next(own for own in state if published_name(own) == name)
        assert torch.equal(state[ours], tensor), name
    assert not model.memaug.blocks[0].up.bias.any()
    assert torch.equal(model.memaug.blocks[1].mlp_norm.weight, torch.ones(64))
    assert model.memaug.blocks[0].up.weight.std().item() == pytest.approx(STD, rel=0.05)
    assert held(tmp_path / "one").keys() == held(tmp_path / "two").keys()
    assert all(
        torch.equal(held(tmp_path / "two")[name], tensor)
        for name, tensor in held(tmp_path / "one").items()
    )


def test_hub_checkpoints_of_the_parts_keep_what_they_compute(tmp_path):
    vision, llm = CONFIG.vision, CONFIG.llm
    siglip = SiglipModel(
        SiglipConfig(
            vision_config={
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_hidden_layers": vision.num_layers + 1,
                "num_attention_heads": vision.num_heads,
            },
            text_config={
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 99,
            },
        )
    ).eval()
    qwen2 = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=llm.vocab_size,
            hidden_size=llm.hidden_size,
            intermediate_size=llm.intermediate_size,
            num_hidden_layers=llm.num_layers,
            num_attention_heads=llm.num_heads,
            num_key_value_heads=llm.num_kv_heads,
            rope_theta=llm.rope_theta,
            tie_word_embeddings=False,
        )
    ).eval()
    siglip.save_pretrained(tmp_path / "siglip")
    tower = SiglipVisionModel.from_pretrained(tmp_path / "siglip", dtype=torch.float32).eval()
    qwen2.save_pretrained(tmp_path / "qwen2")
    write_tokenizer(tmp_path / "qwen2", 100)
    convert.convert_parts(tmp_path / "siglip", tmp_path / "qwen2", tmp_path / "ours", CONFIG)
    model = HourLlavaForCausalLM.from_pretrained(tmp_path / "ours").eval()
    pixels, ids = torch.randn(2, 3, 19, 19), torch.arange(30)[None]
    with torch.no_grad():
        features = tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(model.model.vision(pixels), features, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            model(input_ids=ids).logits, qwen2(ids).logits, atol=1e-5, rtol=0
        )


def changed(tensors, **changes):
    return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}


NEWLINE, NORM = "model.image_newline", "model.norm.weight"
MISFITS = {
    "unknown": ({"model.surprise.weight": torch.zeros(1)}, "1 unknown: model.surprise.weight"),
    "missing": ({NORM: None}, r"1 missing: model.norm.weight \(our llm.model.norm.weight\)"),
    "misshapen": (
        {NEWLINE: torch.zeros(65)},
        r"1 misshapen: model.image_newline is \[65\], golden has \[64\]",
    ),
    "of another depth": (
        {"model.vision_resampler.layers.2.norm1.weight": torch.zeros(64)},
        "1 unknown: model.vision_resampler.layers.2.norm1.weight",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_written(kind, released, tmp_path):
    changes, message = MISFITS[kind]
    write(tmp_path / "source", changed(held(released), **changes))
    with pytest.raises(ValueError, match=message):
        convert.convert_released(tmp_path / "source", tmp_path / "ours", CONFIG)
    assert not (tmp_path / "ours").exists()


def test_onevision_weights_with_a_memaug_are_no_starting_point(released, tmp_path):
    with pytest.raises(ValueError, match=r"unknown: model.vision_resampler"):
        convert.convert_onevision(released, tmp_path / "ours", CONFIG)


def test_a_head_that_differs_from_tied_embeddings_is_refused(released, tmp_path):
    import dataclasses

    tied = dataclasses.replace(
        CONFIG, llm=dataclasses.replace(CONFIG.llm, tie_word_embeddings=True)
    )
    with pytest.raises(
        ValueError, match="output head differs from its embeddings, but golden ties"
    ):
        convert.convert_released(released, tmp_path / "ours", tied)
    tensors = held(released)
    write(
        tmp_path / "same",
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    convert.convert_released(tmp_path / "same", tmp_path / "ours", tied)
    assert "model.llm.lm_head.weight" not in held(tmp_path / "ours")


def test_another_rotary_base_is_refused_though_all_shapes_fit(released, tmp_path):
    (released / "config.json").write_text(json.dumps({"rope_parameters": {"rope_theta": 10000.0}}))
    with pytest.raises(
        ValueError, match=r"rope_theta is 10000\.0, but variant golden has 1000000\.0"
    ):
        convert.convert_released(released, tmp_path / "ours", CONFIG)


def test_an_index_that_points_out_of_its_folder_is_refused(released, tmp_path):
    (released / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../b.safetensors"}})
    )
    with pytest.raises(ValueError, match="not a plain file name"):
        convert.convert_released(released, tmp_path / "ours", CONFIG)


def test_a_pickled_checkpoint_is_not_opened(tmp_path):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="pickled checkpoints are not read"):
        convert.convert_released(tmp_path / "pickled", tmp_path / "ours", CONFIG)


def test_no_shard_is_larger_than_asked_for(released, tmp_path):
    convert.convert_released(released, tmp_path / "ours", CONFIG, shard_bytes=200_000)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 4
    for file in files:
        tensors = load_file(file)
        assert (
            sum(t.numel() * t.element_size() for t in tensors.values()) <= 200_000
            or len(tensors) == 1
        )


def test_a_conversion_that_was_stopped_leaves_no_checkpoint_and_can_be_repeated(
    released, tmp_path, monkeypatch
):
    written, write = [], tensors.write_tensors

    def failing(*args, **kwargs):
        written.append(1)
        if len(written) == 2:
            raise OSError("disk full")
        write(*args, **kwargs)

    monkeypatch.setattr(tensors, "write_tensors", failing)
    with pytest.raises(OSError, match="disk full"):
        convert.convert_released(released, tmp_path / "ours", CONFIG, shard_bytes=200_000)
    assert not (tmp_path / "ours").exists()
    convert.convert_released(released, tmp_path / "ours", CONFIG, shard_bytes=200_000)
    assert HourLlavaForCausalLM.from_pretrained(tmp_path / "ours").model.config == CONFIG
