"""Safetensors files: described without their numbers, read in part, written in shards."""

import json
import subprocess
import sys

import pytest
import torch

from model.weights.tensors import (
    INDEX_NAME,
    checkpoint_files,
    length_fault,
    read_tensors,
    stored_tensors,
    write_shards,
    write_tensors,
)

TENSORS = {
    "a.weight": torch.arange(12.0).view(4, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.tensor(7.0),
}


def test_a_file_tells_names_shapes_types_and_counts(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    found = {tensor.name: tensor for tensor in stored_tensors(tmp_path / "x.safetensors")}
    assert {name: (one.shape, one.dtype, one.count) for name, one in found.items()} == {
        "a.weight": ((4, 3), "F32", 12),
        "b": ((5,), "BF16", 5),
        "c": ((), "F32", 1),
    }


def test_a_tensor_is_read_whole_or_by_rows(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    found = {tensor.name: tensor for tensor in stored_tensors(tmp_path / "x.safetensors")}
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name].read(), tensor)
        assert found[name].read().dtype == tensor.dtype
    assert torch.equal(found["a.weight"].rows(1, 3), TENSORS["a.weight"][1:3])


def test_shards_hold_everything_once_and_their_index_says_where(tmp_path):
    write_shards(tmp_path, TENSORS.items(), shard_bytes=50)
    files = checkpoint_files(tmp_path)
    assert [file.name for file in files] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert [tensor.name for tensor in stored_tensors(*files)] == [*TENSORS]
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 48 + 10 + 4
    for name, file in index["weight_map"].items():
        assert torch.equal(read_tensors(tmp_path / file)[name], TENSORS[name])


def test_the_index_decides_which_files_belong_to_a_checkpoint(tmp_path):
    write_tensors(tmp_path / "b.safetensors", TENSORS)
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    assert [file.name for file in checkpoint_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    index = tmp_path / INDEX_NAME
    index.write_text(json.dumps({"weight_map": {"b": "b.safetensors"}}))
    assert [file.name for file in checkpoint_files(tmp_path)] == ["b.safetensors"]
    index.write_text(json.dumps({"weight_map": {"b": "c.safetensors"}}))
    with pytest.raises(ValueError, match=r"c\.safetensors of its index is not there"):
        checkpoint_files(tmp_path)
    index.write_text(json.dumps({"weight_map": {"b": "../c.safetensors"}}))
    with pytest.raises(ValueError, match="not a plain file name"):
        checkpoint_files(tmp_path)


def test_a_file_of_another_length_than_its_header_says_is_noticed(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, TENSORS)
    assert length_fault(file) is None
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert length_fault(file) == (
        f"x.safetensors has {len(whole) - 1:,} bytes, its header promises {len(whole):,}"
    )
    file.write_bytes(whole[:20])
    assert length_fault(file) == "x.safetensors is cut short"


def test_describing_a_checkpoint_imports_no_torch(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    script = (
        "import sys; from pathlib import Path\n"
        "from model.weights.tensors import stored_tensors\n"
        f"file = Path({str(tmp_path / 'x.safetensors')!r})\n"
        "assert sum(one.count for one in stored_tensors(file)) == 18\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
