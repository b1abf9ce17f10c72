"""The job `fine_tune` of a deployment, launched in a Dagster of its own and followed to its end."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from assets.deployment.addresses import FINE_TUNE_JOB, FINE_TUNE_OP, config_option
from assets.deployment.settings import load_settings
from assets.deployment.variants import one_of
from assets.records.lineage import Lineage, is_recorded, product
from pipeline.demo.client import FINISHED, DagsterClient
from pipeline.demo.following import Follower
from pipeline.demo.instance import dagster
from pipeline.demo.summary import text_table
from training.formats.storage import Storage

LOOK_S = 1.0
SCORES = (  # columns of the evaluation's table; the interval is that of stage3
    "questions",
    "asked",
    "chance",
    "base_model",
    "stage3",
    "interval",
    "nothing shown",
    "gain",
)


def fine_tune(config: Path, variant: str | None, log: Path, home: Path) -> int:
    """Fine-tune a variant and print its scores; returns 0 when all of it was made.

    Args:
        config: the deployment's settings.
        variant: one of them; None where there is only one.
        log: file that takes what Dagster prints.
        home: folder with the `dagster.yaml` of the instance that keeps the history.

    Raises:
        ValueError: there is no such variant, or it is not said which.
    """
    settings = load_settings(config)
    chosen = one_of(settings.variants, variant)
    log.parent.mkdir(parents=True, exist_ok=True)
    with dagster(config.resolve(), log, home) as client:
        print(f"{client.url} shows every step while this runs; Dagster's own log: {log}")
        seen: set[str] = set()
        client.ended_runs(seen)  # those of an earlier day
        given = {"ops": {FINE_TUNE_OP: {"config": {"variant": chosen}}}}
        done = _follow(client, client.launch(FINE_TUNE_JOB, config=given), seen)
    if done:
        print_scores(Storage(settings.root), chosen, config)
    return 0 if done else 1


def _follow(client: DagsterClient, run: str, seen: set[str]) -> bool:
    """Print what the run makes until it has ended; True where it succeeded."""
    follower = Follower(client, lambda line: print(line, flush=True))
    while (status := client.runs([run])[run]["status"]) not in FINISHED:
        _tell(client, seen)
        going_on = client.running()
        # The job itself only waits for what it started.
        follower.look({name: what for name, what in going_on.items() if name != run})
        time.sleep(LOOK_S)
    _tell(client, seen)
    if status != "SUCCESS":
        print(f"{status}: {client.failure(run)}")
    return bool(status == "SUCCESS")


def _tell(client: DagsterClient, seen: set[str]) -> None:
    """A line for each run of the instance that has ended since."""
    for line in client.ended_runs(seen):
        print(line, flush=True)


def print_scores(storage: Storage, variant: str, config: Path) -> None:
    """The start and the tuned checkpoint side by side, on what was held out, and how to ask it."""
    name = product("evaluation", variant)
    if not is_recorded(storage, name):
        return
    summary = storage.read_json(f"{Lineage.read(storage, name).folder}/summary.json")
    rows = [{column: row[column] for column in SCORES} for row in summary["accuracy"]]
    print(f"\nshare of held-out questions answered right\n{text_table(rows)}")
    checkpoint = shlex.quote(product("stage3", variant))
    command = f"hourllava ask VIDEO --checkpoint {checkpoint}{config_option(config)}"
    print(f"\n{command}   asks the tuned checkpoint")
