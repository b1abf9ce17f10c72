"""Parts that were given up, and videos that were withdrawn: the record that decides."""

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from assets.records.withdrawals import (
    Withdrawal,
    Withdrawals,
    active_parts,
    catalogued_parts,
    give_up_part,
    record_withdrawn,
    take_back_part,
)
from assets.tracing.withdraw import Removal, remove_video
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


ROUNDS = 25


def _withdraw_some(storage: Storage, name: str) -> None:
    for n in range(ROUNDS):
        plan = Removal(f"own/{name}{n}", "takedown", "2026-01-01T00:00:00Z")
        remove_video(storage, None, plan)


def _give_up_and_take_back(storage: Storage) -> None:
    for _ in range(ROUNDS):
        give_up_part(storage, "part1", "raced")
        take_back_part(storage, "part1")
    give_up_part(storage, "part2", "raced")


def _in_processes(work: list[Callable[[], None]]) -> None:
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=one) for one in work]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * len(work)


def _in_threads(work: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(one) for one in work]:
            done.result()


@pytest.mark.parametrize("side_by_side", [_in_processes, _in_threads])
def test_of_changes_at_the_same_time_none_is_forgotten(storage, side_by_side):
    work = [lambda name=name: _withdraw_some(storage, name) for name in "abcd"]
    side_by_side([*work, lambda: _give_up_and_take_back(storage)])
    after = Withdrawals.read(storage)
    assert set(after.videos) == {f"own/{name}{n}" for name in "abcd" for n in range(ROUNDS)}
    assert set(after.parts) == {"part2"}


def test_on_a_remote_root_the_writers_of_one_machine_wait_for_each_other(tmp_path):
    remote = Storage(f"memory://{tmp_path.name}", tmp_path)

    def record_some(name: str) -> None:  # the store of this test shows files half written
        for n in range(ROUNDS):
            record_withdrawn(remote, f"own/{name}{n}", Withdrawal.now("takedown"))

    _in_threads([lambda name=name: record_some(name) for name in "abcd"])
    assert len(Withdrawals.read(remote).videos) == 4 * ROUNDS
    remote.remove(layout.VIDEO_MARATHON)


def test_of_the_last_two_parts_only_one_can_be_given_up_however_they_are_asked_for(storage):
    give_up_part(storage, "part0", "x")
    give_up_part(storage, "part1", "x")
    start, refused = threading.Barrier(2), []

    def give_up(part: str) -> None:
        start.wait()
        try:
            give_up_part(storage, part, "x")
        except ValueError as error:
            refused.append(str(error))

    _in_threads([lambda: give_up("part2"), lambda: give_up("part10")])
    assert len(active_parts(storage)) == 1
    assert "only part left" in "".join(refused)


def test_a_change_that_is_refused_leaves_the_record_to_the_next_one(storage):
    with pytest.raises(ValueError, match="was not given up"):
        take_back_part(storage, "part1")
    give_up_part(storage, "part1", "x")
    assert "part1" in Withdrawals.read(storage).parts
