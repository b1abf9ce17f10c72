"""The steps of an epoch are the same whoever shares them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from streaming import MDSWriter

from training.data.order import EpochOrder
from training.data.shard_index import ShardIndex
from training.formats.kinds import LONG_VIDEO_KIND, TEXT_KIND
from training.formats.sample import COLUMNS, Sample, encode
from training.run_config import RunConfig, StreamConfig

TEXTS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
# Rows that few numbers of ranks divide: one or twenty more would fill another batch of 64.
ROWS = {TEXT_KIND: 5 * 64 - 1, LONG_VIDEO_KIND: 7 * 64 - 20}
MACHINES = [(1, 2), (1, 4), (1, 8), (2, 1), (2, 4), (4, 2), (1, 64), (8, 8)]  # and ranks on each


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunConfig:
    """Two streams, in shards of some tens of rows."""
    root = tmp_path_factory.mktemp("shards")
    for kind, rows in ROWS.items():
        with MDSWriter(
            out=str(root / f"{kind}_part0"), columns=COLUMNS, hashes=["xxh64"], size_limit=5000
        ) as writer:
            for number in range(rows):
                writer.write(encode(Sample(f"{kind}{number}", TEXT_KIND, "text", TEXTS)))
    streams = tuple(StreamConfig(kind, str(root), (f"{kind}_part0/index.json",)) for kind in ROWS)
    return RunConfig(
        variant="3b", stage=3, start="", out="", streams=streams, global_batch=64, micro_batch=1
    )


@pytest.fixture
def orders(monkeypatch):
    """The orders of all ranks on so many machines."""

    def made(run: RunConfig, machines: int, ranks: int, work=None) -> list[EpochOrder]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        index, world = ShardIndex(run.streams), machines * ranks
        return [EpochOrder(run, index, rank, world, work) for rank in range(world)]

    return made


def steps_of(orders: list[EpochOrder], epoch: int = 0) -> np.ndarray:
    """The rows of each step, of all ranks, sorted: [steps, global batch]."""
    return np.sort(np.concatenate([order.rows(epoch) for order in orders], axis=1), axis=1)


@pytest.mark.parametrize("canonical_nodes", [1, 8, 24])
@pytest.mark.parametrize("unit", [{}, {"global_batch": 128, "stream_batch": 64}], ids=["", "parts"])
@pytest.mark.parametrize("even", [False, True], ids=["as they come", "evened out"])
def test_every_number_of_ranks_and_machines_takes_the_same_rows_in_each_step(
    run, orders, canonical_nodes, unit, even
):
    run = replace(run, canonical_nodes=canonical_nodes, **unit)
    work = np.random.default_rng(0).lognormal(size=sum(ROWS.values())) if even else None
    alone = [steps_of(orders(run, 1, 1), epoch) for epoch in (0, 1)]
    assert len(alone[0]) == (4 + 6) * 64 // run.recipe.global_batch
    for number, (machines, ranks) in enumerate(MACHINES):
        epoch = number % 2
        shared = steps_of(orders(run, machines, ranks, work), epoch)
        assert np.array_equal(shared, alone[epoch]), (machines, ranks)


@pytest.mark.parametrize("canonical_nodes", [1, 2, 7, 24])
@pytest.mark.parametrize("rows", [(256, 384), (257, 385), (300, 400), (319, 428)])
def test_an_epoch_repeats_no_row_and_leaves_out_less_than_a_batch_of_each_stream(
    run, orders, canonical_nodes, rows
):
    limits = dict(zip(ROWS, rows, strict=True))
    run = replace(run, canonical_nodes=canonical_nodes, rows=limits)
    index = ShardIndex(run.streams, rows=run.rows)
    read = np.concatenate([EpochOrder(run, index, rank, 2).rows(0) for rank in range(2)], axis=1)
    assert len(np.unique(read)) == read.size
    streams = [{index.stream_of(row) for row in step} for step in read.tolist()]
    assert [streams.count({number}) for number in (0, 1)] == [count // 64 for count in rows]


@pytest.mark.parametrize("before", [(1, 8), (8, 8), (2, 4)])
def test_an_epoch_that_goes_on_with_other_ranks_reads_what_was_not_read(run, orders, before):
    run = replace(run, canonical_nodes=8)
    whole = steps_of(orders(run, 1, 1))
    for after in [(1, 1), (1, 2), (4, 2), (1, 64)]:
        first, then = orders(run, *before), orders(run, *after)
        assert first[0].identity == then[0].identity
        read = np.concatenate([steps_of(first)[:3], steps_of(then)[3:]])
        assert np.array_equal(np.unique(read), np.unique(whole))
        assert len(np.unique(read)) == read.size


@pytest.mark.parametrize("machines", [2, 4])
def test_a_machine_reads_the_same_rows_in_every_epoch(run, monkeypatch, machines):
    """So it needs the feature files of its own videos only."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run = replace(run, canonical_nodes=4, rows={TEXT_KIND: 256, LONG_VIDEO_KIND: 384})
    index = ShardIndex(run.streams, rows=run.rows)
    read = [
        {
            row
            for rank in range(2)
            for row in EpochOrder(run, index, 2 * machine + rank, 2 * machines).rows(epoch).flat
        }
        for machine in range(machines)
        for epoch in (0, 1)
    ]
    assert all(read[2 * n] == read[2 * n + 1] for n in range(machines))
