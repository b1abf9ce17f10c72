"""The arms side by side: means, intervals, gains with the same seed."""

from __future__ import annotations

import math

import pytest

from assets.ablations.table import Scores, arms_table, groups_of
from assets.deployment.ablation import ARMS
from assets.records.intervals import T95, student_reach


def cumulative(t, degrees):
    """Student's distribution function by Simpson's rule: independent of the table."""
    scale = math.gamma((degrees + 1) / 2) / math.sqrt(degrees * math.pi) / math.gamma(degrees / 2)
    steps = 4000
    width = t / steps
    total = sum(
        (1 if place in (0, steps) else 4 if place % 2 else 2)
        * (1 + (place * width) ** 2 / degrees) ** (-(degrees + 1) / 2)
        for place in range(steps + 1)
    )
    return 0.5 + scale * total * width / 3


def test_the_quantiles_are_those_of_students_distribution():
    for degrees, quantile in enumerate(T95, start=1):
        assert cumulative(quantile, degrees) == pytest.approx(0.975, abs=5e-6), degrees


def test_an_interval_over_seeds():
    # 1, 2, 3: mean 2, deviation 1, so 4.3027 / sqrt(3).
    assert student_reach([1.0, 2.0, 3.0]) == pytest.approx(2.4841, abs=1e-4)
    assert student_reach([0.5]) is None
    assert student_reach([0.5, 0.5]) == 0


def scores(key, right, asked=10, **groups):
    return Scores(
        key, "v", {"all": right, **groups}, {"all": asked, **dict.fromkeys(groups, 5)}, 0.2
    )


FOUND = [
    scores("uniform-1", 5),
    scores("uniform-2", 7),
    scores("random-1", 4, colour=1),
    scores("random-2", 4, colour=3),
    scores("keyframe-2", 9),
]


def test_a_row_for_each_arm_that_was_scored_with_gains_by_seed():
    rows = {row["arm"]: row for row in arms_table(ARMS, FOUND)}
    assert list(rows) == ["uniform", "random", "keyframe"]
    reference, random, keyframe = rows.values()
    assert (reference["accuracy"], reference["gain"], reference["seeds"]) == (0.6, None, 2)
    assert reference["+-"] == pytest.approx(12.7062 * 0.1, abs=1e-3)  # 0.5 and 0.7
    assert (random["accuracy"], random["+-"]) == (0.4, 0.0)
    assert random["gain"] == pytest.approx(-0.2)  # -0.1 and -0.3
    assert random["gain +-"] == pytest.approx(12.7062 * 0.1, abs=1e-3)
    # One seed: against the reference of that seed, and no interval.
    assert (keyframe["accuracy"], keyframe["gain"]) == (0.9, 0.2)
    assert keyframe["+-"] is keyframe["gain +-"] is None


def test_a_group_that_some_runs_were_asked():
    assert groups_of(FOUND) == ["all", "colour"]
    (row,) = arms_table(ARMS, FOUND, "colour")
    assert (row["arm"], row["accuracy"], row["asked"], row["gain"]) == ("random", 0.4, 5, None)
