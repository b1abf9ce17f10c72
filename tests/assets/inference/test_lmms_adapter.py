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
from typing import Any

import pytest

ADAPTER = "assets.inference.lmms_adapter"
REAL = importlib.util.find_spec("lmms_eval") is not None


@dataclass(frozen=True)
class RecordedManifest:
    """``lmms_eval.models.registry_v2.ModelManifest`` of 0.7.3."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class RecordedInstance:
    """``lmms_eval.api.instance.Instance`` of 0.7.3, as far as a model sees it."""

    request_type: str
    arguments: tuple[Any, ...]
    idx: int
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


class RecordedModel:
    """``lmms_eval.api.model.lmms`` of 0.7.3: what it sets, and how the evaluator makes one from a
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
    """Made as the evaluator makes it from ``--model_args`` and ``--batch_size``."""
    more = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    return adapter.HourLlavaLmms.create_from_arg_string(f"pretrained={export}", more)


def instance(kind: str, *arguments: Any) -> Any:
    module = importlib.import_module("lmms_eval.api.instance")
    return module.Instance(kind, arguments, 0, {"task": "films", "doc_id": 0, "repeats": 1})


def shown(doc: dict[str, Any]) -> list[Any]:
    return [doc["video"]] if doc["video"] else []


@pytest.fixture
def docs(model, media):
    rows = [{"video": str(media / "short.mp4"), "answer": "red"}, {"video": None, "answer": "4"}]
    model.task_dict["films"] = {"test": rows}
    return rows


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


def test_generation_answers_each_request_in_order(model, docs):
    settings = {"max_new_tokens": 4, "until": ["\n\n"], "do_sample": False, "temperature": 0}
    requests = [
        instance("generate_until", "What is it?", settings, shown, n, "films", "test")
        for n in (0, 1)
    ]
    answers = model.generate_until(requests)
    assert answers == [
        model.responder.generate([("What is it?", [docs[0]["video"]], settings)])[0],
        model.responder.generate([("What is it?", [], settings)])[0],
    ]


def test_likelihood_rates_answers_given_as_text_and_as_a_function_of_the_document(model, docs):
    requests = [
        instance("loglikelihood", "What colour?", answer, shown, 0, "films", "test")
        for answer in ("red", lambda doc: doc["answer"])
    ]
    (score, greedy), again = model.loglikelihood(requests)
    assert score < 0
    assert greedy in (True, False)
    assert again[0] == pytest.approx(score, rel=1e-5)


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
