"""The ablations of a deployment, launched in a Dagster of its own and followed to the end; or all
of them at a small size, on a corpus that is drawn first.

What is made already and up to date is left alone, so a study that was stopped goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from assets.ablations.runs import arms_of, study_of
from assets.ablations.score import TABLE_FILE
from assets.ablations.table import COLUMNS
from assets.deployment.ablation import run_keys
from assets.deployment.settings import Settings, load_settings
from pipeline.demo.client import DagsterClient
from pipeline.demo.corpus import build_corpus
from pipeline.demo.instance import dagster
from pipeline.demo.run import Step, run_step, say, steps, widened_pools
from pipeline.demo.summary import text_table
from training.formats import layout
from training.formats.storage import Storage

JOB, TABLE_JOB = "13_ablate", "14_compare_arms"
# The tiny variant learns to answer in stage 2, so its arms start there, for few steps. That shows
# that every arm is trained and scored; what an arm is worth is for a larger size to say.
SMALL: dict[str, Any] = {
    "start": "stage2",
    "seeds": 2,
    "overrides": {"max_steps": 40, "workers": 0, "tensorboard": False, "save_every": 1000},
}


def ablate(config: Path, log: Path, home: Path) -> int:
    """Train and score every arm of a study and print the table; returns 0 when all were made.

    Args:
        config: settings with a section `ablation`; what the arms are made from has to be there.
        log: file that takes what Dagster prints.
        home: folder with the `dagster.yaml` of the instance that keeps the history.

    Raises:
        ValueError: the settings have no such section.
    """
    settings = load_settings(config)
    study_of(settings)
    log.parent.mkdir(parents=True, exist_ok=True)
    with dagster(config.resolve(), log, home) as client:
        say(f"{client.url} shows every run while this goes on; Dagster's own log: {log}")
        done = run_arms(client, settings)
    print_arms(settings)
    return 0 if done else 1


def ablate_small(folder: Path, home: Path) -> int:
    """The same for the tiny variant, with all that it needs; returns 0 when all was made."""
    say("building the corpus")
    corpus = build_corpus(folder)
    config = corpus.folder / "ablation.yaml"
    written: dict[str, Any] = yaml.safe_load(corpus.settings.read_text())
    config.write_text(yaml.safe_dump(written | {"ablation": SMALL}, sort_keys=False, width=120))
    settings = load_settings(config)
    with corpus.serve(), dagster(config, corpus.folder / "dagster.log", home) as client:
        with widened_pools(client):
            # Everything but stage 3 and its evaluation, which the arms do for themselves.
            done = all(run_step(client, step) for step in steps(settings)[:-1])
        done = done and run_arms(client, settings)
    print_arms(settings)
    return 0 if done else 1


def run_arms(client: DagsterClient, settings: Settings) -> bool:
    """Make what of the arms is missing or out of date, then the table; True when all is there."""
    _, study = study_of(settings)
    keys = tuple({"arm": key} for key in run_keys(arms_of(settings), study.seeds))
    arms_step = Step("arms", JOB, ("ablation", "ablation_scores"), keys)
    done = run_step(client, arms_step)
    return run_step(client, Step("table", TABLE_JOB, ("ablation_table",))) and done


def print_arms(settings: Settings) -> None:
    """The table of all questions, where one was made."""
    variant, _ = study_of(settings)
    storage, file = Storage(settings.root), layout.ablation_scores(variant, TABLE_FILE)
    if not storage.exists(file):
        say("no table yet: no arm was scored")
        return
    rows = storage.read_json(file)["groups"]["all"]
    shown = [
        {name: "" if row[name] is None else row[name] for name in COLUMNS if name in row}
        for row in rows
    ]
    print("\nshare of questions answered right, means over seeds, with 95 % intervals")
    print(text_table(shown))
    print(f"\nby kind of question and by duration: {storage.path(file)}")
