"""The demo: build the corpus, serve it, materialize every asset through a running Dagster, and tell
what came out.

Every step is launched over the webserver's GraphQL, as the UI's buttons do, and runs through the
run queue and the daemon. What is already materialized and up to date is left alone, so that a
second demo is quick.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assets.deployment.parts import LLAVA_PARTS, part_name
from assets.deployment.settings import Settings, load_settings
from assets.deployment.variants import one_of
from pipeline.demo.client import FINISHED, DagsterClient, partition_key
from pipeline.demo.corpus import SEED, Corpus, build_corpus
from pipeline.demo.following import Follower
from pipeline.demo.instance import dagster
from pipeline.demo.summary import print_summary
from training.formats.kinds import LLAVA_KINDS, LONG_VIDEO_KIND
from training.formats.storage import Storage
from training.progress import span

LOOK_S = 1.0
RUNS_TOGETHER = 2
SHOWN_TASK = "video: background"  # of the question that ends the demo


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


def run_demo(folder: Path, home: Path, variant: str = "tiny", seed: str = SEED) -> int:
    """Run the demo; returns 0 when every asset was made.

    Args:
        folder: where the corpus and everything made from it lies.
        home: folder with the `dagster.yaml` of the instance that keeps the history.
        variant: that is trained.
        seed: of the corpus and of the trainings.
    """
    started = time.monotonic()
    say("building the corpus")
    corpus = build_corpus(folder, seed, variant)
    settings = load_settings(corpus.settings)
    log = folder / "dagster.log"
    with corpus.serve(), dagster(corpus.settings, log, home) as client:
        say(f"{client.url} shows every step while this runs; Dagster's own log: {log}")
        with widened_pools(client):
            failed = not all(run_step(client, step) for step in steps(settings))
        print_summary(client, Storage(settings.root))
    failed = failed or not ask_about_unseen(corpus, one_of(settings.variants, None))
    say(f"{'stopped' if failed else 'finished'} after {span(time.monotonic() - started)}")
    say(f"hourllava ui --config {shlex.quote(str(corpus.settings))}   opens this deployment: every")
    say("  materialization, its metadata and its lineage")
    return 1 if failed else 0


@contextmanager
def widened_pools(client: DagsterClient) -> Iterator[None]:
    """Let two runs download, and two write shards, side by side."""
    client.set_pool_limit("download", RUNS_TOGETHER)
    # While a run starts, Dagster keeps a place for each of its steps, though it takes one at a
    # time; a run of LLaVA shards has a step for each kind.
    client.set_pool_limit("cpu", RUNS_TOGETHER * len(LLAVA_KINDS))
    try:
        yield
    finally:
        client.set_pool_limit("cpu", RUNS_TOGETHER)


def run_step(client: DagsterClient, step: Step) -> bool:
    """Materialize what of a step is missing or out of date; True when all of it is there. Its runs
    are waited for as long as they take.
    """
    launched: dict[str, str] = {}
    states = {asset: client.states(asset, step.partitions) for asset in step.assets}
    for number, partition in enumerate(step.partitions):
        due = [asset for asset in step.assets if states[asset][number] != "FRESH"]
        if due and step.chained:
            due = list(step.assets[step.assets.index(due[0]) :])
        if due:
            run = client.launch(step.job, due, partition)
            launched[run] = partition_key(partition) or step.title
    done_before = len(step.partitions) - len(launched)
    if not launched:
        say(f"{step.title}: already done")
        return True
    before = f", {done_before} already done" if done_before else ""
    page = f"{client.url}/runs{f'/{next(iter(launched))}' if len(launched) == 1 else ''}"
    say(f"{step.title}: {len(launched)} run{'s' if len(launched) > 1 else ''}{before}  {page}")
    began = time.monotonic()
    succeeded = wait(client, launched)
    say(f"  {time.monotonic() - began:.0f} s")
    return succeeded


def wait(client: DagsterClient, runs: Mapping[str, str]) -> bool:
    """Wait for runs to end, and print how they go on, and why one failed as soon as it has; True
    when all succeeded.

    Args:
        runs: id -> what it is called.
    """
    follower = Follower(client, say)
    ended: dict[str, str] = {}
    while True:
        found = client.runs(list(runs))
        states = {run: state["status"] for run, state in found.items()}
        for run, state in states.items():
            if state in FINISHED and run not in ended:
                ended[run] = state
                if state != "SUCCESS":
                    say(f"  {runs[run]}: {state}: {client.failure(run)}")
        if len(ended) == len(runs):
            return set(ended.values()) == {"SUCCESS"}
        follower.look({run: name for run, name in runs.items() if states.get(run) == "STARTED"})
        time.sleep(LOOK_S)


def ask_about_unseen(corpus: Corpus, variant: str) -> bool:
    """Ask the trained model about a long film that it has never seen, as anybody can; False when
    there was no answer.
    """
    rows = map(json.loads, corpus.questions.read_text().splitlines())
    row = next(row for row in rows if row["task"] == SHOWN_TASK and row["id"].startswith("long"))
    command = ["ask", str(corpus.questions.parent / row["path"]), row["question"]]
    command += ["--checkpoint", f"stage3[{variant}]", "--config", str(corpus.settings)]
    say(f"hourllava {shlex.join(command)}")
    answered = subprocess.run([sys.executable, "-m", "pipeline.cli", *command]).returncode == 0
    say(f"  (in the film it is {row['answer']})")
    return answered


def say(line: str) -> None:
    print(line, flush=True)
