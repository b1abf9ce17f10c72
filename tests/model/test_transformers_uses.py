"""What people do with a transformers model, done with ours: from the user's side, on whatever
version of transformers is installed.
"""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.cache_utils import DynamicCache

from model.hf import HourLlavaForCausalLM
from model.hf_config import HourLlavaHFConfig
from model.hf_processor import HourLlavaProcessor
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs
from model.weights.tiny import build_tiny
from tests.model import golden

ROOT = Path(__file__).parents[2]
NAMED = ROOT / "model" / "import_name"
GREEDY = {"do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    build_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def model(export):
    return AutoModelForImageTextToText.from_pretrained(export).eval()


@pytest.fixture(scope="module")
def processor(export):
    return HourLlavaProcessor.from_pretrained(export)


@pytest.fixture(scope="module")
def recorded():
    """The golden model, whose weights make varied text, and prompts of all kinds."""
    inner = golden.model_of("v9.r_random_sampling")
    model = HourLlavaForCausalLM(
        HourLlavaHFConfig.of(inner.config, eos_token_id=500, pad_token_id=501)
    ).eval()
    model.model.load_state_dict(inner.state_dict())
    prompts = []
    for sample in golden.samples_of("v9.r_random_sampling", seed=1):
        length = int((sample.labels != IGNORE_INDEX).nonzero()[-6])
        cut = {"input_ids": sample.input_ids[:length], "labels": sample.labels[:length]}
        prompts.append(dataclasses.replace(sample, **cut))
    return model, prompts


def picture(width=40, height=30):
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(*parts, answer=None):
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]
    return messages + ([{"role": "assistant", "content": answer}] if answer else [])


# -- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["sdpa", "eager", "flash_attention_2"])
def test_another_attention_is_refused_rather_than_used_wrongly(wanted, export, model):
    with pytest.raises(ValueError, match=f"{wanted}.*chooses its kernels itself"):
        HourLlavaForCausalLM.from_pretrained(export, attn_implementation=wanted)
    with pytest.raises(ValueError, match="chooses its kernels itself"):
        model.set_attn_implementation(wanted)
    model.model.llm.config._attn_implementation = wanted  # behind the model's back
    try:
        with pytest.raises(ValueError, match="chooses its kernels itself"):
            model(samples=[sample_of_text()])
        with pytest.raises(ValueError, match="chooses its kernels itself"):
            model.generate(samples=sample_of_text(), max_new_tokens=1)
    finally:
        model.model.llm.config._attn_implementation = "hour_llava"


def sample_of_text():
    ids = torch.arange(20)
    return SampleInputs("text", ids, ids.clone())


# -- caches ---------------------------------------------------------------------------------------


def test_several_new_tokens_on_a_cache_give_what_all_at_once_give(recorded):
    model, prompts = recorded
    ids = prompts[3].input_ids[None]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = DynamicCache()
        first = model(input_ids=ids[:, :7], past_key_values=cache, use_cache=True)
        rest = model(input_ids=ids[:, 7:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], dim=1), whole, atol=1e-4, rtol=0)


def test_a_static_cache_gives_what_a_growing_one_gives(recorded):
    model, prompts = recorded
    ids = prompts[3].input_ids[None]
    plain = model.generate(ids, max_new_tokens=5, **GREEDY)
    static = model.generate(ids, max_new_tokens=5, cache_implementation="static", **GREEDY)
    assert static.tolist() == plain.tolist()
    with torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=64)
        logits = model(input_ids=ids, past_key_values=cache).logits
        torch.testing.assert_close(logits, model(input_ids=ids).logits, atol=1e-4, rtol=0)


def test_a_second_turn_goes_on_with_the_cache_of_the_first(recorded):
    model, prompts = recorded
    first = model.generate(
        prompts[3].input_ids[None], max_new_tokens=4, return_dict_in_generate=True, **GREEDY
    )
    more = torch.cat([first.sequences, torch.tensor([[5, 6, 7]])], dim=1)
    options = {"max_new_tokens": 4, **GREEDY}
    again = model.generate(more, past_key_values=first.past_key_values, **options)
    assert again.tolist() == model.generate(more, **options).tolist()


def test_prompt_lookup_decodes_what_plain_decoding_does(recorded):
    model, prompts = recorded
    ids = prompts[3].input_ids.repeat(2)[None]
    options = {"max_new_tokens": 8, "do_sample": False}  # it cannot do without an end token
    looked_up = model.generate(ids, prompt_lookup_num_tokens=3, **options)
    assert looked_up.tolist() == model.generate(ids, **options).tolist()


# -- settings of generation -----------------------------------------------------------------------


def test_the_models_own_generation_settings_are_followed(recorded):
    model, prompts = copy.copy(recorded[0]), recorded[1]
    for prompt in (prompts[3], prompts[2:4]):
        model.generation_config = GenerationConfig(max_new_tokens=5, pad_token_id=501)
        free = model.generate(samples=prompt)
        assert free.shape[1] == 5
        end = model.generation_config.eos_token_id = int(free[0, 2])
        ended = model.generate(samples=prompt)[0].tolist()
        place = free[0].tolist().index(end) + 1
        assert ended[:place] == free[0, :place].tolist()
        assert set(ended[place:]) <= {501}
        assert model.generate(samples=prompt, eos_token_id=None).shape[1] == 5
        given = GenerationConfig(max_new_tokens=2, eos_token_id=499)
        assert model.generate(samples=prompt, generation_config=given).shape[1] == 2
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=50.0, top_k=0, max_new_tokens=8, pad_token_id=501
    )
    torch.manual_seed(0)
    drawn = [model.generate(samples=prompts[3]).tolist() for _ in range(2)]
    assert drawn[0] != drawn[1]
    assert model.generate(samples=prompts[3], do_sample=False).tolist() != drawn[0]


def test_settings_are_saved_with_the_model(recorded, tmp_path):
    model, prompts = copy.copy(recorded[0]), recorded[1]
    model.generation_config = GenerationConfig(max_new_tokens=3, pad_token_id=501)
    model.save_pretrained(tmp_path)
    again = HourLlavaForCausalLM.from_pretrained(tmp_path).eval()
    assert again.generate(samples=prompts[0]).shape == (1, 3)


def test_no_new_tokens_are_no_new_tokens(recorded):
    model, prompts = recorded
    assert model.generate(samples=prompts[0], max_new_tokens=0).shape == (1, 0)
    assert model.generate(samples=prompts[:2], max_new_tokens=0).shape == (2, 0)
    ids = prompts[3].input_ids[None]
    assert torch.equal(model.generate(ids, max_new_tokens=0), ids)
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.generate(samples=prompts[0], max_new_tokens=-1)


def test_an_answer_ends_where_the_context_does_and_says_so(model, processor, caplog):
    words = "red " * 4060
    batch = processor(text=words, return_tensors="pt")
    room = 4096 - batch["input_ids"].shape[1]
    assert 0 < room < 15
    new = model.generate(samples=batch["samples"], max_new_tokens=50, eos_token_id=None)
    assert new.shape == (1, room)
    assert "does not fit" in caplog.text
    assert model.generate(batch["input_ids"], eos_token_id=None).shape[1] == 4096
    with pytest.raises(ValueError, match=r"max_length is 30, but the prompt has \d+ tokens"):
        model.generate(samples=batch["samples"], max_length=30)


def test_beams_of_several_prompts_are_those_of_each_and_follow_the_prompt(recorded):
    model, prompts = recorded
    options = {"max_new_tokens": 4, "num_beams": 2, "num_return_sequences": 2, **GREEDY}
    alone = [model.generate(samples=prompt, **options) for prompt in prompts[2:4]]
    together = model.generate(samples=prompts[2:4], **options)
    assert together.tolist() == torch.cat(alone).tolist()
    ids = prompts[2].input_ids[None]
    behind = model.generate(samples=prompts[2], input_ids=ids, **options)
    assert behind.tolist() == torch.cat([ids.repeat(2, 1), alone[0]], dim=1).tolist()


def test_tokens_are_streamed_as_they_come(recorded, processor):
    model, prompts = recorded

    class Heard:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    for options in ({}, {"output_logits": True, "return_dict_in_generate": True}):
        heard = Heard()
        new = model.generate(
            samples=prompts[0], max_new_tokens=4, streamer=heard, **GREEDY, **options
        )
        new = new if isinstance(new, torch.Tensor) else new.sequences
        assert heard.ended
        assert heard.pieces == [[], *([token] for token in new[0].tolist())]


def test_a_transformers_streamer_gives_the_answers_text(model, processor):
    batch = processor(text="What is it?", images=picture())
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    new = model.generate(**batch, max_new_tokens=6, streamer=streamer, **GREEDY)
    written = processor.tokenizer.decode(new[0, batch["input_ids"].shape[1] :])
    assert "".join(streamer) == written


def test_an_answer_ends_at_a_string(model, processor):
    batch = processor(text="What is it?", images=picture())
    free = model.generate(**batch, max_new_tokens=8, **GREEDY)[0, batch["input_ids"].shape[1] :]
    stop = processor.tokenizer.decode(free[:3])[-1]
    ended = model.generate(
        **batch, max_new_tokens=8, stop_strings=[stop], tokenizer=processor.tokenizer, **GREEDY
    )[0, batch["input_ids"].shape[1] :].tolist()
    assert ended == free[: len(ended)].tolist()
    assert len(ended) <= 3
    assert stop in processor.tokenizer.decode(ended)


@pytest.mark.parametrize("drafts", ["assistant_model", "prompt_lookup_num_tokens"])
def test_drafts_are_refused_where_the_prompt_has_visual_tokens(recorded, drafts):
    model, prompts = recorded
    given = {drafts: model if drafts == "assistant_model" else 2}
    with pytest.raises(ValueError, match=f"{drafts}: drafts are made from a prompt's ids"):
        model.generate(samples=prompts[0], max_new_tokens=2, **given)


def test_a_smaller_models_drafts_change_nothing_of_an_answer_to_text(recorded):
    model, prompts = recorded
    ids = prompts[3].input_ids[None]
    options = {"max_new_tokens": 6, "do_sample": False}
    drafted = model.generate(ids, assistant_model=copy.deepcopy(model), **options)
    assert drafted.tolist() == model.generate(ids, **options).tolist()


def test_what_nothing_reads_is_refused_by_name(recorded):
    model, prompts = recorded
    pixels = torch.zeros(1, 3, 8, 8)
    with pytest.raises(TypeError, match="pixel_values"):
        model(samples=prompts[:1], pixel_values=pixels)
    for given in ({"samples": prompts[0]}, {"inputs": prompts[3].input_ids[None]}):
        with pytest.raises(ValueError, match="pixel_values"):
            model.generate(**given, pixel_values=pixels, max_new_tokens=1)
        with pytest.raises(ValueError, match="max_new_tokenz"):
            model.generate(**given, max_new_tokenz=1)
    with pytest.raises(ValueError, match="output_attentions"):
        model(samples=prompts[:1], output_attentions=True)
    with pytest.raises(ValueError, match="needs samples, input_ids or inputs_embeds"):
        model.generate(max_new_tokens=1)


def test_the_place_of_a_visual_without_the_visual_is_refused(model):
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]])
    with pytest.raises(ValueError, match="-200, the place of a visual"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="-200, the place of a visual"):
        model.generate(ids, max_new_tokens=1)
    with pytest.raises(ValueError, match="the vocabulary has"):
        model.generate(torch.tensor([[10**6]]), max_new_tokens=1)


def test_ids_that_contradict_the_samples_are_refused(model, processor):
    batch = processor(text="What is it?", images=picture())
    batch["input_ids"][0, -1] += 1
    with pytest.raises(ValueError, match="input_ids differ from those of the samples"):
        model.generate(**batch, max_new_tokens=1)


def test_template_tokens_can_be_shown_to_memaug(recorded):
    model, prompts = recorded
    seen = dataclasses.replace(prompts[0], labels=torch.full_like(prompts[0].labels, IGNORE_INDEX))
    options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}

    def logits(sample, **more):
        return model.generate(samples=sample, **options, **more).logits[0]

    shown = logits(prompts[0], template_tokens="seen")
    assert torch.equal(shown, logits(seen))
    assert not torch.allclose(shown, logits(prompts[0]))
    with pytest.raises(ValueError, match="template_tokens is 'some'"):
        logits(prompts[0], template_tokens="some")


@pytest.mark.parametrize("scale", [0.5, 0.25, 0])
def test_memaug_looks_up_a_share_of_the_memory_and_keeps_its_positions(
    scale, model, processor, monkeypatch
):
    frames = [picture(20 + number) for number in range(32)]
    sample = processor(text="Why?", videos=frames, duration=32.0)["samples"][0]
    given = {}

    def spy(query, memory, query_positions, positions, *lengths):
        given[len(given)] = query, memory, query_positions, positions, lengths[1].lengths
        return query

    monkeypatch.setattr(model.model.memaug, "forward", spy)
    for share in (1, scale):
        model.generate(samples=sample, max_new_tokens=1, memory_scale=share)
    (query, memory, _, positions, _), part = given.values()
    whole, quarter = range(17), (0, 2, 8, 10, 16)  # of 4 x 4 tokens and the newline
    seen = np.linspace(0, 31, 8).astype(int) if scale == 0 else range(0, 32, round(1 / scale))
    tokens = quarter if scale == 0 else whole
    rows = [17 * int(frame) + token for frame in seen for token in tokens]
    assert torch.equal(part[0], query)
    assert torch.equal(part[1], memory[rows])
    assert torch.equal(part[3], positions[rows])
    assert part[4] == (len(rows),)


def test_the_number_of_kept_frames_can_be_chosen(model, processor):
    frames = [picture(20 + number) for number in range(32)]
    sample = processor(text="Why?", videos=frames, duration=32.0)["samples"][0]
    text = len(sample.input_ids) - 1
    for wanted, kept in ((None, 8), (1, 1), (20, 20), (100, 32)):
        plan = model.model.prepare([sample], forgetting="uniform", kept_frames=wanted).plan
        assert plan.lengths == (text + 5 * kept,)
    for wrong in ({"kept_frames": 0}, {"memory_scale": 0.4}, {"memory_scale": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.generate(samples=sample, max_new_tokens=1, **wrong)


def test_a_deep_copy_of_a_compiled_model_has_weights_of_its_own(recorded, monkeypatch):
    from training import parallel

    monkeypatch.setattr(torch, "compile", lambda function: function)
    original = copy.deepcopy(recorded[0].model)
    parallel.compile_blocks(original)
    parallel.recompute(original, "vision", "projector", "llm")
    copied = copy.deepcopy(original)
    sample = recorded[1][0]
    with torch.no_grad():
        before = copied([sample], forgetting="uniform").loss_sum
        for parameter in original.parameters():
            parameter.zero_()
        assert torch.equal(copied([sample], forgetting="uniform").loss_sum, before)


# -- the processor with the model -----------------------------------------------------------------


def test_a_batch_generates_what_its_samples_generate_behind_the_prompt(model, processor):
    batch = processor.apply_chat_template(
        [asked({"type": "image", "image": picture()}), asked()],
        tokenize=True,
        add_generation_prompt=True,
    )
    whole = model.generate(**batch.to(torch.float32), max_new_tokens=4, **GREEDY)
    length = batch["input_ids"].shape[1]
    assert torch.equal(whole[:, :length], batch["input_ids"])
    alone = model.generate(samples=batch["samples"], max_new_tokens=4, **GREEDY)
    assert torch.equal(whole[:, length:], alone)
    assert processor.batch_decode(whole)[0].count("<image>") == 1


def test_several_questions_about_one_video_share_its_memory(model, processor, monkeypatch):
    frames = [picture(20 + number) for number in range(3)]
    batch = processor(text=["What is it?", "Why?"], videos=frames, duration=3.0)
    made = []
    encode = model.model._encode
    monkeypatch.setattr(
        model.model, "_encode", lambda visuals: made.append(len(visuals)) or encode(visuals)
    )
    together = model.generate(samples=batch["samples"], max_new_tokens=3, **GREEDY)
    assert made == [1]
    for sample, answer in zip(batch["samples"], together, strict=True):
        alone = model.generate(samples=sample, max_new_tokens=3, **GREEDY)
        assert alone[0].tolist() == answer.tolist()


@pytest.mark.parametrize("with_chat", [True, False])
def test_the_pipeline_answers_about_a_picture(with_chat, model, processor):
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 4, "do_sample": False}
    batch = processor(text="What is it?", images=picture())
    new = model.generate(samples=batch["samples"], **options)
    expected = processor.batch_decode(new, skip_special_tokens=True)[0]
    if with_chat:
        messages = asked({"type": "image", "image": picture()})
        [said] = ask(text=messages, return_full_text=False, generate_kwargs=options)
    else:
        [said] = ask(
            images=picture(), text="What is it?", return_full_text=False, generate_kwargs=options
        )
    assert said["generated_text"] == expected


def test_the_pipeline_answers_several_conversations_together_as_alone(model, processor):
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 4, "do_sample": False}
    chats = [asked({"type": "image", "image": picture(size)}) for size in (40, 90)]
    said = [
        ask(text=chats, return_full_text=False, generate_kwargs=options, batch_size=size)
        for size in (2, 1)
    ]
    together, alone = (
        [one["generated_text"] for row in rows for one in (row if isinstance(row, list) else [row])]
        for rows in said
    )
    assert len(together) == 2
    assert together == alone


@pytest.mark.parametrize("size", [(12, 112), (112, 12)])
def test_the_model_takes_a_thin_image_beside_another(size, processor, model):
    prompts = [processor(text="Why?", images=picture(*one)) for one in (size, (40, 30))]
    samples = [prompt["samples"][0] for prompt in prompts]
    with torch.no_grad():
        together = model(samples=samples).logits[0]
        alone = torch.cat([model(samples=[sample]).logits[0] for sample in samples])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


# -- training -------------------------------------------------------------------------------------


def test_trainer_trains_and_evaluates_with_recomputed_activations(export, processor, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(export)
    rows = [
        {"messages": asked({"type": "image", "image": picture(30 + n)}, answer="Red.")}
        for n in range(4)
    ]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            max_steps=2,
            learning_rate=1e-3,
            gradient_checkpointing=True,
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=rows,
        eval_dataset=rows[:2],
        data_collator=lambda batch: processor.apply_chat_template(
            [row["messages"] for row in batch], tokenize=True
        ),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_recomputed_activations_give_the_same_gradients(recorded):
    model, _ = recorded
    samples = golden.samples_of("v9.r_random_sampling", seed=1)[:1]
    gradients = []
    for recomputed in (False, True):
        one = copy.deepcopy(model).train()
        if recomputed:
            one.gradient_checkpointing_enable()
            assert any(
                getattr(m, "gradient_checkpointing", False) for m in one.model.vision.modules()
            )
        one(samples=samples).loss.backward()
        gradients.append({name: p.grad for name, p in one.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_batch_without_an_answer_has_a_loss_of_zero_with_a_gradient(model):
    ids = torch.arange(9)[None]
    loss = model(input_ids=ids, labels=torch.full_like(ids, IGNORE_INDEX)).loss
    assert loss.item() == 0
    loss.backward()
    sample = sample_of_text()
    sample.labels = torch.full_like(sample.labels, IGNORE_INDEX)
    loss = model(samples=[sample]).loss
    assert loss.item() == 0
    loss.backward()
    model.zero_grad()


def test_the_vocabulary_can_be_resized_and_stays_so(export, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(export)
    model.resize_token_embeddings(520)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    ids = torch.tensor([[515, 3]])
    with torch.no_grad():
        assert again(input_ids=ids).logits.shape[-1] == 520
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_adapters_train_merge_save_and_load(export, processor, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForImageTextToText.from_pretrained(export)
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "qkv"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, settings)
    batch = processor.apply_chat_template(
        asked({"type": "image", "image": picture()}, answer="Red."), tokenize=True
    )
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), 1e-2)
    losses = []
    for _ in range(3):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval()
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForImageTextToText.from_pretrained(export)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = adapted(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, expected)
        ids = {"samples": batch["samples"], "max_new_tokens": 2, **GREEDY}
        prompt = processor(text="What is it?", images=picture())["samples"]
        assert adapted.generate(**{**ids, "samples": prompt}).shape == (1, 2)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-4, rtol=1e-4)


# -- a fresh process ------------------------------------------------------------------------------

FRESH = """
import sys, hour_llava
from transformers import AutoModelForImageTextToText, AutoProcessor
trusting = {"trust_remote_code": False}
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], **trusting)
processor = AutoProcessor.from_pretrained(sys.argv[1], **trusting)
batch = processor(text="What is it?")
print(type(processor).__name__, model.generate(**batch, max_new_tokens=2).shape[0])
import model as own
print(own.MINE)
"""


def in_a_fresh_process(folder, script, *arguments, paths=()):
    (folder / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*paths, *sys.path[1:]]))}
    command = [sys.executable, "script.py", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_an_export_loads_in_a_fresh_process_beside_a_users_own_model_py(export, tmp_path):
    (tmp_path / "model.py").write_text("MINE = 'still mine'")
    done = in_a_fresh_process(tmp_path, FRESH, export, paths=[NAMED, ROOT])
    assert done.stdout.split("\n")[:2] == ["HourLlavaProcessor 1", "still mine"], done.stderr


@pytest.mark.slow
def test_what_is_missing_is_named_where_nothing_was_imported(export, tmp_path):
    script = "import sys; from transformers import AutoConfig as C; C.from_pretrained(sys.argv[1])"
    done = in_a_fresh_process(tmp_path, script, export)
    assert "has model type `hour_llava` but Transformers does not recognize" in done.stderr


def test_the_importable_name_is_packaged():
    from setuptools.config.pyprojecttoml import read_configuration

    settings = read_configuration(ROOT / "pyproject.toml", expand=True)["tool"]["setuptools"]
    assert "hour_llava" in settings["packages"]
    assert settings["package-dir"]["hour_llava"] == "model/import_name/hour_llava"
    assert not any("import_name" in name for name in settings["packages"])
