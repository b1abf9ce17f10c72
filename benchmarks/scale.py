"""How usable Dagster stays with hundreds of parts and tens of thousands of videos, over the GraphQL
that its pages use.

    python -m benchmarks.scale [--preset tiny] [--parts 200] [--videos 28000]

Builds a catalogue of real size in a temporary folder, records a materialization of every partition
of every asset, starts `hourllava ui` on it, and times what a person waits for: loading the code
location, the pages, one tick of the automation, and a backfill over every part (its runs are queued
and never started).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

SETTINGS = """
root: root
parts: {parts}
variants: [3b, 7b]
annotations: {{paths: [rows.jsonl]}}
sources:
  panda: {{kind: url}}
  ego4d: {{kind: drop, folder: drop}}
  moviechat: {{kind: url}}
  activitynet: {{kind: url}}
  youcook2: {{kind: url}}
automation: {{data: false}}
"""
SOURCES = ("panda", "ego4d", "moviechat", "activitynet", "youcook2")
MOST_PARTS = 99  # that a first catalogue may have; more come from landings, one by one
QUESTIONS = 4  # a video
REPEATS = 5

GRAPH = """{ assetNodes {
  id assetKey { path } groupName description kinds isPartitioned jobNames pools
  dependencyKeys { path } dependedByKeys { path }
  partitionDefinition { name type dimensionTypes { name } } } }"""
LIVE = """{ assetNodes { assetKey { path } staleStatus
  partitionStats { numMaterialized numMaterializing numPartitions numFailed }
  assetMaterializations(limit: 1) { timestamp runId } } }"""
PARTITIONS = """query P($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) {
  partitionKeysByDimension { name partitionKeys }
  assetPartitionStatuses { __typename
    ... on DefaultPartitionStatuses {
      materializedPartitions failedPartitions unmaterializedPartitions }
    ... on MultiPartitionStatuses {
      primaryDimensionName
      ranges { primaryDimStartKey primaryDimEndKey secondaryDim {
        ... on DefaultPartitionStatuses { materializedPartitions unmaterializedPartitions }
      } } } } } }"""
ONE = """query One($keys: [AssetKeyInput!], $partition: String!) { assetNodes(assetKeys: $keys) {
  staleStatus(partition: $partition)
  assetMaterializations(partitions: [$partition], limit: 1) {
    timestamp runId metadataEntries { label } } } }"""
EVENTS = """query Events($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) {
  assetMaterializations(limit: 50) { timestamp partition metadataEntries { label } } } }"""
RELOAD = (
    """mutation { reloadRepositoryLocation(repositoryLocationName: "hourllava") { __typename } }"""
)
BACKFILL = """mutation B($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATE = """query S($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill {
  status numPartitions assetBackfillData { assetBackfillStatuses {
    ... on AssetPartitionsStatusCounts { numPartitionsInProgress } } } } } }"""
RUNS = """query R($id: String!) {
  runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
  ... on Runs { count } } }"""
CANCEL = "mutation C($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset", choices=["tiny", "full"], default="full", help="tiny: under two minutes"
    )
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--videos", type=int, default=28_000)
    chosen = parser.parse_args()
    if chosen.preset == "tiny":
        chosen.parts, chosen.videos = 12, 300
    with tempfile.TemporaryDirectory(prefix="hourllava-scale-") as name:
        folder = Path(name)
        write_deployment(folder, chosen.parts, chosen.videos)
        os.environ["HOURLLAVA_CONFIG"] = str(
            folder / "deployment.yaml"
        )  # before the code location is imported
        os.environ["DAGSTER_HOME"] = str(folder)
        os.chdir(folder)
        print(f"{chosen.parts} parts, {chosen.videos:,} videos of {len(SOURCES)} sources")
        catalogue(folder)
        history(folder, chosen.parts)
        served(folder, chosen.parts)


def write_deployment(folder: Path, parts: int, videos: int) -> None:
    """Settings, an instance that queues runs and starts none, and questions about every video."""
    from pipeline.demo.instance import REPOSITORY

    (folder / "drop").mkdir()
    (folder / "deployment.yaml").write_text(SETTINGS.format(parts=min(parts, MOST_PARTS)))
    instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    instance["concurrency"]["runs"]["max_concurrent_runs"] = 0
    (folder / "dagster.yaml").write_text(yaml.safe_dump(instance))
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(videos):
            source = SOURCES[number % len(SOURCES)]
            row = {"id": f"v{number}", "video": f"{source}/v{number}.mp4", "data_source": source}
            row |= {"URL": f"https://media.example.org/v{number}.mp4", "question_type": "scene/oe"}
            for question in range(QUESTIONS):
                asked = {
                    "question": f"What happens in scene {question} of {number}?",
                    "answer": f"It is {number}.",
                }
                file.write(json.dumps({**row, **asked}) + "\n")


def catalogue(folder: Path) -> None:
    from assets.annotations.build import build_catalogue
    from assets.annotations.collect import collect_annotations
    from assets.deployment.settings import load_settings
    from training.formats.storage import Storage

    settings = load_settings(folder / "deployment.yaml")
    storage = Storage(settings.root)
    with timed("annotations read and catalogued"):
        collect_annotations(storage, settings, lambda _: None)
        build_catalogue(storage, settings, lambda _: None)
    with timed("catalogued again, nothing new"):
        build_catalogue(storage, settings, lambda _: None)


def history(folder: Path, parts: int) -> None:
    """One materialization of every partition of every asset, and what that takes on the disk."""
    import dagster as dg

    from pipeline.definitions import definitions

    graph = definitions().resolve_asset_graph()
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        instance.add_dynamic_partitions("part", [f"part{index}" for index in range(parts)])
        count, began = 0, time.perf_counter()
        for key in graph.toposorted_asset_keys:
            partitions = graph.get(key).partitions_def
            keys = (
                partitions.get_partition_keys(dynamic_partitions_store=instance)
                if partitions
                else [None]
            )
            for partition in keys:
                tags = {"dagster/data_version": "1"}
                instance.report_runless_asset_event(
                    dg.AssetMaterialization(key, partition=partition, tags=tags)
                )
                count += 1
        took = time.perf_counter() - began
        size = sum(
            path.stat().st_size for path in (folder / ".dagster").rglob("*") if path.is_file()
        )
        print(
            f"{count:,} materializations recorded in {took:.0f} s, {size / 2**20:.1f} MiB of "
            "history"
        )
        data = dg.AssetSelection.tag("hourllava/automation", "data")
        cursor = None
        for name in ("first tick of the data automation", "a later tick, nothing new"):
            with timed(name):
                done = dg.evaluate_automation_conditions(
                    defs=definitions(), instance=instance, asset_selection=data, cursor=cursor
                )
            cursor = done.cursor


def served(folder: Path, parts: int) -> None:
    """What a person waits for in front of the running UI."""
    from pipeline.demo.instance import dagster

    began = time.perf_counter()
    with dagster(folder / "deployment.yaml", folder / "dagster.log", home=folder) as client:
        print(
            f"{'hourllava ui until the code location is loaded':55} "
            f"{time.perf_counter() - began:8.2f} s"
        )
        query = client.query
        asked("reload the code location", lambda: query(RELOAD), repeats=3)
        asked("asset graph, its structure", lambda: query(GRAPH))
        asked("asset graph, every asset's state", lambda: query(LIVE))
        for asset in ("videos", "conversations", "features"):
            keys = [{"path": [asset]}]
            asked(
                f"{asset}: all partitions and their states",
                partial(query, PARTITIONS, keys=keys),
            )
        conversations = [{"path": ["conversations"]}]
        asked(
            "conversations: one partition",
            lambda: query(ONE, keys=conversations, partition=f"part{parts - 1}"),
        )
        asked("conversations: last 50 events", lambda: query(EVENTS, keys=conversations))
        backfill(client, parts)
        asked("asset graph, every asset's state, with the runs queued", lambda: query(LIVE))


def backfill(client: Any, parts: int) -> None:
    """Launch a backfill over all parts, wait until its runs are queued, cancel it."""
    params = {
        "assetSelection": [{"path": ["conversations"]}],
        "partitionNames": [f"part{index}" for index in range(parts)],
    }
    with timed("backfill of all parts: launched"):
        answer = client.query(BACKFILL, params=params)["launchPartitionBackfill"]
        identifier = answer["backfillId"]

    def state() -> dict[str, Any]:
        return dict(client.query(STATE, id=identifier)["partitionBackfillOrError"])

    def queued() -> int:
        return int(client.query(RUNS, id=identifier)["runsOrError"]["count"])

    with timed("backfill of all parts: every run queued"):
        while queued() < parts:
            time.sleep(0.2)
    asked("backfill of all parts: its page", state)
    with timed("backfill of all parts: cancelled"):
        client.query(CANCEL, id=identifier)
        while state()["status"] not in ("CANCELED", "FAILED"):
            time.sleep(0.2)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what:55} {time.perf_counter() - began:8.2f} s", flush=True)


def asked(what: str, ask: Callable[[], Any], repeats: int = REPEATS) -> None:
    """Time a question; the first answer, which fills caches, is the one that a person waits for."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    print(f"{what:55} {times[0]:8.2f} s first, {statistics.median(times):.2f} s median", flush=True)


if __name__ == "__main__":
    main()
