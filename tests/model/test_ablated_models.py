"""What the paper's ablations change of a model, besides which frames stay."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoTokenizer

from model.attention import SequenceLengths
from model.conversation import tokenize_seen
from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.hf_processor import HourLlavaProcessor
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.memaug import MemAug
from model.processor import Processor
from tests.model import golden

CHATS = [
    [
        {"from": "human", "value": "<image>\nWho?\nAnd why?"},
        {"from": "gpt", "value": "Ann.\nFor fun."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "\n\nAt home."},
    ],
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(golden.ROOT / "tokenizer")


def changed(config, **values):
    memory = {name: values.pop(name) for name in ("temporal_forgetting", "scale") if name in values}
    return dataclasses.replace(
        config, memory=dataclasses.replace(config.memory, **memory), **values
    )


@pytest.mark.parametrize("chat", CHATS, ids=["two questions", "text"])
def test_all_but_the_answers_is_seen(chat, tokenizer):
    ids, labels, seen = tokenize_seen(chat, tokenizer)
    said = [turn["value"] for turn in chat if turn["from"] == "gpt"]
    hidden = tokenizer.decode(ids[~seen])
    assert hidden.replace("\n", "") == "".join(said).replace("\n", "")
    assert bool(seen[ids == IMAGE_TOKEN_INDEX].all())
    assert bool(seen[labels == IGNORE_INDEX].all())
    asked, _, prompt_seen = tokenize_seen(chat[:1], tokenizer, add_generation_prompt=True)
    assert torch.equal(prompt_seen, seen[: len(asked)])


def test_the_configuration_decides_what_a_processor_shows(tokenizer):
    config = golden.mixed()[0].config
    for template, expected in (("hidden", None), ("seen", tokenize_seen(CHATS[1], tokenizer)[2])):
        processor = Processor(changed(config, template_tokens=template), tokenizer)
        shown = processor.text(CHATS[1]).shown
        assert shown is expected or torch.equal(shown, expected)


def film(seed=5):
    features = torch.randn(16, 64, 32, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([7, IMAGE_TOKEN_INDEX, 8, 9, 10, 11])
    labels = torch.tensor([-100, -100, -100, 9, -100, 11])
    return SampleInputs("film", ids, labels, [Visual("features", features=features)], seed)


def ablated(**values):
    model, _ = golden.mixed()
    model.config = changed(model.config, **values)
    return model


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.5, 0.25, 0])
def test_the_configurations_share_of_the_memory_is_the_options(scale):
    by_option = ablated().prepare([film()], forgetting="random", memory_scale=scale)
    by_config = ablated(scale=scale).prepare([film()], forgetting="random")
    assert torch.equal(by_config.embeds_SD, by_option.embeds_SD)
    whole = ablated(scale=scale).prepare([film()], forgetting="random", memory_scale=1)
    assert torch.equal(whole.embeds_SD, ablated().prepare([film()], forgetting="random").embeds_SD)
    assert not torch.allclose(whole.embeds_SD, by_config.embeds_SD)


@torch.no_grad()
def test_seen_template_tokens_are_among_memaugs_queries_and_hidden_ones_are_not():
    model = ablated()
    hidden, seen = film(), film()
    seen.shown = torch.tensor([True, True, True, True, True, False])
    plans = [model.prepare([one], forgetting="random").plan for one in (hidden, seen)]
    ids = [
        [int(plan.ids_L[row]) for row in plan.query_sources_M if row < len(plan.ids_L)]
        for plan in plans
    ]
    assert ids == [[7, 8, 10], [7, 8, 9, 10]]
    assert torch.equal(plans[0].labels_S, plans[1].labels_S)  # the loss is the same


@torch.no_grad()
def test_without_memaug_the_kept_tokens_reach_the_language_model_as_they_are():
    model = ablated()
    model.memaug = MemAug(model.config.llm, 0)
    memory_ND = model.remember(film().visuals[0])
    made = model.prepare([film()], forgetting="random")
    text = model.llm.model.embed_tokens(torch.tensor([7, 8, 9, 10, 11]))
    kept = memory_ND[made.plan.memory_rows_Q]
    assert torch.equal(made.embeds_SD, torch.cat([text[:1], kept, text[1:]]))
    assert not list(model.memaug.parameters())


@torch.no_grad()
@pytest.mark.parametrize("positions", [True, False])
def test_without_positions_memaug_cannot_tell_the_order_of_a_memory(positions):
    model, _ = golden.mixed()
    llm = model.config.llm
    memaug = MemAug(llm, model.config.memaug_depth, positions)
    memaug.load_state_dict(model.memaug.state_dict())
    generator = torch.Generator().manual_seed(0)
    x_QD, memory_ND = (torch.randn(n, llm.hidden_size, generator=generator) for n in (6, 40))
    lengths = SequenceLengths.of([6], "cpu"), SequenceLengths.of([40], "cpu")
    mixed = torch.randperm(40, generator=generator)

    def output(memory, places):
        return memaug(x_QD, memory, torch.arange(6) * 9, places, *lengths)

    plain = output(memory_ND, torch.arange(40))
    moved = output(memory_ND[mixed], torch.arange(40))
    assert torch.allclose(plain, moved, atol=1e-5) != positions
    # No rotation is the rotation of one place: all scores depend on differences of positions.
    model.memaug.positions = True
    still = model.memaug(x_QD, memory_ND, torch.full((6,), 3), torch.full((40,), 3), *lengths)
    assert torch.allclose(plain, still, atol=1e-5) != positions


EVERYTHING = {
    "temporal_forgetting": "keyframe",
    "scale": 0.5,
    "memaug_depth": 2,
    "memaug_positions": False,
    "template_tokens": "seen",
}


def test_an_export_keeps_what_was_changed_and_answers_by_it(tokenizer, tmp_path):
    config = changed(golden.mixed()[0].config, **EVERYTHING)
    model = HourLlavaForCausalLM(HourLlavaHFConfig.of(config, eos_token_id=500))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["hour_llava"]
    assert {**written, **written["memory"]}.items() >= EVERYTHING.items()
    again = HourLlavaForCausalLM.from_pretrained(tmp_path)
    assert again.config.model_config == config
    assert not again.model.memaug.positions
    assert len(again.model.memaug.blocks) == 2
    processor = HourLlavaProcessor(tokenizer, config.to_dict())
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    batch = processor.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)
    assert bool(batch["samples"][0].shown.all())
