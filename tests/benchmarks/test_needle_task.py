"""The needle task asks what it says it asks, and is laid out as real samples are."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.needle_run import Lesson, NeedleRun, answers, course, examine, run_needle
from benchmarks.needle_task import (
    ARMS,
    NeedleBatch,
    NeedleTask,
    World,
    build_model,
    prepare,
    shown_frames,
)
from model.config import MemoryConfig
from model.forgetting import RULES, kept_frames
from model.inputs import IMAGE_TOKEN_INDEX, SampleInputs, Visual
from model.packing import plan_pack

QUICK = NeedleRun((Lesson(16, 16, 4, batch=8, most=3),), settle=2, examined=16)


def world_of(task: NeedleTask | None = None, arm="memory") -> World:
    return World(task or NeedleTask(), arm, "test", "cpu")


def needles_of(world: World, video_TPC: torch.Tensor) -> dict[int, tuple[int, int]]:
    """key -> (value, frame) of every needle, found in the video by its look and not by its
    record.
    """
    task, found = world.task, {}
    looks = world.key_looks[:, None] + world.value_looks[None]
    for frame, tokens in enumerate(video_TPC):
        for token in tokens:
            distance = (looks - token).norm(dim=-1)
            if distance.min() < 0.25 * task.width**0.5:
                key, value = divmod(int(distance.argmin()), task.values)
                found[key] = (value, frame)
    return found


def samples_of(batch: NeedleBatch) -> list[SampleInputs]:
    rows = zip(batch.ids_BL, batch.labels_BL, batch.video_BTPC, strict=True)
    return [
        SampleInputs(str(n), ids, labels, [Visual("features", features=video)], 1)
        for n, (ids, labels, video) in enumerate(rows)
    ]


@pytest.fixture
def keep_as_drawn(monkeypatch):
    """A forgetting rule that keeps, sample by sample, what a batch drew."""

    def install(world: World, batch: NeedleBatch) -> None:
        tokens, samples = world.task.side**2, len(batch.ids_BL)
        rows = batch.plan.memory_rows_Q.view(samples, len(world.kept_F), -1)[..., :-1]
        starts = torch.arange(samples)[:, None, None] * world.memory_length
        kept = iter(rows - starts - world.kept_F[:, None] * (tokens + 1))
        monkeypatch.setitem(RULES, "as drawn", lambda *_: next(kept))

    return install


@pytest.mark.parametrize("when", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_a_batch_is_laid_out_as_its_samples_are_one_by_one(keep_as_drawn, arm, when):
    world = world_of(NeedleTask(frames=64, when=when), arm)
    batch = world.batch("any", 5, seed=7)
    keep_as_drawn(world, batch)
    plan = plan_pack(samples_of(batch), world.config, "as drawn")
    for field in fields(plan):
        mine, theirs = getattr(batch.plan, field.name), getattr(plan, field.name)
        same = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        assert same, field.name
    for mine, theirs in zip(batch.plan.targets, plan.targets, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("arm", ["memory", "frames"])
def test_its_loss_is_that_of_the_samples_that_training_takes(keep_as_drawn, arm):
    world = world_of(arm=arm)
    model = build_model(world.task, arm, "test").eval()
    batch = world.batch("any", 4, seed=3)
    keep_as_drawn(world, batch)
    with torch.inference_mode():
        logits_RV, targets_R = answers(model, batch)
        theirs = model(samples_of(batch), forgetting="as drawn")
    mine = F.cross_entropy(logits_RV, targets_R, reduction="sum")
    assert float(mine) == pytest.approx(float(theirs.loss_sum), rel=1e-5)


def test_questions_and_answers_are_those_of_the_needles_in_the_video():
    task = NeedleTask(frames=16, when=True)
    world = world_of(task)
    batch = world.batch("any", 8, seed=1)
    for sample in samples_of(batch):
        ids = sample.input_ids.tolist()
        needles = needles_of(world, sample.visuals[0].features)
        assert len(needles) == 4
        assert ids[0] == IMAGE_TOKEN_INDEX
        for key, value in zip(ids[1:9:2], ids[2:9:2], strict=True):
            assert value - task.keys == needles[key][0]
        for key, quarter in zip(ids[10::2], ids[11::2], strict=True):
            assert quarter - task.keys - task.values == needles[key][1] * 4 // 16
        supervised = [token for token in sample.labels.tolist() if token >= 0]
        assert supervised == ids[2:9:2] + ids[11::2]


def test_hidden_needles_stand_only_in_frames_that_forgetting_drops():
    for frames in (16, 64):
        world = world_of(NeedleTask(frames=frames))
        kept = set(kept_frames(frames, MemoryConfig()).tolist())
        batch = world.batch("hidden", 8, seed=1)
        for video in batch.video_BTPC:
            assert not {frame for _, frame in needles_of(world, video).values()} & kept
        rows = batch.plan.memory_rows_Q.view(8, -1) - torch.arange(8)[:, None] * (frames * 17)
        assert set((rows // 17).flatten().tolist()) == kept


def test_easier_videos_hold_needles_of_fewer_keys():
    world = world_of(NeedleTask(drawn_keys=4))
    videos = world.batch("any", 8, seed=1).video_BTPC
    assert {key for video in videos for key in needles_of(world, video)} == {0, 1, 2, 3}


def test_every_arm_sees_the_same_videos_and_about_as_many_tokens():
    for frames in (16, 64, 512, 3600):
        task = NeedleTask(frames=frames)
        kept_tokens = len(kept_frames(task.frames, MemoryConfig())) * 5
        assert abs(shown_frames(task) * 17 - kept_tokens) <= 17 / 2
    ids = [world_of(arm=arm).batch("any", 8, seed=1).ids_BL for arm in ARMS]
    assert all(torch.equal(ids[0], other) for other in ids[1:])


def test_only_the_memory_arm_depends_on_what_was_dropped():
    for arm in ("memory", "kept", "none"):
        world = world_of(arm=arm)
        model = build_model(world.task, arm, "test").eval()
        batch = world.batch("hidden", 1, seed=1)
        dropped = torch.ones(16 * 17, dtype=torch.bool)
        dropped[batch.plan.memory_rows_Q] = False
        changed = batch.video_BTPC.clone()
        changed[0][dropped.view(16, 17)[:, :16]] += 3.0  # newlines are no features
        with torch.inference_mode():
            before, after = (
                model.run_llm(prepare(model, b))
                for b in (batch, replace(batch, video_BTPC=changed))
            )
        assert torch.equal(before, after) == (arm != "memory"), arm


def test_kept_tokens_of_several_samples_stay_apart():
    world = world_of(arm="kept")
    model = build_model(world.task, "kept", "test").eval()
    batch = world.batch("any", 4, seed=1)
    with torch.inference_mode():
        before = model.run_llm(prepare(model, batch)).unflatten(0, (4, -1))
        changed = batch.video_BTPC.clone()
        changed[2] += 1.0
        after = model.run_llm(prepare(model, replace(batch, video_BTPC=changed)))
    differs = (before != after.unflatten(0, (4, -1))).flatten(1).any(1)
    assert differs.tolist() == [False, False, True, False]


def test_a_run_gives_the_same_result_twice():
    first, second = (run_needle(QUICK) for _ in range(2))
    assert replace(first, seconds=0.0, step_ms=0.0) == replace(second, seconds=0.0, step_ms=0.0)


def test_a_lesson_that_is_not_learned_ends_with_its_steps():
    result = run_needle(replace(QUICK, lessons=(Lesson(16, 2, 2, 8, 3), Lesson(16, 4, 4, 8, 2))))
    assert result.lessons == [(16, 2, 2, 3, False), (16, 4, 4, 2, False)]
    assert result.steps == 3 + 2 + 2


def test_the_finished_model_is_examined_at_every_length():
    result = run_needle(replace(QUICK, lengths=(16, 64), task=NeedleTask(when=True)))
    assert [found.frames for found in result.accuracy] == [16, 64]
    assert all(found.hidden_when is not None for found in result.accuracy)


def test_an_untrained_model_guesses():
    run = replace(QUICK, examined=512)
    model = build_model(run.task, "memory", run.seed).eval()
    assert examine(model, run, 16).hidden == pytest.approx(1 / 8, abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_finds_hidden_needles_also_in_longer_videos_than_it_was_trained_on():
    result = run_needle(NeedleRun(course([16]), lengths=(16, 64), seed="1"))
    assert all(learned for *_, learned in result.lessons)
    assert result.accuracy[0].hidden >= 0.95
    assert result.accuracy[1].hidden >= 0.98


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_the_memory_hidden_needles_are_guessed():
    result = run_needle(NeedleRun(course([16], most=200), arm="kept", seed="1"))
    [found] = result.accuracy
    assert found.hidden <= 0.17  # chance is 0.125
    assert found.any <= 0.23  # a needle in 16 is kept, of the others one in 8 is guessed: 0.18
