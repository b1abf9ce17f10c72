"""Packing and balancing: pure rules, by property."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from training.data.packing import Budget, balance, first_fit
from training.flops import Sizes

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 400), st.integers(0, 8)), max_size=12)


def sizes(numbers):
    return [
        Sizes(memory=memory, text=text, pictures=pictures) for text, memory, pictures in numbers
    ]


@given(SIZES)
def test_no_pack_of_several_samples_is_above_the_budget(pairs):
    given_sizes, budget = sizes(pairs), Budget(tokens=50, memory=300, pictures=6)
    packs = first_fit(given_sizes, budget)
    assert sorted(itertools.chain.from_iterable(packs)) == list(range(len(pairs)))
    for pack in packs:
        if len(pack) > 1:
            assert sum(given_sizes[i].tokens for i in pack) <= 50
            assert sum(given_sizes[i].memory for i in pack) <= 300
            assert sum(given_sizes[i].pictures for i in pack) <= 6


@given(SIZES, st.integers(0, 4))
def test_a_group_becomes_exactly_as_many_packs_as_the_ranks_agreed_on(pairs, more):
    given_sizes, budget = sizes(pairs), Budget(tokens=50, memory=300, pictures=6)
    work = [float(size.tokens**2 + size.memory) for size in given_sizes]
    count = len(first_fit(given_sizes, budget)) + more
    packs = balance(given_sizes, work, budget, count)
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
        packs = balance(given_sizes, [float(t) for t in texts], budget, 3)
        rows.append([sum(texts[i] for i in pack) for pack in packs])
    in_order = [
        [sum(pair) for pair in zip(texts[::2], texts[1::2], strict=True)] for texts in ranks
    ]
    unsorted = sum(max(pair) for pair in zip(*in_order, strict=True))
    assert sum(max(pair) for pair in zip(*rows, strict=True)) < 0.8 * unsorted
