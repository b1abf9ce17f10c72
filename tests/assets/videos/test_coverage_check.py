"""Whether enough of the expected videos are there, and whether more could be had."""

import pytest

from assets.videos.checks import coverage
from assets.videos.report import AcquireReport
from tests.servers.world import make_settings


@pytest.fixture
def settings(tmp_path):
    sources = {
        "web": {"kind": "url"},
        "mine": {"kind": "drop", "folder": "drop", "coverage_threshold": 0},
    }
    return make_settings(tmp_path, sources, download={"coverage_threshold": 0.5})


def report(source: str = "web", **statuses: int) -> AcquireReport:
    """Of a part with so many videos of each status."""
    expected = sum(statuses.values())
    table = [
        {"status": s, "reason": "why", "videos": n, "question-answer pairs": 2 * n}
        for s, n in statuses.items()
    ]
    counts = {"expected": expected, "ok": 0, **statuses}
    share = statuses.get("ok", 0) / expected
    return AcquireReport(source, "part0", "v", counts, share, 1.0, 1, table, 0, 0, 1.0, 0, 0.0)


def test_too_few_videos_stop_what_follows_and_say_why(settings):
    enough, _ = coverage(report(ok=1, permanent=3), settings)
    assert enough.blocks
    assert (
        "1 of 4 videos are there (25%), coverage_threshold asks for 50%. Missing: 3 permanent (why)"
        in enough.message
    )


@pytest.mark.parametrize(
    ("there", "missing", "asked_for", "enough"),
    [
        (0, 1, 0.5, True),
        (0, 1, 0.9, True),
        (0, 1, 1.0, False),
        (0, 2, 0.5, False),
        (1, 2, 0.5, False),
        (1, 1, 0.9, True),
        (2, 1, 0.9, True),
        (0, 3, 0.5, False),
        (1, 4, 0.5, False),
        (6, 5, 0.5, True),
        (8, 2, 0.9, False),
        (9, 2, 0.9, False),
        (9, 1, 0.95, True),
        (99, 1, 1.0, False),
        (48, 52, 0.5, False),
        (7, 3, 0.7, True),
    ],
)
def test_a_single_missing_video_says_nothing_of_a_source(
    settings, there, missing, asked_for, enough
):
    download = settings.download.model_copy(update={"coverage_threshold": asked_for})
    settings = settings.model_copy(update={"download": download})
    verdict, _ = coverage(report(ok=there, permanent=missing), settings)
    assert verdict.passed is enough


def test_a_source_may_ask_for_less(settings):
    enough, _ = coverage(report("mine", ok=1, permanent=3), settings)
    assert enough.passed


def test_videos_that_could_still_be_had_are_worth_a_look(settings):
    enough, nothing_more = coverage(report(ok=6, exhausted=1, permanent=1), settings)
    assert enough.passed
    assert (nothing_more.passed, nothing_more.blocks) == (False, False)
    assert "1 more may still be had" in nothing_more.message


def test_videos_that_are_gone_for_good_are_told_and_pass(settings):
    verdicts = coverage(report(ok=6, permanent=2), settings)
    assert [(verdict.passed, verdict.message) for verdict in verdicts] == [
        (True, "6 of 8 videos are there"),
        (True, "2 videos cannot be had"),
    ]
