"""Saving, loading and generating through transformers, whatever its version."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from model.config import PRESETS, HourLlavaConfig
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.initialise import initialise
from model.inputs import IGNORE_INDEX
from model.vision import pool_frames
from model.vision_encoders import build_encoder
from model.weights.tiny import build_tiny
from model.weights.vision_encoder import load_vision_encoder, save_vision_encoder
from tests.model import golden

SAVED_CONFIGS = (
    sorted((golden.ROOT / "hf").glob("transformers-*")) if (golden.ROOT / "hf").exists() else []
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    build_tiny(directory)
    return directory


@pytest.fixture(scope="module")
def recorded():
    """The golden model, whose weights make varied text, behind the transformers interface; and
    prompts of all kinds.
    """
    inner = golden.model_of("v9.r_random_sampling")
    model = HourLlavaForCausalLM(
        HourLlavaHFConfig.of(inner.config, eos_token_id=500, pad_token_id=501)
    ).eval()
    model.model.load_state_dict(inner.state_dict())
    return model, [
        prompt_of(sample) for sample in golden.samples_of("v9.r_random_sampling", seed=1)
    ]


def prompt_of(sample):
    """Cut a recorded sample off where its answer begins."""
    length = int((sample.labels != IGNORE_INDEX).nonzero()[-6])
    return dataclasses.replace(
        sample, input_ids=sample.input_ids[:length], labels=sample.labels[:length]
    )


def test_the_tiny_checkpoint_loads_through_the_auto_classes(tiny):
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert isinstance(model, HourLlavaForCausalLM)
    assert AutoConfig.from_pretrained(tiny).model_config == PRESETS["tiny"] == model.model.config
    assert model.model.llm.lm_head.weight is model.model.llm.model.embed_tokens.weight


def test_the_tiny_tokenizer_is_a_qwen2_tokenizer_within_the_vocabulary(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = "<|im_start|>user\nWhat is the màn doing at 10:59?\n\nÜber 日本<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert len(tokenizer) <= PRESETS["tiny"].llm.vocab_size
    assert max(ids) < PRESETS["tiny"].llm.vocab_size
    assert tokenizer.decode(ids) == text
    assert tokenizer("a\nb").input_ids[1] == 198
    assert 198 not in tokenizer("\n\n").input_ids
    assert tokenizer("1234").input_ids == [tokenizer(digit).input_ids[0] for digit in "1234"]
    assert tokenizer.eos_token == "<|im_end|>"


def test_the_same_seed_gives_the_same_bytes(tiny, tmp_path):
    build_tiny(tmp_path / "again")
    build_tiny(tmp_path / "other", seed="other")
    for path in tiny.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "other/model.safetensors").read_bytes() != (
        tiny / "model.safetensors"
    ).read_bytes()


def test_saving_and_loading_changes_nothing(recorded, tmp_path):
    model, prompts = recorded
    model.save_pretrained(tmp_path)
    again = HourLlavaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(samples=prompts).logits, again(samples=prompts).logits)


def test_loading_in_half_precision_keeps_the_rotary_frequencies(tiny):
    model = HourLlavaForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    assert model.model.dtype == torch.bfloat16
    exact = HourLlavaForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert torch.equal(
        model.model.llm.model.rotary_emb.inv_freq, exact.model.llm.model.rotary_emb.inv_freq
    )


@pytest.mark.parametrize("directory", SAVED_CONFIGS, ids=lambda path: path.name)
def test_a_configuration_saved_by_another_version_keeps_its_rotary_base(directory, tmp_path):
    config = AutoConfig.from_pretrained(directory)
    assert config.model_config.llm.rope_theta == 500000.0
    inverse_frequencies = HourLlavaForCausalLM(config).model.llm.model.rotary_emb.inv_freq
    torch.testing.assert_close(inverse_frequencies, 500000.0 ** -(torch.arange(0, 32, 2) / 32))
    config.save_pretrained(tmp_path)
    ours, theirs = (
        json.loads((path / "config.json").read_text()) for path in (tmp_path, directory)
    )
    for written in (ours, theirs):
        assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 500000.0
    # What a later release added stands there with its default; the rest is as it was.
    assert written_config(ours) == written_config(theirs)
    assert ours["hour_llava"]["llm"] == theirs["hour_llava"]["llm"]
    ours, theirs = ours["hour_llava"], theirs["hour_llava"]
    for section in ("memory", "vision"):
        assert ours.pop(section).items() >= theirs.pop(section).items()
    assert ours.items() >= theirs.items()


def written_config(written):
    return HourLlavaConfig.from_dict(written["hour_llava"])


def test_a_configuration_that_contradicts_itself_is_refused(tiny):
    written = json.loads((tiny / "config.json").read_text())
    with pytest.raises(
        ValueError, match=r"rope_theta is 10000.0, but hour_llava.llm says 1000000.0"
    ):
        HourLlavaHFConfig(**{**written, "rope_theta": 10000.0})
    with pytest.raises(ValueError, match="hidden_size is 64"):
        HourLlavaHFConfig(**{**written, "hidden_size": 64})
    with pytest.raises(ValueError, match=r"unknown key 'llm\.heads'.*known: hidden_size"):
        HourLlavaHFConfig(
            hour_llava={
                **written["hour_llava"],
                "llm": {**written["hour_llava"]["llm"], "heads": 3},
            }
        )


def token_by_token(model, sample, steps):
    """Ids and logits without a cache: the whole sample through the model for every token."""
    ids, logits = [], []
    for _ in range(steps):
        with torch.no_grad():
            logits.append(model(samples=[sample]).logits[0, -1])
        ids.append(int(logits[-1].argmax()))
        more = torch.tensor(ids[-1:])
        sample = dataclasses.replace(
            sample,
            input_ids=torch.cat([sample.input_ids, more]),
            labels=torch.cat([sample.labels, more]),
        )
    return ids, torch.stack(logits)


def by_transformers(model, **options):
    """Ids that transformers' own loop decodes: ours gives no logits."""
    output = model.generate(**options, output_logits=True, return_dict_in_generate=True)
    return output.sequences.tolist()


def test_generation_with_a_cache_gives_what_the_whole_model_gives_token_by_token(recorded):
    model, prompts = recorded
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    for prompt in prompts:
        generated = model.generate(
            samples=prompt, output_logits=True, return_dict_in_generate=True, **options
        )
        ids, logits = token_by_token(model, prompt, 5)
        assert generated.sequences.tolist() == [ids]
        torch.testing.assert_close(torch.cat(generated.logits), logits, atol=1e-4, rtol=0)


def test_greedy_decoding_takes_the_tokens_that_transformers_takes_and_stops_where_it_stops(
    recorded,
):
    model, prompts = recorded
    for prompt in prompts:
        options = {"samples": prompt, "max_new_tokens": 9, "do_sample": False}
        free = model.generate(**options, eos_token_id=None)
        assert free.tolist() == by_transformers(model, **options, eos_token_id=None)
        stop = free[0, 4].item()
        stopped = model.generate(**options, eos_token_id=stop)
        assert stopped.tolist() == by_transformers(model, **options, eos_token_id=stop)
        assert stopped[0].tolist() == free[0, : free[0].tolist().index(stop) + 1].tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_recorded_step_decodes_what_transformers_decodes(recorded):
    model, prompts = recorded
    model = copy.deepcopy(model).cuda()
    for prompt in prompts:
        options = {
            "samples": prompt,
            "max_new_tokens": 12,
            "do_sample": False,
            "eos_token_id": None,
        }
        assert model.generate(**options).tolist() == by_transformers(model, **options)


def test_prompts_of_different_lengths_generate_together_what_they_generate_alone(recorded):
    model, prompts = recorded
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    together = model.generate(samples=prompts, **options)
    alone = [model.generate(samples=prompt, **options)[0] for prompt in prompts]
    assert together.tolist() == torch.stack(alone).tolist()


def test_random_forgetting_is_an_option_of_generation_that_follows_the_seed(recorded):
    model, prompts = recorded
    inputs = [dataclasses.replace(prompts[0], seed=seed) for seed in (1, 1, 2)]
    first, same, other = (model.model.prepare([s], forgetting="random").embeds_SD for s in inputs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert model.generate(samples=inputs[0], forgetting="random", max_new_tokens=2).shape[0] == 1


def test_text_alone_goes_through_as_in_any_language_model(recorded):
    model, prompts = recorded
    text = prompts[3]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=text.input_ids[None]).logits, model(samples=[text]).logits
        )
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    by_ids = model.generate(text.input_ids[None], **options)[0, len(text.input_ids) :]
    assert by_ids.tolist() == model.generate(samples=text, **options)[0].tolist()


def test_the_mean_loss_is_that_of_training(recorded):
    model, _ = recorded
    samples = golden.samples_of("v9.r_random_sampling", seed=1)
    with torch.no_grad():
        output = model.model(samples, forgetting="uniform")
        torch.testing.assert_close(model(samples=samples).loss, output.loss_sum / output.supervised)


def test_a_saved_vision_encoder_is_a_siglip_model_that_gives_the_same_features(tmp_path):
    encoder = build_encoder(PRESETS["tiny"].vision).eval()
    initialise(encoder.named_parameters(), "test")
    save_vision_encoder(encoder, tmp_path)
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    siglip = SiglipVisionModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = encoder(pixels)
        theirs = siglip(pixels, output_hidden_states=True).hidden_states[-1]
        again = load_vision_encoder(tmp_path)(pixels)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(ours, again)
    assert pool_frames(ours, 4).shape == (2, 16, 64)


def test_a_vision_encoder_file_that_does_not_fit_is_refused_by_tensor(tmp_path):
    save_vision_encoder(build_encoder(PRESETS["tiny"].vision), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"missing \['vision_model.encoder.layers.2"):
        load_vision_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ValueError, match=r"(?s)does not fit its config.json.*mismatch"):
        load_vision_encoder(tmp_path)


def test_a_checkpoint_holds_no_tensor_twice(tiny):
    with safe_open(tiny / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.llm.model.embed_tokens.weight" in names
    assert "model.llm.lm_head.weight" not in names
