"""The loader: exact order and resumption, one stream a step, and every kind of damage in its own
place.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import Stream, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.world import World

from assets.deployment.parts import part_of
from tests.model.media import tricky
from tests.training.shard_runs import FRAMES, ShardCorpus, WithoutImages, features_of, make_corpus
from training.data.loader import ShardLoader, build_loader, look_at_data
from training.data.order import EpochOrder
from training.data.shard_index import ShardIndex
from training.data.worker_pool import workers_of
from training.formats import receipts
from training.formats.feature_file import HEADER_ROOM
from training.formats.hashing import seed_of
from training.formats.mds_columns import ShardColumns
from training.run_config import StreamConfig

# Rows of each kind that leave three of a global batch of four: one more would fill it.
UNEVEN = {"llavavideo_si": 23, "llavavideo_text": 0, "videomarathon_video": 39}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> ShardCorpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def corpus(pristine, tmp_path) -> ShardCorpus:
    """A copy that may be damaged."""
    shutil.copytree(pristine.root, tmp_path / "corpus")
    return ShardCorpus(tmp_path / "corpus", pristine.processor)


def loader_of(
    corpus: ShardCorpus, rank: int = 0, world: int = 1, with_images: bool = False, **changes
) -> ShardLoader:
    """A loader that leaves images out of its samples, which is quick, unless asked not to: most
    tests are about which samples there are, not what is in them.
    """
    processor = (
        corpus.processor
        if with_images
        else WithoutImages(corpus.processor.config, corpus.processor.tokenizer)
    )
    return build_loader(corpus.run(**changes), processor, rank, world)


def ids(loader: ShardLoader) -> list[list[str]]:
    return [batch.sample_ids for batch in loader]


def steps(batches: list[list[str]], accumulation: int) -> list[list[str]]:
    """Sample ids of each optimizer step."""
    return [
        list(chain(*batches[place : place + accumulation]))
        for place in range(0, len(batches), accumulation)
    ]


def test_an_epoch_has_every_sample_at_most_once_and_leaves_out_less_than_a_global_batch_of_a_stream(
    pristine,
):
    loader = loader_of(pristine)
    batches = list(loader)
    assert len(batches) == len(loader) == loader.steps_per_epoch * 2
    seen = [name for batch in batches for name in batch.sample_ids]
    assert len(set(seen)) == len(seen)
    by_stream = Counter(batch.stream for batch in batches for _ in batch.samples)
    assert (by_stream[0], by_stream[1]) == (120, 64)
    assert {
        name.startswith("panda/") for batch in batches if batch.stream for name in batch.sample_ids
    } == {True}
    assert not any(batch.dropped for batch in batches)


def test_all_batches_of_a_step_are_of_one_stream_and_streams_are_mixed(pristine):
    streams = [batch.stream for batch in loader_of(pristine, global_batch=8)]
    per_step = np.array(streams).reshape(-1, 4)
    assert (per_step == per_step[:, :1]).all()
    order = per_step[:, 0]
    assert (
        0 < np.count_nonzero(np.diff(order)) < len(order) - 1
        or len(set(order[: len(order) // 2])) == 2
    )


def test_epochs_differ_and_the_same_epoch_does_not(pristine):
    one, two = loader_of(pristine), loader_of(pristine)
    first, second = ids(one), ids(one)
    assert (first, second) == (ids(two), ids(two))
    assert first != second
    assert {name for batch in first for name in batch} == {
        name for batch in second for name in batch
    }
    assert ids(loader_of(pristine, seed="other")) != first


@pytest.mark.slow
@pytest.mark.parametrize("canonical", [1, 2])
@pytest.mark.parametrize("rows", [None, UNEVEN], ids=["even", "uneven"])
def test_the_samples_of_each_step_do_not_depend_on_the_number_of_ranks(pristine, canonical, rows):
    found = []
    for world in (1, 2, 4):
        ranks = [
            loader_of(pristine, rank, world, canonical_nodes=canonical, rows=rows)
            for rank in range(world)
        ]
        accumulation = ranks[0].accumulation
        per_rank = [steps(ids(loader), accumulation) for loader in ranks]
        found.append([set(chain(*shares)) for shares in zip(*per_rank, strict=True)])
    assert found[0] == found[1] == found[2]
    assert all(len(step) == 4 for step in found[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("taken", "rows"), [(0, None), (1, None), (7, None), (45, None), (7, UNEVEN)]
)
def test_resuming_gives_exactly_the_remaining_samples(pristine, taken, rows):
    whole = ids(loader_of(pristine, rows=rows))
    loader = loader_of(pristine, rows=rows)
    batches = iter(loader)
    head = [next(batches).sample_ids for _ in range(2 * taken)]
    state = json.loads(json.dumps(loader.state_dict()))
    batches.close()
    for world in (1, 2, 4):
        ranks = [loader_of(pristine, rank, world, rows=rows) for rank in range(world)]
        tails = []
        for resumed in ranks:
            resumed.load_state_dict(state)
            tails.append(steps(ids(resumed), resumed.accumulation))
        tail = [set(chain(*shares)) for shares in zip(*tails, strict=True)]
        assert [set(step) for step in steps(head, 2)] + tail == [
            set(step) for step in steps(whole, 2)
        ]


def test_the_state_at_the_end_of_an_epoch_goes_on_with_the_next_one(pristine):
    loader = loader_of(pristine)
    ids(loader)
    state = loader.state_dict()
    second = ids(loader)
    resumed = loader_of(pristine)
    resumed.load_state_dict(state)
    assert resumed.epoch == 1
    assert ids(resumed) == second


def test_a_position_is_refused_when_it_comes_late_belongs_elsewhere_or_is_within_a_step(pristine):
    loader = loader_of(pristine)
    state = loader.state_dict()
    other = loader_of(pristine, shuffle_block=32)
    with pytest.raises(ValueError, match="belongs to other shards, or another seed"):
        other.load_state_dict(state)
    # As releases wrote it whose order depended on the number of ranks.
    with pytest.raises(ValueError, match="rename the folder 'state' of the run"):
        loader.load_state_dict({**state, "identity": "61dc33a7"})
    batches = iter(loader)
    next(batches)
    with pytest.raises(RuntimeError, match="1 of 2 batches of this step are taken"):
        loader.state_dict()
    with pytest.raises(RuntimeError, match="before the first batch"):
        loader.load_state_dict(state)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_batches_also_after_resuming(pristine):
    whole = list(loader_of(pristine, with_images=True))
    for workers in (1, 3):
        loader = loader_of(pristine, with_images=True, workers=workers)
        try:
            found = list(loader)
            assert [batch.sample_ids for batch in found] == [batch.sample_ids for batch in whole]
            for one, two in zip(whole, found, strict=True):
                for mine, theirs in zip(one.samples, two.samples, strict=True):
                    assert torch.equal(mine.input_ids, theirs.input_ids)
                    assert mine.seed == theirs.seed
                    visual, other = mine.visuals[0], theirs.visuals[0]
                    tensor = visual.pixels if visual.pixels is not None else visual.features
                    assert torch.equal(
                        tensor, other.pixels if other.pixels is not None else other.features
                    )
            second = ids(loader)
        finally:
            loader.close()
        resumed = loader_of(pristine, workers=4 - workers)
        try:
            resumed.load_state_dict({**loader.state_dict(), "epoch": 1, "step": 5})
            assert ids(resumed) == second[10:]
        finally:
            resumed.close()


def test_stored_features_arrive_whole_and_belong_to_their_sample(pristine):
    seen = set()
    for batch in loader_of(pristine):
        for sample in batch.samples if batch.stream else []:
            seen.add(sample.id)
            features = sample.visuals[0].features
            assert features.shape[0] == FRAMES
            assert torch.equal(features, features_of(sample.id.partition("#")[0]))
            assert sample.seed == seed_of("hour-llava", 0, sample.id)
    assert len(seen) == 64


def test_short_videos_are_decoded(pristine):
    loader = build_loader(pristine.short_run(), pristine.processor, 0, 1)
    batch = next(iter(loader))
    assert batch.samples[0].visuals[0].kind == "frames"
    assert batch.samples[0].visuals[0].pixels.dtype == torch.uint8


# --- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "missing": Path.unlink,
    "cut short": cut,
    "empty": lambda path: path.write_bytes(b""),
    "one bit": flip,
}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_left_out_and_everything_else_keeps_its_place(corpus, damage, workers):
    whole = list(loader_of(corpus))
    names = {name: batch.stream for batch in whole for name in batch.sample_ids}
    expected = [batch.sample_ids for batch in whole]
    shard = corpus.root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00001.mds"
    DAMAGES[damage](shard)
    loader = loader_of(corpus, workers=workers, max_dropped_share=0.2)
    try:
        began = time.monotonic()
        batches = list(loader)
        assert time.monotonic() - began < 50
    finally:
        loader.close()
    lost = {name for names_of in expected for name in names_of} - {
        n for batch in batches for n in batch.sample_ids
    }
    assert len(lost) == 8
    assert {names[name] for name in lost} == {1}
    assert [[name for name in step if name not in lost] for step in expected] == [
        b.sample_ids for b in batches
    ]
    assert loader.report() == {"damaged shard": 8}
    dropped = [item for batch in batches for item in batch.dropped]
    assert sorted(name for name, _ in dropped) == [
        f"videomarathon_video_part0/shard.00001.mds#{n}" for n in range(8)
    ]


def test_too_many_damaged_shards_stop_the_run_before_it_begins_and_are_named(corpus):
    flip(corpus.root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00001.mds")
    with pytest.raises(
        ValueError,
        match=r"before training: 8 of 184 samples \(4.35%\) cannot be used: damaged shard: 8 "
        r"samples \(.*shard.00001.mds has other content\): materialize these parts again",
    ):
        loader_of(corpus, max_dropped_share=0.02)


def test_a_shard_that_breaks_while_training_is_noticed_row_by_row(corpus):
    loader = loader_of(corpus, max_dropped_share=0.5)
    (corpus.root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00001.mds").unlink()
    batches = list(loader)
    assert sum(len(batch.dropped) for batch in batches) == 8
    assert loader.report() == {"damaged shard": 8}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "features missing"),
        (cut, "features damaged"),
        (lambda p: p.write_bytes(b"x" * 9000), "features damaged"),
    ],
)
def test_samples_without_usable_features_are_left_out_and_named(corpus, damage, reason):
    damage(corpus.root / "features/panda/p1v3.safetensors")
    loader = loader_of(corpus, max_dropped_share=0.2)
    batches = list(loader)
    assert loader.report() == {reason: 4}
    dropped = sorted(item for batch in batches for item in batch.dropped)
    assert dropped == [(f"panda/p1v3#1-{n}", reason) for n in range(4)]
    assert not any("p1v3" in name for batch in batches for name in batch.sample_ids)


def test_the_share_of_dropped_samples_goes_on_counting_after_a_resume(corpus):
    loader = loader_of(corpus, max_dropped_share=0.06)
    state = loader.state_dict()
    for before, allowed in ((2, True), (9, False)):  # of 184
        again = loader_of(corpus, max_dropped_share=0.06)
        again.load_state_dict({**state, "dropped": before})
        (corpus.root / "features/panda/p1v3.safetensors").rename(corpus.root / "away")
        try:
            if allowed:
                assert sum(len(batch.dropped) for batch in again) == 4
            else:
                with pytest.raises(ValueError, match=r"9 before this start.*max_dropped_share"):
                    list(again)
        finally:
            (corpus.root / "away").rename(corpus.root / "features/panda/p1v3.safetensors")


def test_what_is_missing_is_known_before_the_first_step_and_allowed_once(corpus):
    """One of 16 feature files ended a run after step 19 of 66, although it could be known."""
    (corpus.root / "features/panda/p1v3.safetensors").unlink()
    (corpus.root / "features/panda/p1v3.quarantine.json").write_text("{}")
    cut(corpus.root / "features/panda/p0v2.safetensors")
    with pytest.raises(
        ValueError,
        match=r"before training: 8 of 184 samples \(4.35%\) cannot be used: features damaged: 4 "
        r"samples \(panda/p0v2: .* promises .*\): materialize features, or "
        r"short_video_features, of their parts again; "
        r"features missing: 4 samples \(panda/p1v3: quarantined by the extraction\).*so nothing "
        r"was trained. Mend them and start again, or accept the loss with a larger max_dropped_",
    ):
        loader_of(corpus, max_dropped_share=0.04)
    loader = loader_of(corpus, max_dropped_share=0.05)
    (table,) = loader.notes
    assert "features missing  4        2.174%  panda/p1v3: quarantined by the extra" in table
    assert sum(len(batch.dropped) for batch in loader) == 8
    assert loader.report() == {"features damaged": 4, "features missing": 4}


def test_losses_that_were_allowed_before_training_do_not_end_it_where_they_lie_close(corpus):
    """They are 4 % of all samples and a quarter of one rank's: allowed is allowed."""
    for number in (0, 1):
        (corpus.root / f"features/panda/p1v{number}.safetensors").unlink()
    long = corpus.run().streams[1]
    for rank in range(2):
        loader = loader_of(corpus, rank, 2, streams=(long,), max_dropped_share=0.13)
        list(loader)
    loader = loader_of(corpus, max_dropped_share=0.05)
    cut(corpus.root / "features/panda/p0v3.safetensors")
    with pytest.raises(
        ValueError, match=r"samples of this rank .*, with the 4.35% known before training"
    ):
        list(loader)


def test_random_bytes_or_one_nan_cost_that_sample_alone_and_it_is_named(corpus):
    expected = ids(loader_of(corpus))
    loader = loader_of(corpus, max_dropped_share=0.1)
    nan, noise, bit = (corpus.root / f"features/panda/p0v{n}.safetensors" for n in (1, 4, 6))
    size = noise.stat().st_size
    for path, place, data in (
        (nan, HEADER_ROOM + 4000, b"\xc0\x7f"),
        (noise, HEADER_ROOM, np.random.default_rng(0).bytes(size // 2)),
        (bit, size // 2, b"\x01"),
    ):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(data)
    batches = list(loader)
    hurt = ("panda/p0v1#", "panda/p0v4#", "panda/p0v6#")
    assert [b.sample_ids for b in batches] == [
        [name for name in step if not name.startswith(hurt)] for step in expected
    ]
    assert loader.report() == {"features damaged": 12}
    for batch in batches:
        for sample in batch.samples if batch.stream else []:
            assert torch.isfinite(sample.visuals[0].features).all()


def test_ranks_share_the_look_at_the_data_and_agree(corpus):
    (corpus.root / "features/panda/p1v3.safetensors").unlink()
    flip(corpus.root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00001.mds")
    run = corpus.run(max_dropped_share=0.2)
    alone = look_at_data(run, ShardIndex(run.streams), 0, 1, None)
    meeting, box = threading.Barrier(3), {}

    def gather(rank, look):
        box[rank] = look()
        meeting.wait()
        found = [box[number] for number in range(3)]
        meeting.wait()
        return found

    with ThreadPoolExecutor(3) as pool:
        found = pool.map(
            lambda rank: look_at_data(
                run, ShardIndex(run.streams), rank, 3, functools.partial(gather, rank)
            ),
            range(3),
        )
        assert [losses.counts for losses in found] == [alone.counts] * 3
    assert alone.counts == {"damaged shard": 8, "features missing": 4}


def test_shards_that_were_whole_are_not_hashed_again_until_they_change(corpus, monkeypatch):
    hashed = []
    real = receipts._hash
    monkeypatch.setattr(receipts, "_hash", lambda *a: hashed.append(a[1]) or real(*a))
    fields = {"out": str(corpus.root / "out"), "max_dropped_share": 0.2}
    time.sleep(0.2)  # a file system counts time in ticks
    loader_of(corpus, **fields)
    assert len(hashed) == len(ShardIndex(corpus.run().streams).shards)
    hashed.clear()
    loader_of(corpus, **fields)
    assert hashed == []
    flip(corpus.root / "VideoMarathon/sharding/videomarathon_video_part0/shard.00001.mds")
    assert loader_of(corpus, **fields).losses.counts == {"damaged shard": 8}
    assert hashed == ["videomarathon_video_part0/shard.00001.mds"]


def test_short_videos_that_are_missing_or_broken_are_told_apart(corpus):
    videos = corpus.root / "LLaVA-Video-178K/videos/a"
    (videos / "3.mp4").unlink()
    (videos / "4.mp4").write_bytes(b"<html>not found</html>")
    run = corpus.short_run(
        parts=(part_of("video a/3.mp4", 10), part_of("video a/4.mp4", 10)),
        global_batch=1,
        max_dropped_share=0.9,
    )
    loader = build_loader(run, corpus.processor, 0, 1)
    list(loader)
    assert loader.report() == {"video missing": 3, "video not media": 3}


def test_short_videos_that_are_damaged_are_trained_on_counted_and_named(corpus, caplog):
    videos = corpus.root / "LLaVA-Video-178K/videos/a"
    tricky.by_name("flipped_bits.mp4", videos).rename(videos / "3.mp4")
    run = corpus.short_run(parts=(part_of("video a/3.mp4", 10),), global_batch=1)
    loader = build_loader(run, corpus.processor, 0, 1)
    list(loader)
    assert (loader.damaged, loader.report()) == (3, {})
    said = r"the video of sample (\S+) is damaged: (\d+) pictures that the decoder mended"
    named = dict(re.findall(said, caplog.text))
    assert len(named) == 3
    # 9 or 10 of 90: the same bytes and places, decoded in another process, may give one more.
    assert set(named.values()) <= {"9", "10"}


def test_samples_that_are_too_long_are_counted_and_never_cut(pristine):
    loader = loader_of(pristine, with_images=True, max_dropped_share=1.0, max_length=100)
    batches = list(loader)
    assert set(loader.report()) == {"too long"}
    assert loader.report()["too long"] == sum(len(batch.dropped) for batch in batches)
    assert all(len(batch.samples) + len(batch.dropped) == 2 for batch in batches)


def test_more_losses_than_allowed_stop_the_run_with_the_reasons(corpus):
    loader = loader_of(corpus, max_dropped_share=0.05)
    for number in range(8):
        (corpus.root / f"features/panda/p1v{number}.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"10 samples of this rank could not be used \(10 features missing\)"
    ):
        list(loader)


@pytest.mark.slow
def test_a_worker_that_gives_nothing_raises_in_time(corpus):
    loader = loader_of(corpus, workers=1, data_timeout_s=10.0)
    batches = iter(loader)
    next(batches)
    (worker,) = loader.workers.pids()
    os.kill(worker, 19)  # SIGSTOP: it is alive and does nothing
    try:
        with pytest.raises(RuntimeError, match="timed out"):
            for _ in batches:
                pass
    finally:
        os.kill(worker, 9)
        loader.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cores", "ranks", "wanted", "processes"),
    [
        (16, 1, None, 12),
        (128, 8, None, 12),
        (8, 1, None, 6),
        (2, 1, None, 2),
        (32, 8, None, 2),
        (16, 1, 0, 0),
        (2, 1, 5, 5),
    ],
)
def test_a_rank_gets_as_many_workers_as_its_share_of_the_cores_feeds(
    monkeypatch, cores, ranks, wanted, processes
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert workers_of(wanted) == processes


@pytest.mark.slow
def test_closing_ends_all_workers_at_once_also_one_that_hangs(pristine):
    loader = loader_of(pristine, workers=2)
    next(iter(loader))
    pids = loader.workers.pids()
    assert len(set(pids)) == 2
    os.kill(pids[0], 19)  # SIGSTOP
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 5
    assert not [pid for pid in pids if is_running(pid)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_no_private_name_of_a_library_is_used():
    found = []
    for path in sorted(Path("training").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("torch", "streaming")
            ):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [f"{path}: {name}" for name in names if name.startswith("_")]
            if isinstance(node, ast.Attribute) and node.attr in ("_iterator", "_shutdown_workers"):
                found.append(f"{path}: {node.attr}")
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_part_of_a_batch_may_be_of_one_stream_instead_of_all_of_it(pristine, world):
    def steps_of(world, **changes):
        ranks = [
            list(loader_of(pristine, rank, world, global_batch=8, micro_batch=2, **changes))
            for rank in range(world)
        ]
        micro_steps = [
            (
                {batch.stream for batch in batches},
                {name for batch in batches for name in batch.sample_ids},
            )
            for batches in zip(*ranks, strict=True)
        ]
        assert all(len(streams) == 1 for streams, _ in micro_steps)
        per_step = 8 // 2 // world
        return [micro_steps[n : n + per_step] for n in range(0, len(micro_steps), per_step)]

    plain = steps_of(world)
    assert all(len({s for streams, _ in step for s in streams}) == 1 for step in plain)
    parts = steps_of(world, stream_batch=4)
    mixed = [step for step in parts if len({s for streams, _ in step for s in streams}) == 2]
    assert 0.2 < len(mixed) / len(parts) < 0.8
    names = [name for step in parts for _, found in step for name in found]
    assert len(set(names)) == len(names) >= 176
    alone = [set().union(*(found for _, found in step)) for step in steps_of(1, stream_batch=4)]
    assert [set().union(*(found for _, found in step)) for step in parts] == alone


def test_a_stream_batch_that_does_not_fit_is_refused(pristine):
    for fields in ({"stream_batch": 3}, {"stream_batch": 1}):
        with pytest.raises(ValueError, match=r"stream_batch \d has to divide the global batch 4"):
            loader_of(pristine, 0, 2, **fields)


# --- indexes


def images_only(corpus: ShardCorpus, index: str = "llavavideo_si_part0/index.json") -> StreamConfig:
    return StreamConfig("images", str(corpus.root / "VideoMarathon/sharding"), (index,))


def edit(corpus: ShardCorpus, **changes) -> None:
    path = corpus.root / "VideoMarathon/sharding/llavavideo_si_part0/index.json"
    content = json.loads(path.read_text())
    content["shards"][0]["raw_data"].update(changes)
    path.write_text(json.dumps(content))


def test_indexes_that_are_missing_or_broken_or_lead_elsewhere_are_errors(corpus):
    with pytest.raises(FileNotFoundError, match=r"nowhere/index.json: no such index"):
        loader_of(corpus, streams=(images_only(corpus, "nowhere/index.json"),))
    for name in ("../../../etc/passwd", "/etc/passwd"):
        edit(corpus, basename=name)
        with pytest.raises(ValueError, match="leaves its folder"):
            loader_of(corpus, streams=(images_only(corpus),))
    (corpus.root / "VideoMarathon/sharding/llavavideo_si_part0/index.json").write_text(
        '{"shards": ['
    )
    with pytest.raises(ValueError, match="not a JSON index"):
        loader_of(corpus, streams=(images_only(corpus),))


def test_a_stream_smaller_than_a_global_batch_is_an_error_that_says_so(pristine):
    with pytest.raises(
        ValueError, match=r"stream 'images' has \d+ samples, fewer than the global batch of 64"
    ):
        loader_of(pristine, streams=(images_only(pristine),), global_batch=64)


def test_a_remote_root_reads_the_same_through_a_bounded_cache(pristine, tmp_path):
    import fsspec

    sharding = pristine.root / "VideoMarathon/sharding"
    memory = fsspec.filesystem("memory")
    root = f"memory://{tmp_path.name}"
    for path in sharding.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/{tmp_path.name}/{path.relative_to(sharding)}", path.read_bytes())
    run = pristine.run()
    remote = tuple(StreamConfig(stream.name, root, stream.indexes) for stream in run.streams)
    expected = ids(loader_of(pristine))
    run = pristine.run(streams=remote)
    index = ShardIndex(remote)
    order = EpochOrder(run, index, 0, 1)
    largest = max(shard.bytes for shard in index.shards)
    for cache in index.caches:
        cache.folder, cache.max_bytes = tmp_path / "cache", 3 * largest
    processor = WithoutImages(pristine.processor.config, pristine.processor.tokenizer)
    losses = look_at_data(run, index, 0, 1, None)
    loader = ShardLoader(run, processor, index, order, losses)
    assert ids(loader) == expected
    held = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*"))
    assert 0 < held <= 3 * largest

    broken = f"/{tmp_path.name}/videomarathon_video_part0/shard.00001.mds"
    memory.pipe_file(broken, memory.cat_file(broken)[:-1] + b"?")
    shutil.rmtree(tmp_path / "cache")
    lenient = pristine.run(streams=remote, max_dropped_share=0.5)
    losses = look_at_data(lenient, index, 0, 1, None)
    assert losses.counts == {"damaged shard": 8}
    again = ShardLoader(lenient, processor, index, order, losses)
    ids(again)
    assert again.report() == {"damaged shard": 8}


# --- order


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 1), (1, 2), (2, 1)])
def test_the_order_is_that_of_a_plain_streaming_dataset(pristine, monkeypatch, nodes, per_node):
    sharding = pristine.root / "VideoMarathon/sharding"
    parts = ("llavavideo_si_part0", "videomarathon_video_part0")
    streams = tuple(StreamConfig(part, str(sharding), (f"{part}/index.json",)) for part in parts)
    run = pristine.run(streams=streams, global_batch=4, micro_batch=2, shuffle_block=24)
    world = nodes * per_node
    plain = StreamingDataset(
        streams=[Stream(local=str(sharding / part)) for part in parts],
        batch_size=4 // world,
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_seed=seed_of(run.seed, "shuffle"),
        shuffle_block_size=24,
        num_canonical_nodes=run.canonical_nodes,
        batching_method="per_stream",
    )
    for stream in plain.streams:
        stream.proportion = (
            1.0  # which says how much of the block it gets; here each has one of its own
        )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
    for rank in range(world):
        for epoch in (0, 1):
            work = generate_work("per_stream", plain, World(nodes, per_node, 1, rank), epoch, 0)
            expected = work[rank // per_node, rank % per_node, 0]
            order = EpochOrder(run, ShardIndex(run.streams), rank, world).rows(epoch)
            assert len(order) > 5
            assert np.array_equal(order, expected[(expected >= 0).all(axis=1)])


@pytest.mark.parametrize("limits", [{"llavavideo_si": 23, "videomarathon_video": 40}, {}])
def test_a_limited_kind_is_read_from_the_beginning_of_each_of_its_shards(pristine, limits):
    """An independent count: rows of the whole index, shard by shard."""
    run = pristine.run(rows=limits, global_batch=1, micro_batch=1)
    whole, limited = ShardIndex(run.streams), ShardIndex(run.streams, rows=run.rows)
    of_kind = {
        kind: [shard for shard in whole.shards if f"/{kind}_part" in f"/{shard.rel}"]
        for kind in ("llavavideo_si", "videomarathon_video")
    }
    read = Counter(
        {shard.rel: shard.samples for shard in limited.shards},
    )
    for kind, shards in of_kind.items():
        total = sum(shard.samples for shard in shards)
        wanted = limits.get(kind, total)
        assert sum(read[shard.rel] for shard in shards) == wanted
        for shard in shards:
            assert abs(read[shard.rel] - shard.samples * wanted / total) < 1
    loader = loader_of(pristine, rows=limits, global_batch=1, micro_batch=1)
    rows = [row for batch in loader for row in batch.sample_ids]
    assert len(rows) == len(set(rows)) == len(limited)
    places = dict(map(loader._dataset.rows.place, range(len(limited))))
    assert all(place == read[name] - 1 for name, place in places.items())


def test_more_rows_than_there_are_are_refused(pristine):
    with pytest.raises(
        ValueError, match=r"rows: 9,999 of llavavideo_si are asked for, and .* hold"
    ):
        loader_of(pristine, rows={"llavavideo_si": 9999})


def test_rows_of_one_video_are_read_close_together_while_a_batch_mixes_videos(pristine):
    """The point of grouped rows and a small block: few feature files are open at a time, yet
    batches are mixed.
    """
    loader = loader_of(
        pristine, streams=(pristine.run().streams[1],), shuffle_block=16, global_batch=4
    )
    order = [name.partition("#")[0] for batch in loader for name in batch.sample_ids]
    reach = {video: len(order) - order[::-1].index(video) - order.index(video) for video in order}
    assert max(reach.values()) <= 2 * 16
    distinct = np.mean([len(set(order[place : place + 4])) for place in range(0, len(order), 4)])
    assert distinct > 2


def test_single_columns_of_a_shard_are_those_of_the_librarys_reader(pristine):
    index = ShardIndex(pristine.run().streams)
    for number in (0, len(index.shards) - 1):
        shard, reader = index.shards[number], index.readers[number]
        path = Path(index.storages[shard.stream].path(shard.rel))
        reader.dirname, reader.raw_data.basename = str(path.parent), path.name
        columns = ShardColumns(
            np.memmap(path, np.uint8, "r"), reader.column_names, reader.column_sizes
        )
        rows = [reader[place] for place in range(shard.samples)]
        for name in ("id", "kind", "video"):
            assert columns.text(name) == [row[name] for row in rows]
            assert columns.counts(name) == Counter(row[name] for row in rows)
        assert columns.fixed("duration", "<f8").tolist() == [row["duration"] for row in rows]
        for end in (3, 40, len(columns.data) - 1):
            cut_short = ShardColumns(
                columns.data[:end], reader.column_names, reader.column_sizes, "x.mds"
            )
            with pytest.raises(ValueError, match=r"x.mds: not the shard that its index describes"):
                cut_short.text("id")
