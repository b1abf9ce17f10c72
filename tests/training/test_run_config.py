"""The run's JSON file: what is refused, and what it says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.formats.hashing import seed_of
from training.recipes import RECIPES
from training.run_config import load_run, parse_run

MINIMAL = {
    "variant": "3b",
    "stage": 3,
    "start": "base/export",
    "out": "out",
    "streams": [{"name": "long", "root": "sharding", "indexes": ["a/index.json"]}],
}


def test_a_run_survives_its_file(tmp_path):
    changed = {"model": {"memaug_blocks": 0, "memory_scale": 0.5}, "rows": {"llavavideo_si": 4}}
    run = parse_run({**MINIMAL, "rates": {"memaug": 1e-3, "llm": 1e-5}, "max_steps": 7, **changed})
    assert dict(run.recipe.rates) == {"llm": 1e-5}  # there is no MemAug to tune
    run.write(tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == run


def test_the_recipe_applies_unless_the_run_deviates():
    assert parse_run(MINIMAL).recipe == RECIPES["3b", 3]
    changed = parse_run({**MINIMAL, "global_batch": 32, "rates": {"memaug": 1}}).recipe
    assert (changed.global_batch, changed.rates) == (32, {"memaug": 1.0})
    decayed = parse_run({**MINIMAL, "betas": [0.8, 0.9], "weight_decay": 0.1}).recipe
    assert (decayed.betas, decayed.weight_decay) == ((0.8, 0.9), 0.1)
    assert changed.warmup == RECIPES["3b", 3].warmup


def test_reference_effective_gives_every_tuned_module_the_rate_of_the_llm():
    run = parse_run({**MINIMAL, "stage": 2, "reference_effective": True})
    assert run.recipe.rates == dict.fromkeys(("vision", "projector", "memaug", "llm"), 2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"globl_batch": 3},
            r"unknown key 'globl_batch', did you mean 'global_batch'\? \(known: .*tensorboard",
        ),
        ({"streams": [{"nam": "x"}]}, r"unknown key 'streams\[0\].nam', did you mean 'name'\?"),
        ({"streams": []}, "streams: .* at least 1 item"),
        (
            {"streams": [{"name": "x"}]},
            r"missing 'streams\[0\].root'; missing 'streams\[0\].indexes'",
        ),
        ({"rates": {"lm": 1.0}}, "a recipe tunes some of vision, projector, memaug, llm; found lm"),
        (
            {"model": {"memory": 1}},
            r"unknown key 'model.memory'.* \(known: memaug_blocks, memaug_positions, ",
        ),
        ({"model": {"memory_scale": 0.4}}, "model: memory_scale is 0.4; it must be 1, 1/2"),
        ({"model": {"temporal_forgetting": "best"}}, "'best'; known: keyframe, question_guided"),
        ({"model": {"memaug_blocks": -1}}, "model.memaug_blocks: .* greater than or equal to 0"),
        ({"stage": 1, "model": {"memaug_blocks": 0}}, "a recipe tunes some of .*; found none"),
        ({"rows": {"llavavideo": 3}}, "rows: unknown kinds llavavideo; known: llava_ov_si_onlyimg"),
        ({"rates": {"llm": 0}}, "leave a module out to freeze it"),
        ({"rates": {"llm": "fast"}}, "rates.llm: .* valid number, found 'fast'"),
        ({"loss": "sum"}, "loss: .* 'tokens' or 'micro_batch', found 'sum'"),
        ({"betas": [0.9, 1.0]}, r"betas: found \[0.9, 1.0\]; both are at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay: .* greater than or equal to 0"),
        ({"global_batch": 0}, "global_batch: .* greater than 0, found 0"),
        ({"keep": 1}, "keep: .* greater than or equal to 2, found 1"),
        ({"workers": -1}, "workers: .* greater than or equal to 0, found -1"),
        ({"warmup": 1}, "warmup: .* less than 1, found 1"),
        ({"max_steps": True}, "max_steps: .* valid integer, found True"),
        ({"max_steps": "5"}, "max_steps: .* valid integer, found '5'"),
        ({"max_steps": 5.0}, "max_steps: .* valid integer, found 5.0"),
        ({"tensorboard": 1}, "tensorboard: .* valid boolean, found 1"),
        ({"variant": "13b"}, "no recipe for variant '13b'"),
        ({"start": 3}, "start: .* valid string, found 3"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, message):
    (tmp_path / "run.json").write_text(json.dumps({**MINIMAL, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        load_run(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(caught.value)


def test_a_file_that_is_not_json_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such run configuration"):
        load_run(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_run(tmp_path / "run.json")


@given(st.integers(1, 512), st.integers(1, 64), st.integers(1, 16))
def test_the_global_batch_is_the_same_on_every_number_of_ranks(batch, ranks, micro):
    run = parse_run({**MINIMAL, "global_batch": batch, "micro_batch": micro})
    if batch % ranks:
        with pytest.raises(ValueError, match="numbers of ranks that fit: 1, "):
            run.batches(ranks)
    else:
        samples, accumulation = run.batches(ranks)
        assert samples * accumulation * ranks == batch
        assert samples <= micro


@given(st.integers(1, 128), st.integers(1, 64), st.none() | st.integers(1, 64))
def test_ranks_share_a_run_where_its_batches_take_them(batch, ranks, stream_batch):
    run = parse_run({**MINIMAL, "global_batch": batch, "stream_batch": stream_batch})
    try:
        run.batches(ranks)
    except ValueError:
        assert not run.is_shared_by(ranks)
    else:
        assert run.is_shared_by(ranks)


def test_seeds_come_from_names():
    assert seed_of("a", 1) == seed_of("a", "1")
    assert len({seed_of("a", n) for n in range(1000)}) == 1000
    assert seed_of("ab", "c") != seed_of("a", "bc")
    assert 0 <= seed_of("x") < 2**31
