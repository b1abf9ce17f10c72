"""The estimate of memory: its arithmetic, and what it says when nothing fits."""

from __future__ import annotations

import pytest

from model.config import PRESETS
from training.flops import parameters, video_sizes
from training.memory_plan import GIB, footprint, plan_memory
from training.run_config import parse_run

H200 = 139 * GIB


def run(variant="3b", stage=3, **fields):
    streams = [{"name": "x", "root": "r", "indexes": ["i"]}]
    return parse_run(
        {"variant": variant, "stage": stage, "start": "s", "out": "o", "streams": streams, **fields}
    )


def plan(world, variant="3b", stage=3, available=H200, checkpointing=True, **fields):
    return plan_memory(
        run(variant, stage, **fields), PRESETS[variant], world, available, checkpointing
    )


def test_states_are_sixteen_bytes_for_each_tuned_parameter_over_all_devices():
    config = PRESETS["7b"]
    counts = parameters(config)
    tuned = counts["projector"] + counts["memaug"] + counts["llm"]
    size = video_sizes(3600, 400, 256, config)
    for world in (1, 2, 8):
        found = footprint(config, ("projector", "memaug", "llm"), world, size, True)
        assert found.states == pytest.approx(16 * tuned / world + 2 * counts["vision"])


def test_3b_fits_one_h200_and_7b_needs_two():
    found = plan(1)
    assert found.budget.tokens >= 9104  # an hour-long sample is one pack
    assert found.needed.total < H200
    with pytest.raises(
        ValueError, match=r"7b, stage 3, on 1 device\(s\) of 139 GiB does not fit.*use 2 devices"
    ):
        plan(1, "7b")
    assert plan(2, "7b").needed.total < H200


def test_stage_1_of_7b_fits_one_h200():
    assert plan(1, "7b", 1).needed.states < 40 * GIB


def test_small_devices_are_told_how_many_of_them_fit():
    with pytest.raises(
        ValueError, match=r"on 1 device\(s\) of 80 GiB does not fit.*use 2 devices of this size"
    ):
        plan(1, available=80 * GIB)
    with pytest.raises(ValueError, match="no number of such devices fits"):
        plan(1, "7b", available=8 * GIB)


def test_a_fixed_pack_that_is_too_large_is_answered_with_one_that_fits():
    with pytest.raises(ValueError, match=r"set micro_tokens to \d+"):
        plan(1, micro_tokens=400_000)


def test_kept_activations_that_do_not_fit_are_answered_with_recomputation():
    with pytest.raises(ValueError, match="set checkpointing to true"):
        plan(1, micro_tokens=30_000, checkpointing=False)


def test_without_a_device_that_counts_memory_the_limit_is_the_longest_sample():
    assert plan(1, available=None).budget.tokens == 32768
    assert plan(1, available=None, micro_tokens=1000).budget.tokens == 1000


def test_more_devices_need_less_each():
    totals = [plan(world, available=None).needed.total for world in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)
