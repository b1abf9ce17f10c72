"""lmms-eval drives the model through the adapter as it drives its own models.

Where lmms-eval is installed (in an environment of its own, as it wants other versions of what we
use), its real base class, registry and requests are used. Otherwise their interface stands in,
recorded from version 0.7.3.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.options import AskOptions

ADAPTER = "assets.inference.lmms_adapter"
REAL = importlib.util.find_spec("lmms_eval") is not None


@dataclass(frozen=True)
class RecordedManifest:
    """`lmms_eval.models.registry_v2.ModelManifest` of 0.7.3."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class RecordedInstance:
    """`lmms_eval.api.instance.Instance` of 0.7.3, as far as a model sees it."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class RecordedModel:
    """`lmms_eval.api.model.lmms` of 0.7.3: what it sets, and how the evaluator makes one from a
    command line.
    """

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @classmethod
    def create_from_arg_string(cls, arguments: str, more: dict[str, Any] | None = None) -> Any:
        given = dict(pair.split("=", 1) for pair in arguments.split(",") if pair)
        return cls(
            **given, **{key: value for key, value in (more or {}).items() if value is not None}
        )


@pytest.fixture
def adapter(monkeypatch) -> Iterator[Any]:
    if not REAL:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        for name, content in (
            ("lmms_eval.api.model", {"lmms": RecordedModel}),
            ("lmms_eval.api.instance", {"Instance": RecordedInstance}),
            ("lmms_eval.models.registry_v2", {"ModelManifest": RecordedManifest}),
        ):
            module = types.ModuleType(name)
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)
    yield importlib.import_module(ADAPTER)
    sys.modules.pop(ADAPTER, None)


@pytest.fixture
def model(adapter, export):
    """Made as the evaluator makes it from `--model_args` and `--batch_size`."""
    more = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    return adapter.HourLlavaLmms.create_from_arg_string(f"pretrained={export}", more)


def instance(kind: str, *arguments: Any) -> Any:
    module = importlib.import_module("lmms_eval.api.instance")
    return module.Instance(kind, arguments, 0, {"task": "films", "doc_id": 0, "repeats": 1})


def shown(doc: dict[str, Any]) -> list[Any]:
    return doc["visuals"]


@pytest.fixture
def docs(model, media):
    video, picture = str(media / "short.mp4"), media / "picture.jpg"
    rows = [
        {"visuals": [video], "answer": "red"},
        {"visuals": [], "answer": "4"},
        {"visuals": [Image.open(picture)], "answer": "red"},
        {"visuals": [picture, picture], "answer": "yes"},
    ]
    model.task_dict["films"] = {"test": rows}
    return rows


def generation(number: int, context: str, **settings: Any) -> Any:
    """A request to continue a context about one of the documents."""
    return instance("generate_until", context, settings, shown, number, "films", "test")


def likelihood(number: int, context: str, answer: Any) -> Any:
    """A request to rate an answer about one of the documents."""
    return instance("loglikelihood", context, answer, shown, number, "films", "test")


def written(model: Any, docs: list[dict[str, Any]], number: int, prompt: str, count: int) -> str:
    """What transformers generates by itself."""
    inputs = model._prompt(prompt, docs[number]["visuals"]).inputs
    ids = model.session.model.generate(samples=inputs, max_new_tokens=count)[0]
    return model.session.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_the_manifest_leads_to_the_model_class(adapter):
    module, name = adapter.manifest.simple_class_path.rsplit(".", 1)
    assert (adapter.manifest.model_id, module) == ("hour_llava", ADAPTER)
    assert getattr(adapter, name) is adapter.HourLlavaLmms
    assert adapter.HourLlavaLmms.is_simple


@pytest.mark.skipif(not REAL, reason="lmms-eval is not installed here")
def test_the_real_registry_finds_the_model_by_its_entry_point(adapter):
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.load_entrypoint_manifests()
    found = registry.get_model_class("hour_llava", force_simple=True)
    assert found.__name__ == "HourLlavaLmms"


@pytest.mark.slow
def test_generation_answers_each_request_in_order(model, docs):
    settings = {"max_new_tokens": 4, "until": ["\n\n"], "do_sample": False, "temperature": 0}
    answers = model.generate_until([generation(n, "What is it?", **settings) for n in (0, 1)])
    assert answers == [cut_at_blank_line(written(model, docs, n, "What is it?", 4)) for n in (0, 1)]


def cut_at_blank_line(text: str) -> str:
    return text.split("\n\n")[0].strip()


@pytest.mark.slow
def test_videos_images_and_text_go_through_one_call(model, docs):
    asked = [
        generation(0, "What is it?", max_new_tokens=6),
        generation(2, "Which?", max_new_tokens=4),
        generation(3, "Same?"),
        generation(1, "2 + 2?", max_new_tokens=3),
    ]
    model.requests_together = 3
    together = model.generate_until(asked)
    model.requests_together = 1
    assert together == [model.generate_until([one])[0] for one in asked]
    assert together[0] == written(model, docs, 0, "What is it?", 6).strip()
    assert together[3] == written(model, docs, 1, "2 + 2?", 3).strip()


@pytest.mark.slow
def test_likelihood_tells_whether_the_answer_is_what_would_be_written(model, docs):
    text = written(model, docs, 0, "What is it?", 3)
    results = model.loglikelihood(
        [likelihood(0, "What is it?", text), likelihood(0, "What is it?", "qqq")]
    )
    session = model.session
    prompt = model._prompt("What is it?", docs[0]["visuals"])
    if session.ids(text) == session.generate([prompt], 3)[0]:
        assert results[0][1]
    assert not results[1][1]
    assert results[0][0] > results[1][0]


@pytest.mark.slow
def test_likelihood_rates_answers_given_as_text_and_as_a_function_of_the_document(model, docs):
    requests = [
        likelihood(0, "What colour?", answer) for answer in ("red", lambda doc: doc["answer"])
    ]
    (score, is_written), again = model.loglikelihood(requests)
    assert score < 0
    assert is_written in (True, False)
    assert again[0] == pytest.approx(score, rel=1e-5)


def test_placeholders_fit_the_visuals(model, docs):
    for context in ("Same?", "<image> Same?", "<image>\n<image>\nSame?"):
        inputs = model._prompt(context, docs[3]["visuals"]).inputs
        assert sum(visual.placeholders for visual in inputs.visuals) == 2


def test_an_answer_ends_before_its_stop_text(adapter):
    assert adapter.cut("A\n\nB. more", ["\n\n"]) == "A"
    assert adapter.cut("red. blue", ".") == "red"
    assert adapter.cut(" all ", ()) == "all"


def test_sampling_is_refused(model, docs):
    with pytest.raises(ValueError, match="greedy"):
        model.generate_until([generation(1, "Hello?", do_sample=True)])


def test_what_cannot_be_done_is_refused_by_name(adapter, model, export, monkeypatch):
    with pytest.raises(ValueError, match="one question at a time"):
        model.generate_until_multi_round([])
    with pytest.raises(ValueError, match="unknown model_args conv_template"):
        adapter.HourLlavaLmms(pretrained=str(export), conv_template="qwen")
    with pytest.raises(ValueError, match="batch_size is 'auto'"):
        adapter.HourLlavaLmms(pretrained=str(export), batch_size="auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs as one"):
        adapter.HourLlavaLmms(pretrained=str(export), device="cpu")


@pytest.mark.slow
def test_how_it_is_asked_is_a_model_argument(adapter, export, docs, model):
    given = "memory_scale=1/2,kept_frames=2,template_tokens=seen,forgetting_seed=3"
    other = adapter.HourLlavaLmms.create_from_arg_string(
        f"pretrained={export},{given}", {"batch_size": 3, "device": "cpu"}
    )
    other.task_dict["films"] = model.task_dict["films"]
    assert other.options == AskOptions(0.5, 2, "seen", 3)
    asked = [generation(number, "What is it?", max_new_tokens=4) for number in (0, 1, 2)]
    answers = other.generate_until(asked)
    prompt = other.session.prompt(
        "<image>\nWhat is it?",
        video=other.session.video(Path(docs[0]["visuals"][0])),
        options=AskOptions(0.5, 2, "seen", 3),
    )
    assert answers[0] == other.session.text(other.session.generate([prompt], 4)[0]).strip()
    with pytest.raises(ValueError, match=r"memory_scale is 0\.4"):
        adapter.HourLlavaLmms.create_from_arg_string(f"pretrained={export},memory_scale=0.4")
