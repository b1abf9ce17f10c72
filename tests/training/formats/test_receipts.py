"""Whether files are still what was recorded, on a local root and on an object store."""

import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest
import xxhash

from training.formats.receipts import (
    Damage,
    FileEntry,
    Stamps,
    describe_files,
    find_damage,
    set_aside,
)
from training.formats.storage import Storage

CONTENT = b"eleven byte"


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return Storage(root)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def age(storage: Storage) -> None:
    """Let a tick of the file system pass, so that stamps are taken."""
    if storage.is_local:
        time.sleep(0.15)


class CountingStorage(Storage):
    """Counts how often a file is opened."""

    opened = 0

    def open(self, rel: str):
        self.opened += 1
        return super().open(rel)


def test_entries_hold_the_size_and_the_sha256_of_each_file(storage: Storage) -> None:
    storage.write_bytes("b/two", b"")
    storage.write_bytes("a", CONTENT)

    entries = describe_files(storage, ["b/two", "a"])

    assert entries == [
        FileEntry("a", 11, "sha256:" + hashlib.sha256(CONTENT).hexdigest()),
        FileEntry("b/two", 0, "sha256:" + hashlib.sha256(b"").hexdigest()),
    ]


def test_a_file_whose_start_was_written_last_is_hashed_in_that_order(storage: Storage) -> None:
    storage.write_bytes("a", CONTENT)
    digest = xxhash.xxh64(CONTENT[4:] + CONTENT[:4]).hexdigest()
    assert find_damage(storage, [FileEntry("a", 11, f"xxh64+4:{digest}")], Stamps(), True) == []
    flipped = FileEntry("a", 11, f"xxh64+5:{digest}")
    assert find_damage(storage, [flipped], Stamps(), True) == [Damage("a", "has other content")]


def test_untouched_files_are_whole(storage: Storage) -> None:
    storage.write_bytes("a", CONTENT)
    entries = describe_files(storage, ["a"])

    assert find_damage(storage, entries, Stamps()) == []
    assert find_damage(storage, entries, Stamps(), full=True) == []


def test_each_sort_of_damage_is_told_by_name(storage: Storage) -> None:
    for name in ("gone", "short", "flipped", "whole"):
        storage.write_bytes(name, CONTENT)
    entries = describe_files(storage, ["gone", "short", "flipped", "whole"])
    storage.remove("gone")
    storage.write_bytes("short", CONTENT[:10])
    storage.write_bytes("flipped", b"eleven bytf")

    assert find_damage(storage, entries, Stamps()) == [
        Damage("flipped", "has other content"),
        Damage("gone", "is missing"),
        Damage("short", "has 10 bytes instead of 11"),
    ]


def test_the_hash_of_an_mds_index_is_understood(storage: Storage) -> None:
    storage.write_bytes("shard", CONTENT)
    entry = FileEntry("shard", 11, "xxh64:" + xxhash.xxh64_hexdigest(CONTENT))

    assert find_damage(storage, [entry], Stamps()) == []
    storage.write_bytes("shard", b"eleven bytf")
    assert find_damage(storage, [entry], Stamps()) == [Damage("shard", "has other content")]


def test_an_unknown_hash_is_refused(storage: Storage) -> None:
    storage.write_bytes("a", CONTENT)

    with pytest.raises(ValueError, match="unknown hash 'md5'; known: sha256, xxh64"):
        find_damage(storage, [FileEntry("a", 11, "md5:00")], Stamps())


def test_a_file_with_its_remembered_stamp_is_not_read_again(tmp_path: Path) -> None:
    storage, stamps = CountingStorage(str(tmp_path)), Stamps()
    storage.write_bytes("a", CONTENT)
    age(storage)
    entries = describe_files(storage, ["a"], stamps)
    assert storage.opened == 1

    assert find_damage(storage, entries, stamps) == []
    assert storage.opened == 1
    assert find_damage(storage, entries, stamps, full=True) == []
    assert storage.opened == 2


def test_a_byte_flipped_in_place_is_found_though_size_and_time_of_change_are_put_back(
    local: Storage,
) -> None:
    local.write_bytes("a", CONTENT)
    age(local)
    stamps = Stamps()
    entries = describe_files(local, ["a"], stamps)
    path = Path(local.path("a"))
    stat = path.stat()

    with path.open("r+b") as file:
        file.write(b"E")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert find_damage(local, entries, stamps) == [Damage("a", "has other content")]


def test_a_damaged_file_stays_damaged_however_often_it_is_looked_at(storage: Storage) -> None:
    storage.write_bytes("a", CONTENT)
    age(storage)
    stamps = Stamps()
    entries = describe_files(storage, ["a"], stamps)
    storage.write_bytes("a", CONTENT.upper())
    age(storage)

    for _ in range(2):
        assert find_damage(storage, entries, stamps) == [Damage("a", "has other content")]


def test_a_file_written_in_the_tick_of_its_stamp_is_read_again(tmp_path: Path) -> None:
    storage, stamps = CountingStorage(str(tmp_path)), Stamps()
    storage.write_bytes("a", CONTENT)

    describe_files(storage, ["a"], stamps)

    assert not stamps.known


def test_stamps_of_another_hash_do_not_count(local: Storage) -> None:
    local.write_bytes("a", CONTENT)
    age(local)
    stamps = Stamps()
    (entry,) = describe_files(local, ["a"], stamps)
    other = FileEntry("a", entry.size, "sha256:" + "0" * 64)

    assert find_damage(local, [other], stamps) == [Damage("a", "has other content")]


@pytest.mark.parametrize("torn", [b"", b"{", b'{"a": 3}', b"[1]", b'{"a": ["x"]}', b"\xff"])
def test_torn_stamps_cost_time_and_nothing_else(local: Storage, torn: bytes) -> None:
    local.write_bytes("stamps.json", torn)

    assert Stamps.read(local, "stamps.json") == Stamps()


def test_stamps_survive_being_written(local: Storage) -> None:
    local.write_bytes("a", CONTENT)
    age(local)
    stamps = Stamps()
    (entry,) = describe_files(local, ["a"], stamps)
    stamps.write(local, "stamps.json")

    assert Stamps.read(local, "stamps.json").hold(local, entry)


def test_a_file_that_cannot_be_read_is_a_fault_of_the_machine(local: Storage) -> None:
    os.makedirs(local.path("folder"))

    with pytest.raises(OSError, match="folder"):
        find_damage(
            local,
            [FileEntry("folder", os.stat(local.path("folder")).st_size, "sha256:0")],
            Stamps(),
        )


def test_what_is_damaged_is_moved_below_damaged_and_never_overwrites(storage: Storage) -> None:
    for content in (b"one", b"two"):
        storage.write_bytes("shards/part0/a", content)
        set_aside(storage, "shards/part0/a")

    assert storage.list("shards") == []
    assert storage.read_bytes("damaged/shards/part0/a.1") == b"one"
    assert storage.read_bytes("damaged/shards/part0/a.2") == b"two"


def test_a_whole_folder_can_be_set_aside(storage: Storage) -> None:
    storage.write_bytes("export/model", b"weights")
    storage.write_bytes("export/sub/config", b"{}")

    assert set_aside(storage, "export") == "damaged/export.1"

    assert storage.list("damaged") == ["damaged/export.1/model", "damaged/export.1/sub/config"]
    assert not storage.exists("export")
