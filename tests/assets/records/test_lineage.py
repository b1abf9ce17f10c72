"""Lineage records, and the split into parts."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.deployment.parts import part_index, part_name, part_of
from assets.records.lineage import Lineage, all_records, input_versions, product
from training.formats.hashing import data_version, hash_file
from training.formats.storage import Storage


def test_a_record_is_found_by_its_product_and_lies_beside_it(tmp_path):
    storage = Storage(str(tmp_path))
    record = Lineage(
        "videos[part0|panda]",
        "v1",
        folder="some/folder",
        inputs={"catalogue": "c1"},
        counts={"ok": 3},
    )
    record.write(storage)
    assert Lineage.read(storage, "videos[part0|panda]") == record
    assert all_records(storage) == [record]
    assert storage.read_json("some/folder/lineage.json")["inputs"] == {"catalogue": "c1"}
    assert input_versions(storage, ["videos[part0|panda]"]) == {"videos[part0|panda]": "v1"}


def test_inputs_that_were_not_made_are_all_named(tmp_path):
    storage = Storage(str(tmp_path))
    Lineage("annotations", "v1").write(storage)
    with pytest.raises(FileNotFoundError, match=r"stage1\[tiny\], stage2\[tiny\]"):
        input_versions(
            storage, ["annotations", product("stage1", "tiny"), product("stage2", "tiny")]
        )


def test_versions_depend_on_content_and_not_on_the_order_of_keys():
    assert data_version({"a": 1, "b": 2}) == data_version({"b": 2, "a": 1})
    assert data_version({"a": 1}) != data_version({"a": 2})


def test_a_file_hash_is_its_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    assert hash_file(tmp_path / "f") == hashlib.sha256(b"x" * 100_000).hexdigest()


def test_the_split_never_changes():
    """Parts are on disk for good: another hash would move every video."""
    assert [part_of(f"panda/{i}", 10) for i in range(12)] == [7, 4, 0, 9, 4, 1, 6, 8, 2, 0, 5, 8]


@given(st.text(min_size=1), st.integers(1, 99))
def test_every_key_has_one_part_within_range(key, parts):
    assert 0 <= part_of(key, parts) < parts


def test_names_of_parts_are_read_back():
    assert part_index(part_name(17)) == 17
    with pytest.raises(ValueError, match="part0"):
        part_index("teil3")
