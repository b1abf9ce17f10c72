"""The demo: build the corpus, serve it, materialize every asset through a running Dagster, and tell
what came out.

Every step is launched over the webserver's GraphQL, as the UI's buttons do, and runs through the
run queue and the daemon. What is already materialized and up to date is left alone, so that a
second demo is quick.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.settings import Settings, load_settings
from assets.deployment.variants import one_of
from model.config import VARIANTS
from pipeline.demo.client import FINISHED, DagsterClient, DagsterError, partition_key
from pipeline.demo.corpus import build_corpus
from pipeline.demo.instance import REPOSITORY, dagster
from pipeline.demo.summary import print_summary
from training.formats.kinds import LLAVA_KINDS, LONG_VIDEO_KIND
from training.formats.storage import Storage

RUN_TIMEOUT_S = 1800


@dataclass(frozen=True, slots=True)
class Step:
    """Assets of one job, launched once for each of some partitions; all runs of a step may run side
    by side.

    Attributes:
        partitions: dimension -> key, for each run; `{}` for assets without partitions.
        chained: whether each asset is made from the one before it, so that making one makes the
            later ones again.
    """

    title: str
    job: str
    assets: tuple[str, ...]
    partitions: tuple[dict[str, str], ...] = ({},)
    chained: bool = True


def steps(settings: Settings) -> list[Step]:
    """The whole graph in order.

    Raises:
        ValueError: the settings do not say how many parts there are.
    """
    if settings.parts is None:
        raise ValueError("the demo's settings say how many parts its videos are dealt to")
    parts = [part_name(index) for index in range(settings.parts)]
    collect = ("annotations", "catalogue", "llava_onevision", "llava_video")
    to_stage2 = ("base_model", "stage1", "stage2", "vision_encoder")
    variant = {"variant": one_of(settings.variants, None)}
    return [
        Step("sources", "01_collect_sources", collect, chained=False),
        Step(
            "videos",
            "04_acquire_videos",
            ("videos",),
            tuple(
                {"part": part, "source": source}
                for part in parts
                for source in sorted(settings.sources)
            ),
        ),
        Step(
            "LLaVA shards",
            "03_shard_llava",
            LLAVA_KINDS,
            tuple({"part": part_name(index)} for index in range(LLAVA_PARTS)),
            chained=False,
        ),
        Step(
            "long-video conversations and shards",
            "05_shard_long_videos",
            ("conversations", LONG_VIDEO_KIND),
            tuple({"part": part} for part in parts),
        ),
        Step("annotations for people", "12_export_annotations", ("videomarathon_json",)),
        Step("stages 1 and 2", "07_train_to_stage2", to_stage2, (variant,)),
        Step(
            "features",
            "08_extract_features",
            ("features",),
            tuple({"part": part, **variant} for part in parts),
        ),
        Step("mixture", "09_mix", ("hourllava_s3",)),
        Step("stage 3 and evaluation", "10_train_stage3", ("stage3", "evaluation"), (variant,)),
    ]


def run_demo(
    folder: Path = REPOSITORY / ".demo", home: Path = REPOSITORY, variant: str = "tiny"
) -> int:
    """Run the demo; returns 0 when every asset was made.

    Args:
        folder: where the corpus and everything made from it lies.
        variant: that is trained. Only the demo's own has to be done within a time.
        home: folder with the `dagster.yaml` of the instance that keeps the history.
    """
    started = time.monotonic()
    say("building the corpus")
    corpus = build_corpus(folder, variant=variant)
    limit = RUN_TIMEOUT_S if VARIANTS[variant].is_demo else None
    settings = load_settings(corpus.settings)
    failed = False
    with corpus.serve(), dagster(corpus.settings, folder / "dagster.log", home) as client:
        for pool in ("download", "cpu"):
            client.set_pool_limit(pool, 2)
        for step in steps(settings):
            if not run_step(client, step, limit):
                failed = True
                break
        print_summary(client, Storage(settings.root))
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    say(f"{'stopped' if failed else 'finished'} after {minutes} min {seconds:02d} s")
    say("make ui   opens this deployment: every materialization, its metadata and its lineage")
    return 1 if failed else 0


def run_step(client: DagsterClient, step: Step, timeout_s: float | None = RUN_TIMEOUT_S) -> bool:
    """Materialize what of a step is missing or out of date; True when all of it is there. None
    waits for its runs as long as they take.
    """
    launched: dict[str, str] = {}
    states = {asset: client.states(asset, step.partitions) for asset in step.assets}
    for number, partition in enumerate(step.partitions):
        due = [asset for asset in step.assets if states[asset][number] != "FRESH"]
        if due and step.chained:
            due = list(step.assets[step.assets.index(due[0]) :])
        if due:
            launched[client.launch(step.job, due, partition)] = partition_key(partition)
    done_before = len(step.partitions) - len(launched)
    if not launched:
        say(f"{step.title}: already done")
        return True
    before = f", {done_before} already done" if done_before else ""
    say(f"{step.title}: {len(launched)} run{'s' if len(launched) > 1 else ''}{before}")
    began = time.monotonic()
    states_of_runs = wait(client, list(launched), timeout_s)
    failures = {run: state for run, state in states_of_runs.items() if state != "SUCCESS"}
    for run, state in failures.items():
        say(f"  {launched[run] or step.title}: {state}: {client.failure(run)}")
    say(f"  {time.monotonic() - began:.0f} s")
    return not failures


def wait(
    client: DagsterClient, runs: Sequence[str], timeout_s: float | None = RUN_TIMEOUT_S
) -> dict[str, str]:
    """Wait for runs to end; `{run id: status}`.

    Raises:
        DagsterError: not all ended in time.
    """
    deadline = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
    while time.monotonic() < deadline:
        found = client.runs(runs)
        if all(run["status"] in FINISHED for run in found.values()) and len(found) == len(runs):
            return {name: run["status"] for name, run in found.items()}
        time.sleep(1)
    raise DagsterError(f"runs did not end within {timeout_s} s: {', '.join(runs)}")


def say(line: str) -> None:
    print(line, flush=True)
