"""Several days of a deployment, simulated: what runs by itself, what does not, and when."""

import dagster as dg
import pytest

from assets.deployment.partitions import llava_part_partitions
from tests.pipeline.days import (
    SOURCES,
    TRAINING_ASSETS,
    VARIANTS,
    Days,
    write_settings,
)
from training.formats.kinds import MIXED_KINDS

pytestmark = pytest.mark.slow


@pytest.fixture
def days(tmp_path, monkeypatch):
    monkeypatch.setenv("HOURLLAVA_CONFIG", str(write_settings(tmp_path)))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Days(tmp_path, instance)


def test_a_fresh_clone_starts_nothing_by_itself(days):
    assert days.tick() == set()
    assert days.tick(TRAINING_ASSETS) == set()
    assert days.tick(TRAINING_ASSETS, days=1) == set()


def test_a_deployment_at_rest_stays_at_rest_for_days(days):
    days.everything_made()
    assert days.settle() == []
    for _ in range(3):
        assert days.tick(TRAINING_ASSETS, days=1) == set()
        assert days.tick() == set()


def test_a_landing_costs_only_its_own_part_and_then_the_mixture(days):
    days.everything_made()
    days.settle()
    days.made("landing", version="2")
    assert days.tick() == {"annotations"}
    days.made("annotations", version="2")
    assert days.tick() == {"catalogue"}
    days.add_part("part1")
    days.made("catalogue", version="2")
    rounds = days.settle(version="2")
    asked = [name for names in rounds for name in names]
    assert set(asked) == {
        *(f"videos[part1|{source}]" for source in SOURCES),
        "conversations[part1]",
        "videomarathon_video[part1]",
        *(f"features[part1|{variant}]" for variant in VARIANTS),
        "hourllava_s3",
        "videomarathon_json",
    }
    assert len(asked) == len(set(asked)), rounds
    assert "hourllava_s3" in rounds[-1]


def test_conversations_wait_for_every_source_of_their_part(days):
    days.everything_made()
    days.settle()
    days.add_part("part1")
    videos = {f"videos[part1|{source}]" for source in SOURCES}
    assert days.tick() == videos
    late = sorted(videos)[0]
    days.made(*sorted(videos - {late}))
    assert days.tick() == set()
    days.made(late)
    assert "conversations[part1]" in days.tick()


def test_the_same_bytes_again_move_nothing(days):
    days.everything_made()
    days.settle()
    days.made(
        "landing", "annotations", "catalogue", *(f"videos[part0|{source}]" for source in SOURCES)
    )
    days.made("hourllava_s3")
    assert days.settle() == []
    days.tick(TRAINING_ASSETS)
    assert days.tick(TRAINING_ASSETS, days=1) == set()


def test_stage_three_waits_for_the_night_and_for_changed_contents(days):
    days.everything_made()
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, hours=1) == set()
    assert days.tick(TRAINING_ASSETS, days=1) == {f"stage3[{variant}]" for variant in VARIANTS}
    assert days.tick(TRAINING_ASSETS, hours=1) == set()


def test_what_lands_while_a_training_runs_is_trained_the_night_after(days):
    days.everything_made()
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, days=1)
    days.made("hourllava_s3", version="3")
    days.tick(TRAINING_ASSETS, hours=1)
    days.made(*(f"stage3[{variant}]" for variant in VARIANTS), version="2")
    asked = days.tick(TRAINING_ASSETS, days=1)
    assert {name for name in asked if name.startswith("stage3")} == {
        f"stage3[{v}]" for v in VARIANTS
    }


def test_stage_three_never_starts_half_way_through_a_landing(days):
    """A part without features is missing; the night passes until it is there."""
    days.everything_made()
    days.tick(TRAINING_ASSETS)
    days.add_part("part1")
    days.made("hourllava_s3", version="2")
    assert days.tick(TRAINING_ASSETS, days=1) == set()
    days.made(*(f"features[part1|{variant}]" for variant in VARIANTS))
    assert {f"stage3[{v}]" for v in VARIANTS} <= days.tick(TRAINING_ASSETS, days=1)


def test_one_part_that_fails_its_check_holds_its_variant_until_it_passes(days):
    """Dagster's own all_deps_blocking_checks_passed would be content with the parts that pass."""
    days.everything_made()
    days.add_part("part1")
    days.made(*(f"features[part1|{variant}]" for variant in VARIANTS))
    days.tick(TRAINING_ASSETS)
    days.made("hourllava_s3", version="2")
    days.run("features[part0|tiny]", check="complete", passed=True)
    days.run("features[part1|tiny]", check="complete", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == {"stage3[3b]", "stage3[7b]"}
    days.made("stage3[3b]", "stage3[7b]", version="2")
    assert "stage3[tiny]" not in days.tick(TRAINING_ASSETS, days=1)
    days.run("features[part1|tiny]", check="complete", passed=True)
    assert "stage3[tiny]" in days.tick(TRAINING_ASSETS, days=1)


def test_a_check_that_only_warns_holds_nothing(days):
    days.everything_made()
    days.tick(TRAINING_ASSETS)
    days.run("features[part0|tiny]", check="none_quarantined", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == {"stage3[tiny]"}


def test_a_mixture_that_fails_its_check_holds_every_training(days):
    days.everything_made()
    days.tick(TRAINING_ASSETS)
    days.made("features[part0|tiny]", version="2")
    days.run("hourllava_s3", check="labels", passed=False)
    assert days.tick(TRAINING_ASSETS, days=1) == set()
    days.run("hourllava_s3", check="labels", passed=True)
    assert days.tick(TRAINING_ASSETS, days=1) == {f"stage3[{variant}]" for variant in VARIANTS}


def test_a_part_of_shards_that_fails_its_check_does_not_reach_the_mixture(days):
    days.everything_made()
    days.settle()
    days.run("videomarathon_video[part0]", check="whole", passed=False)
    days.made("llavavideo_text[part1]", version="2")
    assert days.tick() == set()
    days.run("videomarathon_video[part0]", check="whole", passed=True)
    assert days.tick() == {"hourllava_s3"}


def test_data_runs_by_itself_and_training_only_when_switched_on():
    from pipeline.sensors import data_automation, training_automation, watch_outside_data

    assert data_automation.default_status is dg.DefaultSensorStatus.RUNNING
    assert watch_outside_data.default_status is dg.DefaultSensorStatus.RUNNING
    assert training_automation.default_status is dg.DefaultSensorStatus.STOPPED


def test_above_a_hundred_parts_the_mixture_still_follows_every_one_of_them(days):
    """From 100 parts on Dagster no longer shows the mixture as out of date; what runs by itself
    still sees it.
    """
    mixture = dg.AssetSelection.assets("hourllava_s3")
    parts = [f"part{index}" for index in range(101)]
    for kind in MIXED_KINDS:
        days.made(*(f"{kind}[{part}]" for part in llava_part_partitions.get_partition_keys()))
    for part in parts:
        days.add_part(part)
    days.made(*(f"videomarathon_video[{part}]" for part in parts), "hourllava_s3")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part7]")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part7]", version="2")
    assert days.tick(mixture) == {"hourllava_s3"}
    days.made("hourllava_s3", version="2")
    days.add_part("part101")
    assert days.tick(mixture) == set()
    days.made("videomarathon_video[part101]")
    assert days.tick(mixture) == {"hourllava_s3"}
