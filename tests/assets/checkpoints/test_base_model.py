"""The starting point of a variant: built for tiny, fetched from a hub or a folder and converted."""

import dataclasses
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from assets.checkpoints import base
from assets.deployment.settings import load_settings
from model.config import PRESETS
from model.hf import HourLlavaForCausalLM
from model.weights.convert import publish
from model.weights.tiny import build_tiny
from pipeline.demo.servers import HubServer
from training.formats.storage import Storage


def settings_of(folder, **changes):
    chosen = {
        "root": "data",
        "annotations": {"repo": "a/b"},
        "sources": {},
        "variants": ["tiny"],
        "training": {"scratch": "scratch"},
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(chosen | changes))
    return load_settings(folder / "deployment.yaml")


def test_tiny_is_the_same_bytes_every_time(tmp_path):
    settings = settings_of(tmp_path)
    storage = Storage(settings.root)
    first = base.prepare_base(storage, settings, "tiny", print)
    again = base.prepare_base(storage, settings, "tiny", print)
    assert first == again
    assert first.parameters > 100_000
    assert (storage.local_folder(first.folder) / "export" / "config.json").exists()


@pytest.mark.slow
def test_published_weights_come_from_the_hub_and_keep_everything_but_memaug(tmp_path, monkeypatch):
    small = dataclasses.replace(PRESETS["tiny"], variant="3b")
    monkeypatch.setitem(PRESETS, "3b", small)
    build_tiny(tmp_path / "ours")
    publish(tmp_path / "ours", tmp_path / "published")
    (weights,) = (tmp_path / "published").glob("*.safetensors")
    kept = {
        name: tensor
        for name, tensor in load_file(weights).items()
        if "vision_resampler" not in name
    }
    save_file(kept, weights)
    (tmp_path / "published" / "model.safetensors.index.json").unlink()
    with HubServer() as hub:
        revision = hub.publish("someone/onevision", tmp_path / "published", kind="models")
        settings = settings_of(
            tmp_path,
            hub_endpoint=hub.url,
            variants={"3b": {"preset": "3b", "start": {"repo": "someone/onevision", "stage": 0}}},
        )
        report = base.prepare_base(Storage(settings.root), settings, "3b", print)
    assert report.origins == {"someone/onevision": revision}
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    made = HourLlavaForCausalLM.from_pretrained(
        tmp_path / "data/checkpoints/3b/base/export"
    ).state_dict()
    for name, tensor in (
        HourLlavaForCausalLM.from_pretrained(tmp_path / "ours").state_dict().items()
    ):
        assert torch.equal(made[name], tensor) == (
            not name.startswith("model.memaug.") or "norm" in name or name.endswith("bias")
        ), name
    shutil.rmtree(tmp_path / "data")
