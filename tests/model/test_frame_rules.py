"""Which frames stay, against a second implementation in numpy, from the paper's definitions."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.choice import choose_frames
from model.config import FRAME_RULES, HourLlavaConfig
from model.frame_rules import Video, find_frame_rule
from model.inputs import IGNORE_INDEX, IMAGE_TOKEN_INDEX, SampleInputs, Visual
from tests.model import golden

NOTHING = torch.empty(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def keyframes(features, count):
    """The frames whose mean cosine similarity to the eight nearest in time is the lowest."""
    rows = unit(np.asarray(features, np.float64))
    means = []
    for frame in range(len(rows)):
        others = sorted((abs(other - frame), other) for other in range(len(rows)) if other != frame)
        nearest = [rows[frame] @ rows[other] for _, other in others[:8]]
        means.append(np.mean(nearest) if nearest else 0.0)
    return sorted(np.argsort(means, kind="stable")[:count].tolist())


def like_the_question(tokens, question, count):
    """The frames whose mean token has the highest cosine similarity to the question's."""
    alike = unit(np.asarray(tokens, np.float64)) @ unit(np.asarray(question, np.float64))
    return sorted(np.argsort(-alike, kind="stable")[:count].tolist())


def expected(rule, video, count):
    if rule == "uniform":
        return np.linspace(0, video.frames - 1, count).astype(int).tolist()
    if rule == "keyframe":
        return keyframes(video.features_TC, count)
    return like_the_question(video.tokens_TD, video.question_D, count)


@settings(deadline=None, max_examples=40)
@given(
    rule=st.sampled_from(["uniform", "keyframe", "question_guided"]),
    frames=st.integers(1, 70),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_a_rule_keeps_the_frames_of_its_definition(rule, frames, seed, data):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(n, 6, generator=generator) for n in (frames, frames, 1)]
    video = Video(frames, seed, drawn[0], drawn[1], drawn[2][0])
    count = data.draw(st.integers(1, frames))
    chosen = find_frame_rule(rule).choose(video, count)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected(rule, video, count)


def test_frames_that_look_alike_go_first_by_keyframes():
    features = torch.ones(40, 3)
    features[[7, 30]] = torch.tensor([-1.0, 0.5, 0.2])
    video = Video(40, None, features, NOTHING, NOTHING)
    assert {7, 30} <= set(find_frame_rule("keyframe").choose(video, 10).tolist())


def test_random_frames_follow_the_seed_and_every_frame_has_its_turn():
    choose = find_frame_rule("random").choose

    def kept(seed, frames=40):
        return choose(Video(frames, seed, NOTHING, NOTHING, NOTHING), 10).tolist()

    assert kept(3) == kept(3) == sorted(set(kept(3)))
    assert len(kept(3)) == 10
    counts = np.bincount(np.concatenate([kept(seed) for seed in range(2000)]), minlength=40)
    # A quarter of 2,000, give or take five standard deviations of a binomial.
    assert np.all(abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75))
    assert kept(None) == kept(None) != kept(None, 41)


def test_the_rules_are_the_files_of_their_folder():
    assert set(FRAME_RULES) >= {"uniform", "random", "keyframe", "question_guided"}
    assert all(callable(find_frame_rule(name).choose) for name in FRAME_RULES)
    with pytest.raises(ValueError, match="unknown temporal forgetting 'best'; known: keyframe"):
        find_frame_rule("best")


# -- in the model ----------------------------------------------------------------------------------

ALL_VISUALS = ("frames", "features", "remembered")


def model_with(rule):
    model, _ = golden.mixed()
    model.config = dataclasses.replace(
        model.config,
        memory=dataclasses.replace(model.config.memory, temporal_forgetting=rule, min_frames=12),
    )
    return model


def sample_about(visual, name, seed=5):
    ids = torch.tensor([7, IMAGE_TOKEN_INDEX, 8, 9, 10, 11])
    labels = torch.tensor([-100, -100, -100, 9, -100, 11])  # 9: of the template, 11: an answer
    return SampleInputs(name, ids, labels, [visual], seed)


def pixels(frames, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, 19, 19), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("rule", ["uniform", "keyframe", "question_guided"])
@pytest.mark.parametrize("form", ALL_VISUALS)
def test_a_pack_keeps_of_each_video_what_the_rule_says(rule, form):
    """A short video is repeated first; an image stands between the two in the memories."""
    model = model_with(rule)
    films = [pixels(20, 1), pixels(5, 2)]
    image = SampleInputs(
        "image",
        torch.tensor([1, IMAGE_TOKEN_INDEX, 2]),
        torch.full((3,), IGNORE_INDEX),
        [Visual("images", pixels=pixels(1, 3))],
        1,
    )
    with torch.no_grad():
        features = [model.encode_frames(film) for film in films]
        visuals = [
            Visual("frames", film) if form == "frames" else Visual("features", features=shown)
            for film, shown in zip(films, features, strict=True)
        ]
        samples = [sample_about(visuals[0], "a"), image, sample_about(visuals[1], "b")]
        memory_ND = None
        if form == "remembered":
            memory_ND = torch.cat([model.remember(sample.visuals[0]) for sample in samples])
        plan = model.prepare(samples, forgetting="random", memory_ND=memory_ND).plan
        embeddings = model.llm.model.embed_tokens.weight
        question = embeddings[[8, 10]].mean(0)  # what is labelled is hidden from MemAug
        tokens = [model.projector(shown).mean(1) for shown in features]
    repeated = np.linspace(0, 4, 12).astype(int)
    last = sum(plan.memory_lengths[:2])  # where the memory of the third sample begins
    for number, start, where in ((0, 0, np.arange(20)), (1, last, repeated)):
        looks = features[number].mean(1)[where], tokens[number][where], question
        wanted = expected(rule, Video(len(where), 5, *looks), len(where) // 4)
        rows = plan.memory_rows_Q - start
        rows = rows[(rows >= 0) & (rows < 65 * len(where))]
        assert sorted({int(row) // 65 for row in rows}) == wanted


def test_what_stays_of_a_frame_does_not_depend_on_which_frames_stay():
    plans = {}
    for rule in ("uniform", "random"):
        model = model_with(rule)
        with torch.no_grad():
            features = torch.randn(40, 64, 32, generator=torch.Generator().manual_seed(1))
            sample = sample_about(Visual("features", features=features), "a")
            rows = model.prepare([sample], forgetting="random").plan.memory_rows_Q
        plans[rule] = {int(row) // 65: set() for row in rows}
        for row in rows:
            plans[rule][int(row) // 65].add(int(row) % 65)
    both = plans["uniform"].keys() & plans["random"].keys()
    assert both
    assert plans["uniform"].keys() != plans["random"].keys()
    assert all(plans["uniform"][frame] == plans["random"][frame] for frame in both)


def test_keyframes_of_a_remembered_memory_need_features():
    model = model_with("keyframe")
    sample = sample_about(Visual("frames", pixels(20, 1)), "film")
    with torch.no_grad():
        memory_ND = model.remember(sample.visuals[0])
        with pytest.raises(ValueError, match="sample 'film': keyframes are chosen by"):
            model.prepare([sample], forgetting="uniform", memory_ND=memory_ND)


def test_a_question_of_no_shown_word_is_refused():
    model = model_with("question_guided")
    sample = sample_about(Visual("frames", pixels(20, 1)), "film")
    sample.labels = sample.input_ids.where(sample.input_ids != IMAGE_TOKEN_INDEX, IGNORE_INDEX)
    with pytest.raises(ValueError, match="sample 'film': no prompt to choose frames for"):
        model.prepare([sample], forgetting="uniform")


def test_an_unknown_rule_or_share_is_refused_where_the_configuration_is_read():
    model, _ = golden.mixed()
    written = model.config.to_dict()
    for name, value, says in (
        ("temporal_forgetting", "best", "temporal_forgetting is 'best'; known: keyframe, "),
        ("scale", 0.4, "memory_scale is 0.4"),
    ):
        changed = {**written, "memory": {**written["memory"], name: value}}
        with pytest.raises(ValueError, match=says):
            HourLlavaConfig.from_dict(changed)
    assert choose_frames([], model.config, None, {}, model.llm.model.embed_tokens) == []
