"""Which arms there are, against the paper's list, and what a study's settings refuse."""

from __future__ import annotations

import dataclasses

import pytest

from assets.ablations.runs import rows_of
from assets.deployment.ablation import (
    ARMS,
    REFERENCE,
    Ablation,
    differs,
    of_key,
    pretrains,
    run_keys,
)
from assets.deployment.settings import Settings
from model.config import PRESETS
from model.configuration import parse
from training.run_config import parse_run

# The paper's list, in our own words: arm -> what is otherwise than in the reference, as (setting of
# the model, value), or the share of long videos.
PAPER = {
    "uniform": [],
    "random": [("memory.temporal_forgetting", "random")],
    "keyframe": [("memory.temporal_forgetting", "keyframe")],
    "question_guided": [("memory.temporal_forgetting", "question_guided")],
    "uniform_no_memaug": [("memaug_depth", 0)],
    "keyframe_no_memaug": [("memory.temporal_forgetting", "keyframe"), ("memaug_depth", 0)],
    "question_guided_no_memaug": [
        ("memory.temporal_forgetting", "question_guided"),
        ("memaug_depth", 0),
    ],
    "blocks_1": [("memaug_depth", 1)],
    "blocks_2": [("memaug_depth", 2)],
    "blocks_4": [],  # as published
    "blocks_8": [("memaug_depth", 8)],
    "no_positions": [("memaug_positions", False)],
    "memory_50": [("memory.scale", 0.5)],
    "memory_25": [("memory.scale", 0.25)],
    "memory_kept": [("memory.scale", 0.0)],
    "long_0": [],
    "long_25": [],
    "long_50": [],
    "long_100": [],
    "template_seen": [("template_tokens", "seen")],
}
SHARES = {"long_0": 0, "long_25": 1 / 4, "long_50": 1 / 2, "long_100": 1}


def flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_an_arm_changes_what_the_paper_changes_and_nothing_else():
    config = PRESETS["3b"]
    before = dict(flat(config.to_dict()))
    assert ARMS.keys() == PAPER.keys()
    for name, arm in ARMS.items():
        after = dict(flat(arm.model.applied(config).to_dict()))
        assert sorted(after.items() - before.items()) == sorted(PAPER[name]), name
        assert arm.long == SHARES.get(name, 3 / 4), name


def test_an_arm_that_would_be_the_reference_is_not_made_again():
    for preset, same in (("3b", "blocks_4"), ("7b", "blocks_4"), ("tiny", "blocks_2")):
        chosen = Ablation().chosen(preset, False)
        assert next(iter(chosen)) == REFERENCE
        assert ARMS.keys() - chosen.keys() == {same}
        assert not differs(ARMS[same], preset)


def test_arms_with_a_memaug_of_their_own_train_stage_1_for_themselves():
    own = {name for name, arm in ARMS.items() if pretrains(arm, "3b", "stage1")}
    assert own == {"blocks_1", "blocks_2", "blocks_8", "no_positions"}
    assert not any(pretrains(arm, "3b", "stage2") for arm in ARMS.values())


def test_a_run_is_an_arm_and_a_seed():
    keys = run_keys(Ablation(arms=["random"], seeds=2).chosen("3b", False), 2)
    assert keys == ["uniform-1", "uniform-2", "random-1", "random-2"]
    assert [of_key(key) for key in keys][-1] == ("random", 2)
    assert of_key("question_guided_no_memaug-12") == ("question_guided_no_memaug", 12)


LONG, SHORT, IMAGES = "videomarathon_video", "llavavideo_video", "llavavideo_si"
TOTALS = {LONG: 1000, SHORT: 400, IMAGES: 90}


@pytest.mark.parametrize(
    ("arm", "long", "short"),
    [("uniform", 300, 100), ("long_0", 0, 400), ("long_25", 100, 300), ("long_100", 400, 0)],
)
def test_every_mixture_has_as_many_rows_about_videos(arm, long, short):
    assert rows_of(Ablation(), ARMS[arm], TOTALS, False) == {LONG: long, SHORT: short}
    study = Ablation(videos=100, others={IMAGES: 30})
    rows = rows_of(study, ARMS[arm], TOTALS, False)
    assert rows == {LONG: long // 4, SHORT: short // 4, IMAGES: 30}


def test_the_published_numbers():
    study = Ablation(videos=70_000)
    totals = {LONG: 300_000, SHORT: 200_000}
    assert rows_of(study, ARMS["uniform"], totals, False) == {LONG: 52_500, SHORT: 17_500}


def test_more_rows_than_the_mixture_has_are_refused():
    with pytest.raises(ValueError, match=r"ablation.videos: the arm needs 600 rows of llava"):
        rows_of(Ablation(videos=600), ARMS["long_0"], TOTALS, False)
    with pytest.raises(ValueError, match=r"ablation.others: .* 91 rows of llavavideo_si, .* 90"):
        rows_of(Ablation(others={IMAGES: 91}), ARMS["uniform"], TOTALS, False)
    assert rows_of(Ablation(), ARMS["uniform"], TOTALS, True) == {}


SETTINGS = {"root": "data", "annotations": {"paths": ["a"]}, "sources": {}, "variants": ["3b"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ablation": {"arms": ["best"]}}, "no arm best; known: uniform, random, keyframe"),
        ({"ablation": {"arm": ["random"]}}, r"unknown key 'ablation.arm', did you mean 'arms'\?"),
        ({"ablation": {"others": {LONG: 3}}}, f"{LONG}: kinds without videos are llava_ov_si"),
        ({"ablation": {"overrides": {"seed": "x"}}}, "seed: an arm sets this itself"),
        ({"ablation": {"seeds": 6}}, "19 arms with 6 seeds are more than 99 runs"),
        ({"ablation": {}, "variants": ["3b", "7b"]}, "a study is of one variant; .* 3b, 7b"),
        (
            {
                "ablation": {"start": "stage1"},
                "variants": {"own": {"preset": "3b", "start": {"folder": "x", "stage": 1}}},
            },
            "ablation.start is stage1, which the variant does not make; it has base_model, stage2",
        ),
        (
            {"ablation": {"arms": ["long_0"]}, "training": {"long_videos_only": True}},
            "long_0: there are no short videos to mix with, because training.long_videos_only",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(change, says):
    with pytest.raises(ValueError, match=says):
        parse(Settings, {**SETTINGS, **change})


def test_a_study_of_long_videos_alone_has_no_mixtures():
    settings = parse(Settings, {**SETTINGS, "ablation": {}, "training": {"long_videos_only": True}})
    chosen = settings.ablation.chosen("3b", True)
    assert not [name for name in chosen if name.startswith("long_")]


def test_every_change_can_be_written_into_a_run():
    for arm in ARMS.values():
        changes = {k: v for k, v in dataclasses.asdict(arm.model).items() if v is not None}
        run = parse_run(
            {
                "variant": "3b",
                "stage": 3,
                "start": "a",
                "out": "b",
                "streams": [{"name": "s", "root": "r", "indexes": ["i"]}],
                "model": changes or None,
            }
        )
        assert (run.model is None) == (not changes)
