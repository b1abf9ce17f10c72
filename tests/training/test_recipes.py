"""The recipes and the division of shards, against the published table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import VARIANTS
from training.formats.kinds import KINDS
from training.recipes import RECIPES, STAGES, Recipe, ShardInput, recipe, stage_inputs


def parts(stream, kind):
    return [item.part for item in stream if item.kind == kind and item.half is None]


def halves(stream, kind):
    return [
        (item.part, item.half) for item in stream if item.kind == kind and item.half is not None
    ]


def test_the_published_rates_and_batches_stand_in_the_table():
    assert RECIPES["3b", 1].rates == RECIPES["7b", 1].rates == {"memaug": 1e-4}
    assert RECIPES["3b", 2].rates == {
        "vision": 5e-6,
        "projector": 1e-4,
        "memaug": 1e-4,
        "llm": 2e-5,
    }
    assert RECIPES["7b", 2].rates == {
        "vision": 5e-6,
        "projector": 1e-4,
        "memaug": 1e-4,
        "llm": 1e-5,
    }
    assert (
        RECIPES["3b", 3].rates
        == RECIPES["7b", 3].rates
        == {"projector": 1e-4, "memaug": 1e-4, "llm": 2e-5}
    )
    batches = {key: RECIPES[key].global_batch for key in RECIPES if key[0] in ("3b", "7b")}
    assert batches == {
        ("3b", 1): 128,
        ("3b", 2): 128,
        ("3b", 3): 128,
        ("7b", 1): 128,
        ("7b", 2): 128,
        ("7b", 3): 256,
    }
    for variant in ("3b", "7b"):
        for stage in STAGES:
            chosen = recipe(variant, stage)
            assert (chosen.betas, chosen.weight_decay, chosen.clip, chosen.warmup) == (
                (0.9, 0.999),
                0.0,
                1.0,
                0.03,
            )
            assert (chosen.epochs, chosen.max_length) == (1, 32768)


def test_every_variant_has_all_three_stages():
    assert set(RECIPES) == {(variant, stage) for variant in VARIANTS for stage in STAGES}


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ValueError, match="variants: tiny, small, 3b, 7b, stages: 1, 2, 3"):
        recipe("13b", 1)
    with pytest.raises(ValueError, match="found lm"):
        Recipe({"lm": 1e-3})


def test_ten_parts_are_divided_as_published():
    (first,) = stage_inputs(1)
    assert parts(first, "llava_ov_si_onlyimg") == list(range(10))
    assert {item.kind for item in first} == {"llava_ov_si_onlyimg"}
    (second,) = stage_inputs(2)
    for kind in ("llavavideo_text", "llavavideo_si", "llavavideo_mi"):
        assert parts(second, kind) == [0]
    assert parts(second, "llavavideo_video") == [0, 1]
    assert len(second) == 5
    short, long = stage_inputs(3)
    assert parts(short, "llavavideo_video") == list(range(2, 10))
    assert parts(long, "videomarathon_video") == list(range(10))
    for kind in ("llavavideo_text", "llavavideo_si", "llavavideo_mi"):
        assert (parts(short, kind), halves(short, kind)) == ([1, 2, 3, 4], [(5, 0)])
        assert (parts(long, kind), halves(long, kind)) == ([6, 7, 8, 9], [(5, 1)])
    assert len(short) == 8 + 15
    assert len(long) == 10 + 15


def test_later_landings_join_the_long_stream():
    short, long = stage_inputs(3, long_parts=[0, 1, 10, 11])
    assert parts(long, "videomarathon_video") == [0, 1, 10, 11]
    assert short == stage_inputs(3)[0]


@given(st.integers(2, 99))
def test_every_half_of_every_part_is_read_exactly_once_however_many_there_are(count):
    pieces = []
    for stage in STAGES:
        for stream in stage_inputs(stage, count):
            for item in stream:
                pieces += [
                    (item.kind, item.part, half)
                    for half in ((0, 1) if item.half is None else (item.half,))
                ]
    assert len(pieces) == len(set(pieces))
    assert set(pieces) == {
        (kind, part, half) for kind in KINDS for part in range(count) for half in (0, 1)
    }
    assert all(stream for stage in STAGES for stream in stage_inputs(stage, count))


def test_one_part_cannot_feed_two_stages():
    with pytest.raises(ValueError, match="at least 2"):
        stage_inputs(3, 1)
    with pytest.raises(ValueError, match="known: 1, 2, 3"):
        stage_inputs(4)


def test_a_part_has_the_folder_that_the_writer_gives_it():
    assert ShardInput("llavavideo_si", 5, 1).folder == "llavavideo_si_part5"
