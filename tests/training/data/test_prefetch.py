"""Packing and balancing: pure rules by property, and the thread that applies them."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PRESETS
from tests.training.in_memory import Behaviour, MemoryLoader, lone_rank, make_run, tiny_base
from training.data.prefetch import Budget, Feed, fill, spread
from training.flops import Sizes

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 400), st.integers(0, 8)), max_size=12)


def sizes(numbers):
    return [
        Sizes(memory=memory, text=text, pictures=pictures) for text, memory, pictures in numbers
    ]


@given(SIZES)
def test_no_pack_of_several_samples_is_above_the_budget(pairs):
    given_sizes, budget = sizes(pairs), Budget(tokens=50, memory=300, pictures=6)
    packs = fill(given_sizes, budget)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(pairs)))
    for pack in packs:
        if len(pack) > 1:
            assert sum(given_sizes[i].tokens for i in pack) <= 50
            assert sum(given_sizes[i].memory for i in pack) <= 300
            assert sum(given_sizes[i].pictures for i in pack) <= 6


@given(SIZES, st.integers(0, 4))
def test_a_window_becomes_exactly_as_many_packs_as_the_ranks_agreed_on(pairs, more):
    given_sizes, budget = sizes(pairs), Budget(tokens=50, memory=300, pictures=6)
    work = [float(size.tokens**2 + size.memory) for size in given_sizes]
    count = len(fill(given_sizes, budget)) + more
    packs = spread(given_sizes, work, budget, count)
    assert len(packs) == count
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(pairs)))
    loads = [sum(work[i] for i in pack) for pack in packs]
    assert loads == sorted(loads, reverse=True)
    for pack in packs:
        if len(pack) > 1:
            assert sum(given_sizes[i].tokens for i in pack) <= 50
            assert sum(given_sizes[i].memory for i in pack) <= 300
            assert sum(given_sizes[i].pictures for i in pack) <= 6


def test_packs_of_the_same_number_are_about_as_long_on_every_rank():
    budget = Budget(tokens=1000, memory=10**9, pictures=0)
    ranks = [[900, 100, 80, 850, 60, 100], [120, 870, 90, 70, 910, 60]]
    rows = []
    for texts in ranks:
        given_sizes = sizes([(text, 0, 0) for text in texts])
        packs = spread(given_sizes, [float(t) for t in texts], budget, 3)
        rows.append([sum(texts[i] for i in pack) for pack in packs])
    in_order = [
        [sum(pair) for pair in zip(texts[::2], texts[1::2], strict=True)] for texts in ranks
    ]
    unsorted = sum(max(pair) for pair in zip(*in_order, strict=True))
    assert sum(max(pair) for pair in zip(*rows, strict=True)) < 0.8 * unsorted


def feed_of(run, loader, ranks, steps):
    micro, accumulation = run.batches(1)
    config = PRESETS["tiny"]
    return Feed(
        loader, steps, accumulation, micro, Budget(200, 4000, 16), config, run.modules, ranks
    )


@pytest.fixture
def processor():
    from transformers import AutoTokenizer

    from model.processor import Processor

    return Processor(PRESETS["tiny"], AutoTokenizer.from_pretrained(tiny_base()))


def test_windows_carry_every_sample_once_and_the_position_at_the_end_of_each_step(
    tmp_path, processor
):
    run = make_run(tmp_path, global_batch=16, micro_batch=4)
    with lone_rank() as ranks:
        loader = MemoryLoader(run, processor, 0, 1)
        windows = list(
            feed_of(run, loader, ranks, steps=6)
        )  # an epoch is 4 steps: it goes on in the next one
    assert sum(window.ends_step for window in windows) == 6
    assert [len(window.sample_ids) for window in windows] == [8] * 12
    for window in windows:
        assert sorted(sample.id for pack in window.packs for sample in pack.samples) == sorted(
            window.sample_ids
        )
        assert (window.position is not None) == window.ends_step
    assert [w.position for w in windows if w.ends_step][:4] == [
        {"epoch": 0, "step": step} for step in (1, 2, 3, 4)
    ]
    first = [name for window in windows[:8] for name in window.sample_ids]
    assert len(set(first)) == 64


def test_an_error_of_the_loader_is_raised_where_the_data_is_used(tmp_path, processor):
    run = make_run(tmp_path)
    with lone_rank() as ranks:
        feed = feed_of(
            run, MemoryLoader(run, processor, 0, 1, Behaviour(crash_at=2)), ranks, steps=8
        )
        found = []
        with pytest.raises(RuntimeError, match="told to fail"):
            found.extend(iter(feed))
    assert len(found) <= 2


def test_a_loader_that_yields_nothing_is_an_error_and_not_an_endless_wait(tmp_path, processor):
    run = make_run(tmp_path)
    with lone_rank() as ranks, pytest.raises(RuntimeError, match="the data loader yields nothing"):
        list(feed_of(run, MemoryLoader(run, processor, 0, 1, Behaviour(count=3)), ranks, steps=1))


def test_leaving_early_ends_the_thread(tmp_path, processor):
    run = make_run(tmp_path)
    with lone_rank() as ranks:
        windows = iter(feed_of(run, MemoryLoader(run, processor, 0, 1), ranks, steps=8))
        next(windows)
        windows.close()
        assert not any(thread.name == "feed" for thread in threading.enumerate())
