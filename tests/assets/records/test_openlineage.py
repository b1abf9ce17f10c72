"""OpenLineage events, as a collector receives them; and targets that hang, refuse or are away."""

import json
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dagster as dg
import pytest

from assets.records import openlineage
from assets.records.lineage import Lineage

RECORD = Lineage(
    "stage3[tiny]",
    "v3",
    inputs={"hourllava_s3": "m", "stage2[tiny]": "v2"},
    counts={"samples": 7},
    run_id="0f8fad5b-d9cb-469f-a165-70867728950e",
    files=2,
    bytes=99,
)


@contextmanager
def collector(behaviour):
    """An HTTP server that notes (path, key, event) and answers as `behaviour` says."""
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            behaviour(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        server.server_close()


def accept(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def refuse(handler):
    handler.send_response(500)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def drip(handler):
    """Never answers, and never is silent for long."""
    for _ in range(200):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def quiet_before(monkeypatch):
    monkeypatch.setattr(openlineage, "_warned", False)
    for name in (openlineage.URL, openlineage.KEY, openlineage.NAMESPACE):
        monkeypatch.delenv(name, raising=False)


def test_a_product_becomes_an_event_with_its_inputs_and_their_versions(monkeypatch):
    with collector(accept) as (url, taken):
        monkeypatch.setenv(openlineage.URL, url)
        monkeypatch.setenv(openlineage.KEY, "secret")
        monkeypatch.setenv(openlineage.NAMESPACE, "lab")
        warned = []
        assert openlineage.tell(RECORD, warned.append)
        assert openlineage.tell(RECORD, warned.append)
    assert warned == []
    (path, key, event), (_, _, again) = taken
    assert (path, key) == ("/api/v1/lineage", "Bearer secret")
    assert event["eventType"] == "COMPLETE"
    assert event["job"]["namespace"] == "lab"
    assert event["job"]["name"] == "stage3"
    assert uuid.UUID(event["run"]["runId"]) == uuid.UUID(again["run"]["runId"])
    inputs = {item["name"]: item["facets"]["version"]["datasetVersion"] for item in event["inputs"]}
    assert inputs == RECORD.inputs
    (output,) = event["outputs"]
    assert output["name"] == "stage3[tiny]"
    assert output["facets"]["version"]["datasetVersion"] == "v3"
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["size"], statistics["fileCount"]) == (7, 99, 2)


def test_without_an_address_nothing_is_sent():
    assert not openlineage.tell(RECORD, pytest.fail)


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [refuse, drip])
def test_a_target_that_refuses_or_hangs_is_named_once_and_costs_seconds(monkeypatch, behaviour):
    monkeypatch.setattr(openlineage, "MOST_S", 1.0)
    with collector(behaviour) as (url, _):
        monkeypatch.setenv(openlineage.URL, url.replace("http://", "http://user:password@"))
        warned, started = [], time.monotonic()
        assert not openlineage.tell(RECORD, warned.append)
        assert not openlineage.tell(RECORD, warned.append)
        assert time.monotonic() - started < 20
    (sentence,) = warned
    assert "127.0.0.1 does not take events" in sentence
    assert "password" not in sentence


def test_a_target_that_is_away_and_a_library_that_is_not_there_fail_no_step(monkeypatch):
    monkeypatch.setenv(openlineage.URL, "http://127.0.0.1:9")
    warned = []
    assert not openlineage.tell(RECORD, warned.append)
    monkeypatch.setattr(openlineage, "_warned", False)

    def missing(_):
        raise ImportError("openlineage")

    monkeypatch.setattr(openlineage, "_transport", missing)
    assert not openlineage.tell(RECORD, warned.append)
    assert "hour-llava[openlineage]" in warned[1]


def test_a_materialization_sends_the_event_of_its_product(monkeypatch, tmp_path):
    from assets.deployment.resources import Deployment
    from assets.records.publishing import publish

    (tmp_path / "deployment.yaml").write_text(
        "root: root\nannotations: {paths: [q.jsonl]}\nsources: {a: {kind: drop, folder: d}}\n"
    )

    @dg.asset
    def thing(context: dg.AssetExecutionContext, deployment: Deployment):
        yield from publish(context, deployment, version="v", inputs={"other": "w"}, counts={})

    with collector(accept) as (url, taken), dg.instance_for_test() as instance:
        monkeypatch.setenv(openlineage.URL, url)
        resources = {"deployment": Deployment(config=str(tmp_path / "deployment.yaml"))}
        assert dg.materialize([thing], instance=instance, resources=resources).success
    ((_, _, event),) = taken
    assert event["outputs"][0]["name"] == "thing"
