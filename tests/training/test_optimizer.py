"""Groups, rates and clipping, on the real model and against torch's own functions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.config import PRESETS
from model.hour_llava import HourLlava
from training.optimizer import (
    build_optimizer,
    gradient_norm,
    module_of,
    parameter_groups,
    rate_factor,
    scale_gradients,
    select,
    set_rates,
)
from training.recipes import MODULES, RECIPES, Recipe


@pytest.fixture(scope="module")
def model():
    return HourLlava(PRESETS["tiny"])


@pytest.mark.parametrize("key", sorted(RECIPES))
def test_the_groups_partition_what_is_trained_and_carry_their_own_rate(model, key):
    recipe = RECIPES[key]
    select(model, recipe.rates)
    groups = parameter_groups(model, recipe.rates)
    assert {group["module"]: group["lr"] for group in groups} == dict(recipe.rates)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    for group in groups:
        prefixes = {name.split(".")[0] for name in group["names"]}
        assert prefixes == (
            {"llm", "image_newline"} if group["module"] == "llm" else {group["module"]}
        )


def test_the_newline_is_frozen_in_stage_1_and_tied_weights_stand_once(model):
    select(model, RECIPES["3b", 1].rates)
    assert not model.image_newline.requires_grad
    select(model, RECIPES["3b", 3].rates)
    assert model.image_newline.requires_grad
    names = [
        name for group in parameter_groups(model, RECIPES["3b", 3].rates) for name in group["names"]
    ]
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert sum("embed_tokens" in name or "lm_head" in name for name in names) == 1


def test_a_parameter_that_no_module_owns_is_an_error():
    with pytest.raises(
        ValueError, match=r"'adapter\.weight' belongs to none of the modules vision, projector"
    ):
        module_of("adapter.weight")


def test_a_module_without_trainable_parameters_is_caught(model):
    select(model, ["memaug"])
    with pytest.raises(AssertionError, match="no trainable parameter in llm"):
        parameter_groups(model, {"memaug": 1e-3, "llm": 1e-3})
    select(model, MODULES)
    with pytest.raises(KeyError):
        parameter_groups(model, {"memaug": 1e-3})


@given(st.integers(1, 3000), st.floats(0, 0.5))
def test_the_rate_rises_once_and_then_falls_to_almost_nothing(total, warmup):
    factors = [rate_factor(step, total, warmup) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)
    rise = math.ceil(warmup * total)
    assert all(a < b for a, b in itertools.pairwise(factors[: rise + 1]))
    assert all(a > b for a, b in itertools.pairwise(factors[rise:]))
    if total > rise:
        assert factors[rise] == 1.0
    assert rate_factor(total, total, warmup) == pytest.approx(0.0, abs=1e-12) or total == rise


def test_each_module_moves_at_its_own_rate(model):
    rates = {"projector": 1e-2, "memaug": 1e-3}
    select(model, rates)
    optimizer = build_optimizer(model, Recipe(rates))
    assert set_rates(optimizer, 0, 10, 0.0) == rates
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for (
        name,
        parameter,
    ) in model.named_parameters():  # Adam's first step is the rate, whatever the gradient's size
        moved = (parameter - before[name]).abs().max().item()
        assert moved == pytest.approx(rates.get(module_of(name), 0.0), rel=1e-2)


def test_clipping_equals_torchs_own():
    torch.manual_seed(0)
    ours, theirs = (
        nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in (3, 5, 7)) for _ in range(2)
    )
    for mine, other in zip(ours, theirs, strict=True):
        other.grad = torch.randn_like(other)
        mine.grad = other.grad.clone() * 16  # a sum over 16 tokens instead of a mean
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    norm = float(gradient_norm(list(ours))) / 16
    scale_gradients(list(ours), min(1.0, 1.0 / (norm + 1e-6)) / 16)
    assert norm == pytest.approx(float(expected))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_no_gradient_at_all_is_an_error():
    with pytest.raises(RuntimeError, match="no tuned parameter received a gradient"):
        gradient_norm([nn.Parameter(torch.zeros(2))])
