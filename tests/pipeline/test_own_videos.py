"""The main road, through a running Dagster: somebody's own videos and a checkpoint of the released
names and layout, no collection, no early stage, fine-tuned and scored before and after.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml
from dagster import DagsterEventType, DagsterInstance, RunsFilter

from assets.deployment.addresses import FINE_TUNE_JOB
from assets.deployment.parts import is_held_out
from assets.deployment.settings import load_settings
from assets.evaluation.questions import read_questions
from assets.records.intervals import wilson
from assets.records.lineage import Lineage, all_records
from pipeline.cli import main
from pipeline.demo.drawing import COLOURS
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.own import EXAMPLE, SHARE, VARIANT, invent_colours, run_own_demo
from training.formats import layout
from training.formats.storage import Storage


def test_the_example_is_valid_and_short_and_asks_for_no_collection():
    settings = load_settings(EXAMPLE)
    assert len(EXAMPLE.read_text().splitlines()) <= 25
    assert settings.llava_kinds == ()
    assert settings.held_out_share == 0.15
    assert [variant.stages for variant in settings.variants.values()] == [(3,)]


@pytest.mark.parametrize("held_out", [True, False])
def test_an_answer_without_a_look_is_a_guess(held_out):
    """Every colour is the answer to a kind of question as often as every other."""
    films = invent_colours()
    assert len(films) == 40
    group = [
        colours for name, colours in films.items() if is_held_out(f"own/{name}", SHARE) == held_out
    ]
    assert all(background != square for background, square in group)
    for answers in zip(*group, strict=True):
        found = Counter(answers)
        assert len(found) == len(COLOURS)
        assert max(found.values()) - min(found.values()) <= 2


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, Storage]:
    """A folder in which the demo of one's own videos has run."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    assert run_own_demo(folder / "deployment", folder) == 0
    return folder / "deployment", Storage(str(folder / "deployment" / "data"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_lies_before_the_start_is_not_made(tuned):
    made = {record.asset for record in all_records(tuned[1])}
    assert {"base_model", "vision_encoder", "features", "stage3", "evaluation"} <= made
    assert not {"stage1", "stage2", "llava_onevision", "llava_video", "llavavideo_video"} & made


@pytest.mark.slow
def test_the_start_is_the_released_checkpoint_and_stands_in_the_lineage(tuned):
    folder, storage = tuned
    base = Lineage.read(storage, f"base_model[{VARIANT}]")
    assert base.config["start"] == {
        "folder": str(folder / "given" / "released"),
        "revision": "main",
        "stage": 3,
    }
    stage3 = Lineage.read(storage, f"stage3[{VARIANT}]")
    assert stage3.inputs[f"base_model[{VARIANT}]"] == base.version


@pytest.mark.slow
def test_no_held_out_video_was_trained_on_and_each_is_asked_about(tuned):
    _, storage = tuned
    stage3 = Lineage.read(storage, f"stage3[{VARIANT}]")
    trained = set(storage.read_bytes(f"{stage3.folder}/bill.videos.txt").decode().splitlines())
    asked = {
        question.id.partition(": ")[0]
        for question in read_questions(storage.local(layout.HELD_OUT))
    }
    assert asked
    assert trained
    assert not trained & asked
    assert all(is_held_out(video, SHARE) for video in asked)
    assert len(trained | asked) == 40


@pytest.mark.slow
def test_the_tuned_checkpoint_is_better_than_the_start_by_more_than_the_interval(tuned):
    _, storage = tuned
    row = storage.read_json(f"evaluation/{VARIANT}/summary.json")["accuracy"][0]
    assert row["asked"] == len(read_questions(storage.local(layout.HELD_OUT))) == 26
    assert row["gain"] == pytest.approx(row["stage3"] - row["base_model"], abs=1e-3)
    low, _ = wilson(round(row["stage3"] * row["asked"]), row["asked"])
    assert low > row["base_model"]
    assert low > row["nothing shown"]
    for name in ("base_model", "stage3", "stage3_blind"):
        assert storage.exists(f"evaluation/{VARIANT}/{name}.parquet")


@pytest.mark.slow
def test_the_run_says_first_why_it_gives_no_estimate(tuned):
    """Nothing was measured for the tiny preset; the large ones are held by test_estimate.py."""
    folder, _ = tuned
    with (
        contextlib.chdir(folder.parent),
        DagsterInstance.from_config(str(folder.parent)) as history,
    ):
        (run,) = history.get_runs(RunsFilter(job_name=FINE_TUNE_JOB))
        (output,) = [
            record.event_log_entry.dagster_event.event_specific_data
            for record in history.get_records_for_run(
                run.run_id, of_type=DagsterEventType.STEP_OUTPUT
            ).records
        ]
    assert "not estimated: lectures: no rate was measured" in output.metadata["estimate"].md_str


@pytest.mark.slow
def test_losses_fall(tuned):
    _, storage = tuned
    stage3 = Lineage.read(storage, f"stage3[{VARIANT}]")
    lines = storage.read_bytes(f"{stage3.folder}/metrics.jsonl").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.slow
def test_lineage_walks_from_the_tuned_checkpoint_to_the_rows(tuned, capsys):
    folder, _ = tuned
    config = str(folder / "own_videos.yaml")
    assert main(["lineage", f"stage3[{VARIANT}]", "--config", config]) == 0
    said = capsys.readouterr().out
    assert "rows.jsonl" in said
    assert f"base_model[{VARIANT}]" in said


def test_a_variant_that_is_not_in_the_settings_is_named(tmp_path, capsys):
    chosen = yaml.safe_load(EXAMPLE.read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(chosen))
    given = ["fine-tune", "--config", str(tmp_path / "own.yaml"), "--variant", "4b"]
    assert main(given) != 0
    assert "no variant '4b'; the settings have lectures" in capsys.readouterr().err
