"""Parts that were given up, and videos that were withdrawn: the record that decides."""

import pytest

from assets.records.withdrawals import (
    Withdrawals,
    active_parts,
    catalogued_parts,
    give_up_part,
    take_back_part,
)
from training.formats import layout
from training.formats.storage import Storage


@pytest.fixture
def storage(tmp_path):
    storage = Storage(str(tmp_path))
    parts = [{"name": f"part{index}", "videos": 1} for index in (0, 1, 2, 10)]
    storage.write_json(layout.PARTS, {"parts": parts})
    return storage


def test_before_the_catalogue_there_are_no_parts(tmp_path):
    assert active_parts(Storage(str(tmp_path))) == []


def test_parts_stand_in_the_order_of_their_numbers(storage):
    assert active_parts(storage) == ["part0", "part1", "part2", "part10"]


def test_a_part_that_was_given_up_is_not_active_and_can_be_taken_back(storage):
    give_up_part(storage, "part1", "rows name\nvideos that are not there")
    assert active_parts(storage) == ["part0", "part2", "part10"]
    assert catalogued_parts(storage) == ["part0", "part1", "part2", "part10"]
    assert Withdrawals.read(storage).parts["part1"].reason == "rows name videos that are not there"
    take_back_part(storage, "part1")
    assert active_parts(storage) == ["part0", "part1", "part2", "part10"]


def test_giving_up_twice_keeps_the_first_reason(storage):
    give_up_part(storage, "part1", "first")
    assert give_up_part(storage, "part1", "second").parts["part1"].reason == "first"


@pytest.mark.parametrize(
    ("part", "reason", "says"),
    [
        ("part7", "x", "there is no part 'part7'; the catalogue has part0, part1, part2, part10"),
        ("typed by hand", "x", "there is no part"),
        ("part1", " \n ", "give a reason"),
        ("part1", "x" * 501, "at most 500"),
    ],
)
def test_what_cannot_be_given_up_is_an_error_that_says_why(storage, part, reason, says):
    with pytest.raises(ValueError, match=says):
        give_up_part(storage, part, reason)
    assert not storage.exists(layout.WITHDRAWALS)


def test_the_last_part_cannot_be_given_up(storage):
    for part in ("part0", "part1", "part2"):
        give_up_part(storage, part, "x")
    with pytest.raises(ValueError, match="only part left"):
        give_up_part(storage, "part10", "x")


def test_a_part_that_was_not_given_up_cannot_be_taken_back(storage):
    with pytest.raises(ValueError, match="was not given up; parts that were: none"):
        take_back_part(storage, "part1")


def test_a_record_that_cannot_be_read_is_an_error_and_never_counts_as_empty(storage):
    for text in (b"{", b"[]", b'{"parts": {}}', b'{"parts": {"a": 1}, "videos": {}}'):
        storage.write_bytes(layout.WITHDRAWALS, text)
        with pytest.raises(ValueError, match="would be fetched again"):
            Withdrawals.read(storage)
