"""Hashing the files of a product again."""

import pytest
import torch
from safetensors.torch import save_file

from assets.checkpoints.results import read_weights
from assets.records.lineage import Lineage
from assets.shards.part import part_folder
from assets.shards.writer import write_kind_part
from pipeline.verify import verify
from tests.assets.shards.roots import make_root, quiet, settings_for
from training.formats.kinds import TEXT_KIND
from training.formats.storage import Storage


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


def change_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_changed_weights_are_noticed(storage):
    export = storage.local_folder("checkpoints/tiny/stage3/k") / "export"
    export.mkdir(parents=True)
    save_file({"w": torch.arange(6.0)}, export / "model.safetensors")
    version = read_weights(export).version
    record = Lineage("stage3[tiny]", version, folder="checkpoints/tiny/stage3/k")
    assert verify(storage, record) == "stage3[tiny]: verified, 1 tensors"
    change_last_byte(export / "model.safetensors")
    assert verify(storage, record).startswith("stage3[tiny]: CHANGED: the weights are ")


def test_a_product_without_a_folder_of_its_own_has_nothing_to_hash(storage):
    assert "nothing to hash" in verify(storage, Lineage("annotations", "a1"))


def test_changed_shards_are_noticed(tmp_path):
    root = make_root(tmp_path, images=4)
    report = write_kind_part(root, settings_for(tmp_path), TEXT_KIND, 0, quiet)
    folder = part_folder(TEXT_KIND, 0)
    record = Lineage("llavavideo_text[part0]", report.version, folder=folder)
    shards = report.counts["shards"]
    assert verify(root, record) == f"llavavideo_text[part0]: verified, {shards} shards"
    change_last_byte(next(root.local_folder(folder).glob("*.mds")))
    assert "CHANGED: the content of shard." in verify(root, record)
