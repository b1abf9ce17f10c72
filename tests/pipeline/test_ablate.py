"""`hourllava ablate`: what it refuses, and the table that it prints."""

from __future__ import annotations

import json

import pytest
import yaml

from assets.deployment.settings import load_settings
from pipeline.cli import main
from pipeline.demo.ablations import SMALL
from pipeline.demo.instance import REPOSITORY

EXAMPLE = REPOSITORY / "pipeline/examples/ablation_3b.yaml"
SETTINGS = {"root": "data", "variants": ["tiny"], "annotations": {"paths": ["a"]}, "sources": {}}


@pytest.fixture
def written(tmp_path):
    def write(**more):
        path = tmp_path / "deployment.yaml"
        path.write_text(yaml.safe_dump(SETTINGS | more))
        return path

    return write


def test_settings_without_a_study_are_refused(written, capsys):
    assert main(["ablate", "--config", str(written())]) == 2
    assert "the settings have no section `ablation`" in capsys.readouterr().err


def test_the_table_is_printed_as_it_is(written, capsys, tmp_path):
    config = str(written(ablation={}))
    assert main(["ablate", "--table", "--config", config]) == 0
    assert "no table yet" in capsys.readouterr().out
    rows = [
        {"arm": "uniform", "accuracy": 0.5, "gain": None},
        {"arm": "random", "accuracy": 0.4375, "gain": -0.0625},
    ]
    file = tmp_path / "data/evaluation/tiny/ablation/table.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"groups": {"all": rows}}))
    assert main(["ablate", "--table", "--config", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:6]] == [
        ["arm", "accuracy", "gain"],
        ["-------", "--------", "-------"],
        ["uniform", "0.5"],
        ["random", "0.4375", "-0.0625"],
    ]


def test_the_example_is_the_published_set_up():
    study = load_settings(EXAMPLE).ablation
    assert (study.seeds, study.start, study.videos) == (3, "stage1", 70_000)
    assert study.others == {
        "llavavideo_text": 20_000,
        "llavavideo_si": 30_000,
        "llavavideo_mi": 10_000,
    }
    assert len(study.chosen("3b", False)) == 19


def test_the_small_study_holds_every_arm(written):
    study = load_settings(written(ablation=SMALL)).ablation
    assert (len(study.chosen("tiny", False)), study.seeds) == (19, 2)
