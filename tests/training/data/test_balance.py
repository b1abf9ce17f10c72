"""Ranks are given about as much to do, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from streaming import MDSWriter

from model.config import PRESETS
from model.inputs import IGNORE_INDEX, SampleInputs, Visual
from training.data.balance import deal, work_of_rows
from training.data.order import EpochOrder
from training.data.shard_index import ShardIndex
from training.flops import flops, sizes_of
from training.formats.kinds import LONG_VIDEO_KIND, SHORT_VIDEO_KIND, SINGLE_IMAGE_KIND, TEXT_KIND
from training.formats.sample import COLUMNS, Sample, encode
from training.run_config import RunConfig, StreamConfig

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
TEXTS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
MINUTES = [3, 60, 0, 11, 25, 4, 0, 47]  # of the videos of a shard; 0: a text


def numbered(work_NC: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(work_NC.shape[1]), (len(work_NC), 1))


def dealt(work_NC: np.ndarray, ranks: int, groups: list[int]) -> np.ndarray:
    return deal(numbered(work_NC), work_NC, groups, np.zeros((len(work_NC), ranks)))


def loads(dealt_NRS: np.ndarray, work_NC: np.ndarray) -> np.ndarray:
    """Work of each rank, [N, R]."""
    return np.stack([work[dealt] for work, dealt in zip(work_NC, dealt_NRS, strict=True)]).sum(2)


@given(st.data(), st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_every_row_of_a_step_goes_to_one_rank_and_every_rank_gets_equally_many(data, ranks, groups):
    size = ranks * sum(groups)
    work_NC = np.array([data.draw(st.lists(st.floats(0, 1e15), min_size=size, max_size=size))] * 2)
    dealt_NRS = dealt(work_NC, ranks, groups)
    assert dealt_NRS.shape == (2, ranks, sum(groups))
    assert (np.sort(dealt_NRS.reshape(2, -1)) == numbered(work_NC)).all()
    for shares in dealt_NRS[0]:
        for group in np.split(shares, np.cumsum(groups)[:-1]):
            assert (np.diff(group) > 0).all()  # in the order in which they came


def test_two_ranks_are_about_as_even_as_two_ranks_can_be():
    """Beside every way to give each of two ranks four of eight rows."""
    draw = np.random.default_rng(0)
    work_NC = draw.lognormal(sigma=1.5, size=(300, 8))
    ours = loads(dealt(work_NC, 2, [4]), work_NC).max(1)
    halves = np.array(list(combinations(range(8), 4)))
    best = np.maximum(
        work_NC[:, halves].sum(2), work_NC.sum(1)[:, None] - work_NC[:, halves].sum(2)
    )
    ratio = ours / best.min(1)
    assert (ratio >= 1 - 1e-12).all()
    assert ratio.max() < 4 / 3
    assert ratio.mean() < 1.02
    as_they_come = work_NC.reshape(300, 2, 4).sum(2).max(1) / best.min(1)
    assert as_they_come.mean() > 1.2


def test_the_groups_of_a_rank_are_evened_out_too():
    work_NC = np.random.default_rng(1).lognormal(sigma=1.0, size=(50, 64))
    groups = loads(dealt(work_NC, 2, [8] * 4).reshape(50, 8, 8), work_NC)
    as_they_come = work_NC.reshape(50, 8, 8).sum(2)
    least = np.maximum(work_NC.sum(1) / 8, work_NC.max(1))  # of the slowest group
    assert (groups.max(1) / least).mean() < 1.1
    assert (as_they_come.max(1) / least).mean() > 1.4


@pytest.fixture
def run(tmp_path) -> RunConfig:
    """A stream of long videos and texts, in shards of eight rows, and one of images."""
    parts = {f"{LONG_VIDEO_KIND}_part0": [], f"{SINGLE_IMAGE_KIND}_part0": []}
    for number in range(64):
        minutes = MINUTES[number * 5 % len(MINUTES)]
        sample = (
            Sample(f"v{number}", LONG_VIDEO_KIND, "video", TURNS, [], f"a/{number}", minutes * 60.0)
            if minutes
            else Sample(f"t{number}", TEXT_KIND, "text", TEXTS)
        )
        parts[f"{LONG_VIDEO_KIND}_part0"].append(sample)
        image = Sample(f"i{number}", SINGLE_IMAGE_KIND, "image", TURNS, [b"\x89PNG"])
        parts[f"{SINGLE_IMAGE_KIND}_part0"].append(image)
    for part, samples in parts.items():
        with MDSWriter(
            out=str(tmp_path / part), columns=COLUMNS, hashes=["xxh64"], size_limit=2000
        ) as writer:
            for sample in samples:
                writer.write(encode(sample))
    streams = tuple(StreamConfig(part, str(tmp_path), (f"{part}/index.json",)) for part in parts)
    return RunConfig(
        variant="3b", stage=3, start="", out="", streams=streams, global_batch=16, micro_batch=2
    )


def work_of(run: RunConfig) -> tuple[ShardIndex, np.ndarray]:
    index = ShardIndex(run.streams)
    return index, work_of_rows(run, index, PRESETS["3b"], 0, 1, None)


def sample_inputs(seconds: int) -> SampleInputs:
    """What a loader would make of a sample about a stored video, with a text of 400 tokens."""
    ids = torch.zeros(401, dtype=torch.int64)
    labels = ids.clone()
    ids[0], labels[:145] = -200, IGNORE_INDEX
    features = torch.zeros(1).expand(seconds, 64, 1152)
    return SampleInputs("v", ids, labels, [Visual("features", features=features)])


def test_the_work_of_a_row_is_that_of_the_sample_that_is_made_of_it(run):
    index, work = work_of(run)
    assert len(index.shards) > 8
    assert len(work) == 128
    for number in range(64):
        minutes = MINUTES[number * 5 % len(MINUTES)]
        if minutes:
            sizes = sizes_of(sample_inputs(60 * minutes), PRESETS["3b"])
            expected = flops(sizes, PRESETS["3b"], run.modules)
            assert work[number] == pytest.approx(expected, rel=1e-6)
        else:
            assert 0 < work[number] < 0.1 * work[:64].max()
    assert len(set(work[64:])) == 1


def test_ranks_share_the_shards_and_all_know_the_same(run):
    index, expected = work_of(run)
    shares: list = []
    for rank in range(3):
        work_of_rows(
            run, index, PRESETS["3b"], rank, 3, lambda look: shares.append(look()) or shares[-1:]
        )
    assert [len(share) for share in shares] == [
        len(range(len(index.shards))[r::3]) for r in (0, 1, 2)
    ]
    for rank in range(3):
        found = work_of_rows(run, index, PRESETS["3b"], rank, 3, lambda _: shares)
        assert (found == expected).all()


def test_a_damaged_shard_costs_nothing_and_stops_nothing(run, tmp_path):
    index, expected = work_of(run)
    index.damaged[0] = "size"
    shard = index.shards[1]
    (tmp_path / shard.rel).write_bytes(b"?")
    found = work_of_rows(run, index, PRESETS["3b"], 0, 1, None)
    end = int(index.first_row[2])
    assert not found[:end].any()
    assert (found[end:] == expected[end:]).all()


def test_short_videos_cost_less_where_their_features_are_kept(run, tmp_path):
    part = f"{SHORT_VIDEO_KIND}_part0"
    with MDSWriter(out=str(tmp_path / part), columns=COLUMNS, hashes=["xxh64"]) as writer:
        writer.write(encode(Sample("s", SHORT_VIDEO_KIND, "video", TURNS, [], "a.mp4", 20.0)))
    stream = StreamConfig(part, str(tmp_path), (f"{part}/index.json",))
    run = replace(run, streams=(stream,))
    kept = replace(run, short_video_features_root=str(tmp_path))
    assert 0 < 3 * work_of(kept)[1][0] < work_of(run)[1][0]


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("stream_batch", [None, 8])
def test_ranks_are_evened_out_within_the_same_steps(run, ranks, stream_batch):
    run = replace(run, stream_batch=stream_batch, micro_batch=1)
    index, work = work_of(run)
    for epoch in (0, 1):
        plain, dealt = (
            np.stack([EpochOrder(run, index, rank, ranks, by).rows(epoch) for rank in range(ranks)])
            for by in (None, work)
        )
        assert plain.shape == dealt.shape == (ranks, 8, 16 // ranks)
        for step in range(8):
            assert Counter(dealt[:, step].flat) == Counter(plain[:, step].flat)
        slowest = [work[rows].sum(2).max(0).sum() for rows in (plain, dealt)]
        assert slowest[1] < slowest[0]
        if ranks < 8 and stream_batch is None:
            assert slowest[1] < 1.15 * work[dealt].sum() / ranks


def test_one_rank_and_one_rank_a_machine_take_rows_as_they_come(run, monkeypatch):
    index, work = work_of(run)
    assert (
        EpochOrder(run, index, 0, 1, work).rows(0) == EpochOrder(run, index, 0, 1).rows(0)
    ).all()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    apart = replace(run, canonical_nodes=2)  # rows of a video stay on a machine
    for rank in range(2):
        one, other = (EpochOrder(apart, index, rank, 2, by).rows(0) for by in (work, None))
        assert (one == other).all()
