"""Storage: what has a final name is complete, on a local root and on a remote one."""

import itertools
import json
import os
import time
from contextlib import suppress

import pytest

from training.formats.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    root = str(tmp_path / "root") if request.param == "local" else f"memory://{tmp_path.name}"
    return Storage(root, cache=tmp_path / "cache")


def fail_after_writing(path, data):
    path.write_bytes(data)
    raise RuntimeError


def test_what_is_written_can_be_read_listed_and_removed(storage):
    storage.write_json("a/b.json", {"x": [1, "ü"]})
    with storage.writing("a/c.bin") as temporary:
        temporary.write_bytes(b"123")
    assert storage.read_json("a/b.json") == {"x": [1, "ü"]}
    assert storage.list("a") == ["a/b.json", "a/c.bin"]
    assert storage.list("a", ".bin") == ["a/c.bin"]
    assert storage.size("a/c.bin") == 3
    assert storage.local("a/c.bin").read_bytes() == b"123"
    storage.remove("a")
    assert not storage.exists("a/b.json")
    assert storage.list() == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(storage):
    storage.write_bytes("x/y", b"old")
    with pytest.raises(RuntimeError), storage.writing("x/y") as temporary:
        fail_after_writing(temporary, b"half of the n")
    assert storage.read_bytes("x/y") == b"old"
    assert storage.list() == ["x/y"]


def test_a_folder_is_replaced_as_a_whole(storage):
    with storage.writing_folder("d/part0") as temporary:
        (temporary / "index.json").write_text("1")
        (temporary / "old.mds").write_text("1")
    with storage.writing_folder("d/part0") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new.mds").write_text("2")
        (temporary / "index.json").write_text("2")
    assert storage.list() == ["d/part0/index.json", "d/part0/sub/new.mds"]
    with pytest.raises(RuntimeError), storage.writing_folder("d/part0") as temporary:
        fail_after_writing(temporary / "index.json", b"3")
    assert storage.read_bytes("d/part0/index.json") == b"2"
    assert storage.local_folder("d/part0").joinpath("sub/new.mds").read_text() == "2"


def test_a_cached_copy_follows_the_remote_file(storage):
    storage.write_bytes("f", b"one")
    assert storage.local("f").read_bytes() == b"one"
    storage.write_bytes("f", b"three")
    assert storage.local("f").read_bytes() == b"three"


def test_a_remote_folder_that_does_not_exist_has_no_copy(tmp_path):
    storage = Storage(f"memory://{tmp_path.name}", cache=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="d: there is no such folder"):
        storage.local_folder("d")


def test_copies_that_nobody_read_for_a_week_are_removed(tmp_path):
    storage = Storage(f"memory://{tmp_path.name}", cache=tmp_path / "cache")
    for name in ("a", "b", "c"):
        storage.write_bytes(name, name.encode())
    old, recent = storage.local("a"), storage.local("b")
    for path, days in ((old, 8), (recent, 6)):
        then = time.time() - days * 24 * 3600
        os.utime(path.parent, (then, then))
    storage.local("c")
    assert not old.exists()
    assert recent.exists()
    assert storage.local("a").read_bytes() == b"a"


def test_a_remote_folder_whose_replacing_stops_anywhere_is_whole_or_has_no_index(
    tmp_path, monkeypatch
):
    """The index names the content of the folder's file; at whatever operation the store fails, both
    agree.
    """

    def replace(storage, content):
        with storage.writing_folder("d") as temporary:
            (temporary / "shard").write_text(content)
            (temporary / "index.json").write_text(json.dumps(content))

    seen = set()
    for fails_at in range(6):
        storage = Storage(f"memory://{tmp_path.name}-{fails_at}", cache=tmp_path / "cache")
        replace(storage, "old")
        operations = itertools.count()

        def failing(operation, count=operations, last=fails_at):
            def call(*given, **named):
                if next(count) == last:
                    raise ConnectionError
                return operation(*given, **named)

            return call

        with monkeypatch.context() as patch:
            for name in ("rm", "put_file"):
                patch.setattr(storage.fs, name, failing(getattr(storage.fs, name)))
            with suppress(ConnectionError):
                replace(storage, "new")
        whole = storage.exists("d/index.json")
        if whole:
            assert storage.read_bytes("d/shard").decode() == storage.read_json("d/index.json")
        seen.add((whole, whole and storage.read_json("d/index.json")))
    assert seen == {(True, "old"), (False, False), (True, "new")}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd"])
def test_names_that_leave_the_root_are_refused(storage, name):
    with pytest.raises(ValueError, match="root"):
        storage.read_bytes(name)
    with pytest.raises(ValueError, match="root"), storage.writing(name):
        pass


def test_temporary_files_of_a_killed_writer_are_not_listed_and_go_with_the_next_one(tmp_path):
    storage = Storage(str(tmp_path))
    writer = storage.writing("kept/file")
    writer.__enter__().write_bytes(b"unfinished")
    assert len(os.listdir(tmp_path / "kept")) == 1
    assert storage.list() == []
    storage.remove_unfinished("kept/another-file")
    storage.remove_unfinished("kept/fil")
    assert len(os.listdir(tmp_path / "kept")) == 1
    storage.remove_unfinished("kept/file")
    assert os.listdir(tmp_path / "kept") == []


PATTERNS = {"Talk [ab].mp4": "Talk a.mp4", "What?.mp4": "What1.mp4", "st*r.mp4": "star.mp4"}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_name_that_is_also_a_pattern_is_only_a_name(storage, name):
    other = PATTERNS[name]
    for file in (f"v/{name}", f"v/{other}", f"v/d {name}/x", f"v/d {other}/x"):
        storage.write_bytes(file, file.encode())
    storage.move(f"v/{name}", f"w/{name}")
    storage.move(f"v/d {name}", f"w/d {name}")
    assert storage.list() == sorted([f"v/{other}", f"v/d {other}/x", f"w/{name}", f"w/d {name}/x"])
    assert storage.read_bytes(f"w/{name}") == f"v/{name}".encode()
    storage.write_bytes(f"w/{other}", b"")
    storage.remove(f"w/{name}")
    storage.remove(f"w/d {name}")
    storage.remove(f"w/{name}")
    assert storage.list("w") == [f"w/{other}"]
