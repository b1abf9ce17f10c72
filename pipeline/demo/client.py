"""A small client of a running Dagster webserver: it does what the UI's buttons do, over GraphQL."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from assets.records.lineage import product

LOCATION = "hourllava"
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on InvalidSubsetError { message }
    ... on PipelineNotFoundError { message }
    ... on PythonError { message }
  }
}"""
RUNS = """
query Runs($ids: [String!]) {
  runsOrError(filter: {runIds: $ids}) {
    ... on Runs { results {
      runId status startTime endTime stepStats { stepKey startTime endTime status }
    } }
  }
}"""
NEWEST = """
query {
  runsOrError(limit: 50) {
    ... on Runs { results {
      runId jobName status startTime endTime assetSelection { path } tags { key value }
    } }
  }
}"""
FAILURES = """
query Failures($id: ID!) {
  logsForRun(runId: $id) {
    ... on EventConnection { events {
      __typename
      ... on ExecutionStepFailureEvent {
        stepKey error { message cause { message } } failureMetadata { description }
      }
      ... on RunFailureEvent { message }
    } }
  }
}"""
MESSAGES = """
query Messages($id: ID!, $after: String) {
  logsForRun(runId: $id, afterCursor: $after) {
    ... on EventConnection { cursor events { __typename ... on LogMessageEvent { message } } }
  }
}"""
STALE = """
query Stale($keys: [AssetKeyInput!]) {
  assetNodes(assetKeys: $keys) { assetKey { path } %s }
}"""


def partition_key(partition: Mapping[str, str]) -> str:
    """One key for all dimensions, as Dagster spells it: by the dimensions' names."""
    return "|".join(partition[name] for name in sorted(partition))


class DagsterError(RuntimeError):
    """The webserver refused a request, or a run did not succeed."""


class DagsterClient:
    """Talks to one webserver. `url` is e.g. `http://127.0.0.1:3000`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            data=json.dumps({"query": text, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            answer = json.load(response)
        if answer.get("errors"):
            raise DagsterError("; ".join(error["message"] for error in answer["errors"]))
        return dict(answer["data"])

    def wait_until_ready(self, timeout_s: float = 600) -> None:
        """Return when the code location is loaded.

        Args:
            timeout_s: generous, because a machine under load takes minutes.

        Raises:
            DagsterError: it failed to load (with its message), or did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                data = self.query(
                    "{ workspaceOrError { ... on Workspace { locationEntries { name "
                    "locationOrLoadError { __typename ... on PythonError { message causes { "
                    "message } } } } } } }"
                )
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
                continue
            for entry in data["workspaceOrError"].get("locationEntries", []):
                state = entry["locationOrLoadError"]
                if state and state["__typename"] == "PythonError":
                    messages = [state["message"], *(cause["message"] for cause in state["causes"])]
                    raise DagsterError(
                        f"code location {entry['name']} failed to load: {' '.join(messages)}"
                    )
                if state and entry["name"] == LOCATION:
                    return
            time.sleep(0.3)
        raise DagsterError(f"{self.url}: the code location was not loaded within {timeout_s:.0f} s")

    def launch(
        self,
        job: str,
        assets: Sequence[str] = (),
        partition: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Launch a job, or some of its assets, for one partition; returns the run's id.

        Args:
            partition: dimension -> key; the dimension's name does not matter where there is only
                one.
            config: of the run, as the launchpad takes it.
        """
        tags: list[dict[str, str]] = []
        if partition:
            tags.append({"key": "dagster/partition", "value": partition_key(partition)})
        if partition and len(partition) > 1:
            tags += [
                {"key": f"dagster/partition/{name}", "value": key}
                for name, key in partition.items()
            ]
        parameters = {
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": "__repository__",
                "pipelineName": job,
                "assetSelection": [{"path": [name]} for name in assets] or None,
            },
            "mode": "default",
            "runConfigData": dict(config or {}),
            "executionMetadata": {"tags": tags},
        }
        answer = self.query(LAUNCH, params=parameters)["launchPipelineExecution"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise DagsterError(
                f"{job} {list(assets)} [{partition}] was not launched: {json.dumps(answer)}"
            )
        return str(answer["run"]["runId"])

    def runs(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """State of runs, by id."""
        results = self.query(RUNS, ids=list(ids))["runsOrError"]["results"]
        return {run["runId"]: run for run in results}

    def ended_runs(self, seen: set[str]) -> list[str]:
        """A line for each run of the newest ones that has ended and is not in `seen`, which then
        holds it.
        """
        lines = []
        for run in reversed(self.query(NEWEST)["runsOrError"]["results"]):
            if run["status"] in FINISHED and run["runId"] not in seen:
                seen.add(run["runId"])
                seconds = (run["endTime"] or 0) - (run["startTime"] or run["endTime"] or 0)
                lines.append(f"  {_what(run)}: {run['status'].lower()}, {seconds:.0f} s")
        return lines

    def failure(self, run_id: str) -> str:
        """Why a run failed, in the words of its steps."""
        events = self.query(FAILURES, id=run_id)["logsForRun"]["events"]
        lines = []
        for event in events:
            if event["__typename"] == "ExecutionStepFailureEvent":
                described = (event["failureMetadata"] or {}).get("description")
                error = event["error"]["cause"] or event["error"]
                lines.append(f"{event['stepKey']}: {described or error['message'].strip()}")
        return "\n".join(lines) or "\n".join(
            e["message"] for e in events if e["__typename"] == "RunFailureEvent"
        )

    def messages(self, run_id: str, after: str | None = None) -> tuple[list[str], str]:
        """What a run's steps logged after a cursor, and the cursor to go on from."""
        found = self.query(MESSAGES, id=run_id, after=after)["logsForRun"]
        said = [
            event["message"]
            for event in found["events"]
            if event["__typename"] == "LogMessageEvent"
        ]
        return said, str(found["cursor"])

    def running(self) -> dict[str, str]:
        """The newest runs that go on: id -> what it makes."""
        found = self.query(NEWEST)["runsOrError"]["results"]
        return {run["runId"]: _what(run) for run in found if run["status"] == "STARTED"}

    def set_pool_limit(self, pool: str, limit: int) -> None:
        """How many steps of a pool may run side by side; kept by the instance."""
        self.query(
            "mutation Limit($pool: String!, $limit: Int!)"
            " { setConcurrencyLimit(concurrencyKey: $pool, limit: $limit) }",
            pool=pool,
            limit=limit,
        )

    def states(self, asset: str, partitions: Sequence[Mapping[str, str]]) -> list[str]:
        """FRESH, STALE or MISSING for each partition of an asset, as the UI shows it; `{}` where
        there are none.
        """
        keys = [json.dumps(partition_key(partition)) for partition in partitions]
        fields = " ".join(
            f"p{i}: staleStatus" + (f"(partition: {key})" if partitions[i] else "")
            for i, key in enumerate(keys)
        )
        nodes = self.query(STALE % fields, keys=[{"path": [asset]}])["assetNodes"]
        if not nodes:
            raise DagsterError(f"no asset {asset!r} in the code location")
        return [str(nodes[0][f"p{i}"]) for i in range(len(partitions))]


def _what(run: Mapping[str, Any]) -> str:
    """The assets and the partition that a run is about, or its job."""
    assets = ", ".join(sorted(asset["path"][-1] for asset in run["assetSelection"] or ()))
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    return product(assets or run["jobName"], tags.get("dagster/partition"))
