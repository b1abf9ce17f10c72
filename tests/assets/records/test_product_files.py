"""A product's receipt: the list of its files, and what becomes of one that is damaged."""

import json
import os
import time

import dagster as dg
import pytest

from assets.deployment.resources import Deployment
from assets.records.lineage import Lineage, all_records, input_versions, mend
from assets.records.product_files import read_list, write_list
from assets.records.publishing import Published, publish
from training.formats.receipts import FileEntry, describe_files
from training.formats.storage import Storage

NAME = "videos[part0|panda]"
LIST = "lineage/videos/part0+panda.files.json"
STAMPS = "stamps/videos/part0+panda.json"


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


@pytest.fixture
def record(storage):
    """A product of two files, older than a tick of the file system, and published."""
    storage.write_bytes("a", b"first")
    storage.write_bytes("b", b"second")
    time.sleep(0.15)
    made = Lineage(NAME, "v1").with_files(storage, describe_files(storage, ["b", "a"]))
    made.write(storage)
    return made


def flip(storage, rel, keep_times=False):
    path = storage.local(rel)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_list_of_files_is_the_same_for_the_same_files_and_bound_to_the_record(storage, record):
    assert (record.files, record.bytes) == (2, 11)
    first = storage.read_bytes(LIST)
    assert [line[0] for line in json.loads(first)] == ["a", "b"]
    again = Lineage(NAME, "v1").with_files(storage, read_list(storage, LIST)[::-1])
    assert (again, storage.read_bytes(LIST)) == (record, first)


def test_lists_are_not_taken_for_records(storage, record):
    assert all_records(storage) == [record]


def test_a_whole_product_is_known_without_reading_it(storage, record, monkeypatch):
    def refuse(rel):
        raise AssertionError(f"{rel} was read")

    monkeypatch.setattr(storage, "open", refuse)
    assert record.damage(storage) == []
    assert input_versions(storage, [NAME]) == {NAME: "v1"}


def test_a_copied_root_is_read_once_because_stamps_are_facts_of_a_file_system(storage, record):
    os.utime(storage.local("a"), ns=(1, 1))
    time.sleep(0.15)
    before = storage.read_json(STAMPS)["a"]
    assert record.damage(storage) == []
    assert storage.read_json(STAMPS)["a"][0] == before[0] != storage.read_json(STAMPS)["a"][1]


def test_a_flipped_byte_is_found_also_where_the_time_was_set_back(storage, record):
    flip(storage, "a", keep_times=True)
    assert [str(damage) for damage in record.damage(storage)] == ["a has other content"]


def test_nothing_is_made_from_a_damaged_input(storage, record):
    flip(storage, "a")
    with pytest.raises(
        ValueError, match=r"videos\[part0\|panda\]: a has other content\. Materialize"
    ):
        input_versions(storage, [NAME])


def test_a_list_that_is_not_the_recorded_one_is_damage_itself(storage, record):
    write_list(storage, LIST, [FileEntry("a", 5, "sha256:00")])
    assert [str(found) for found in record.damage(storage)] == [f"{LIST} has other content"]
    storage.write_bytes(LIST, b"[[1")
    assert [str(found) for found in record.damage(storage)] == [f"{LIST} has other content"]
    storage.remove(LIST)
    assert [str(found) for found in record.damage(storage)] == [f"{LIST} is missing"]


def test_what_is_damaged_is_set_aside_and_named_before_the_product_is_made_again(storage, record):
    flip(storage, "a")
    storage.remove("b")
    lines: list[str] = []
    mend(storage, NAME, lines.append)
    assert lines == [
        f"{NAME}: a has other content; set aside as damaged/a.1, made again",
        f"{NAME}: b is missing; made again",
    ]
    assert not storage.exists("a")
    assert storage.read_bytes("damaged/a.1") == b"girst"
    assert mend(storage, "never[made]", lines.append) == []


def test_files_of_a_listed_list_are_looked_at_where_that_is_asked_for(storage):
    images = [f"images/{number}" for number in range(3)]
    for name in images:
        storage.write_bytes(name, name.encode())
    write_list(storage, "set.files.json", describe_files(storage, images))
    time.sleep(0.15)
    record = Lineage("llava", "v1").with_files(storage, describe_files(storage, ["set.files.json"]))
    record.write(storage)
    assert record.damage(storage) == []
    assert "set.files.json#files" in storage.read_json("stamps/llava/all.json")
    flip(storage, "images/1", keep_times=True)
    assert record.damage(storage, lists=False) == []
    assert [str(damage) for damage in record.damage(storage)] == ["images/1 has other content"]
    assert input_versions(storage, ["llava"]) == {"llava": "v1"}


def test_a_file_that_changed_before_it_was_published_again_is_not_taken_for_whole(storage, record):
    files = read_list(storage, LIST)
    flip(storage, "a")
    time.sleep(0.15)
    again = record.with_files(storage, files)
    assert [str(damage) for damage in again.damage(storage)] == ["a has other content"]


@pytest.mark.slow
def test_publishing_records_the_files_of_a_product(tmp_path):
    (tmp_path / "deployment.yaml").write_text(
        "root: root\nannotations: {paths: [none.jsonl]}\n"
        "sources: {mine: {kind: drop, folder: drop}}\n"
    )
    storage = Storage(str(tmp_path / "root"))

    @dg.asset
    def made(context: dg.AssetExecutionContext, deployment: Deployment) -> Published:
        storage.write_bytes("made/file", b"content")
        yield from publish(
            context,
            deployment,
            version="v1",
            inputs={},
            counts={},
            files=describe_files(storage, ["made/file"]),
            folder="made",
        )

    resources = {"deployment": Deployment(config=str(tmp_path / "deployment.yaml"))}
    with dg.instance_for_test() as instance:
        assert dg.materialize([made], instance=instance, resources=resources).success
    record = Lineage.read(storage, "made")
    assert (record.files, record.bytes) == (1, 7)
    assert storage.read_json("made/lineage.json")["receipt"] == record.receipt
    assert record.damage(storage, full=True) == []
