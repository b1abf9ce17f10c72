"""Checkpoints on this machine as answerers: this project's, and any of transformers'."""

import io

import pytest
from PIL import Image

from assets.captions.local import LocalBackend
from assets.endpoints.options import LocalModel
from assets.endpoints.protocol import Pictures, Prompt, RefusedPromptError
from assets.fetching.errors import OperatorError
from tests.pages import REPOSITORY

TOKENIZER = REPOSITORY / "tests" / "golden" / "tokenizer"
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "JPEG")
    return file.getvalue()


def prompt(*colours: str, text: str = "What is seen?") -> Prompt:
    jpegs = tuple(picture(colour) for colour in colours)
    return Prompt("You see.", text, "clip", {}, Pictures(jpegs, "p") if jpegs else None)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA of transformers with random weights."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = tmp_path_factory.mktemp("llava") / "tiny"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, **heads, image_size=32, patch_size=8, projection_dim=16)
    text = LlamaConfig(**sizes, **heads, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["export", "llava"])
def test_a_local_checkpoint_answers_always_the_same_with_and_without_pictures(kind, request):
    folder = request.getfixturevalue(kind)
    given = LocalModel(kind="local", checkpoint=folder, device="cpu", longest_answer=16)
    backend = LocalBackend(given)
    assert backend.model.startswith(f"{folder.name}@")
    shown = prompt("red", "blue")
    first, again = backend.answer(shown), backend.answer(shown)
    blind = backend.answer(prompt())
    assert first == again
    assert 0 < first.tokens_out <= 16
    assert first.ended == ("length" if first.tokens_out == 16 else "stop")
    assert first.tokens_in > blind.tokens_in > 0 or kind == "export"


def test_a_prompt_that_a_local_checkpoint_cannot_take_costs_itself(export):
    given = LocalModel(kind="local", checkpoint=export, device="cpu", longest_answer=16)
    with pytest.raises(RefusedPromptError, match="prompt_not_taken"):
        LocalBackend(given).answer(prompt("red", text="word " * 100_000))


def test_a_folder_that_holds_no_checkpoint_is_for_the_operator(tmp_path):
    given = LocalModel(kind="local", checkpoint=tmp_path)
    with pytest.raises(OperatorError, match=r"no config\.json"):
        LocalBackend(given)
