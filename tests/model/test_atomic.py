"""Files and folders that are complete or not there."""

import os

import pytest

from model.atomic import TEMPORARY_PREFIX, remove_unfinished, writing_file, writing_folder


def write_and_fail(path):
    path.write_text("half")
    raise RuntimeError


def test_a_file_appears_when_the_block_ends_well(tmp_path):
    target = tmp_path / "new folder" / "a.json"
    with writing_file(target) as temporary:
        temporary.write_text("1")
        assert temporary.parent == target.parent
        assert temporary.name.startswith(TEMPORARY_PREFIX)
        assert not target.exists()
    assert target.read_text() == "1"
    assert os.listdir(target.parent) == ["a.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_failed_write_leaves_the_earlier_file(tmp_path, durable):
    target = tmp_path / "a.json"
    target.write_text("earlier")
    with pytest.raises(RuntimeError), writing_file(target, durable) as temporary:
        write_and_fail(temporary)
    assert target.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "d"
    for name in ("old", "new"):
        with writing_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["d"]


def test_a_failed_write_leaves_the_earlier_folder(tmp_path):
    target = tmp_path / "d"
    target.mkdir()
    with pytest.raises(RuntimeError), writing_folder(target) as temporary:
        write_and_fail(temporary / "half")
    assert os.listdir(tmp_path) == ["d"]
    assert not os.listdir(target)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    target = tmp_path / "a[1].json"
    others = [tmp_path / "a1.json", tmp_path / f"{TEMPORARY_PREFIX}{'0' * 12}-a1.json"]
    for path in (target, *others, tmp_path / f"{TEMPORARY_PREFIX}{'0' * 12}-a[1].json"):
        path.write_text("x")
    (tmp_path / f"{TEMPORARY_PREFIX}{'1' * 12}-a[1].json").mkdir()
    remove_unfinished(target)
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])
