"""What a person changes for one run in the launchpad changes that run only."""

import pytest

from assets.deployment.launchpad import (
    EvaluationLaunch,
    FeaturesLaunch,
    ShardsLaunch,
    StageLaunch,
    VideosLaunch,
)
from assets.deployment.settings import Settings

LAUNCHES = [VideosLaunch, FeaturesLaunch, ShardsLaunch, StageLaunch, EvaluationLaunch]


@pytest.fixture
def settings(tmp_path):
    return Settings.model_validate(
        {
            "root": str(tmp_path),
            "annotations": {"paths": ["none.jsonl"]},
            "sources": {
                "mine": {"kind": "drop", "folder": "drop"},
                "other": {"kind": "drop", "folder": "drop"},
            },
            "download": {"retry": ["geo"]},
            "training": {"overrides": {"stage2": {"max_steps": 9, "workers": 1}}},
        }
    )


def test_defaults_change_nothing(settings):
    assert VideosLaunch().applied(settings, "mine") == settings
    assert FeaturesLaunch().applied(settings) == settings
    assert ShardsLaunch().applied(settings) == settings
    assert StageLaunch().applied(settings, 2).training.overrides["stage2"] == {
        "max_steps": 9,
        "workers": 1,
    }
    assert EvaluationLaunch().applied(settings) == settings
    assert [launch().chosen() for launch in LAUNCHES] == [{}] * len(LAUNCHES)


def test_a_threshold_of_nothing_is_a_choice_and_for_one_source_only(settings):
    launch = VideosLaunch(coverage_threshold=0, retry=["age"])
    changed = launch.applied(settings, "mine")
    assert changed.sources["mine"].coverage_threshold == 0
    assert changed.sources["other"].coverage_threshold is None
    assert changed.download.retry == ["geo", "age"]
    assert launch.chosen() == {"coverage_threshold": 0, "retry": ["age"]}


def test_overrides_of_a_stage_come_on_top_of_the_settings(settings):
    changed = StageLaunch(overrides={"max_steps": 3}, processes=4).applied(settings, 2)
    assert changed.training.overrides == {"stage2": {"max_steps": 3, "workers": 1}}
    assert changed.training.processes == 4


@pytest.mark.parametrize("launch", LAUNCHES)
def test_every_field_says_what_it_does(launch):
    assert all(len(field.description or "") > 30 for field in launch.model_fields.values())
