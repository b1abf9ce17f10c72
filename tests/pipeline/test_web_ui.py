"""`hourllava ui` as pages of other sites meet it: real requests to the running server."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
import yaml
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from assets.evaluation.answers import Answer
from assets.evaluation.report import example_question
from assets.records.rendering import description, product_links, samples, table
from pipeline.demo.client import DagsterClient
from pipeline.demo.instance import REPOSITORY
from tests.pipeline.browser import browser, missing_chromium

pytestmark = pytest.mark.slow

PROXIED = "ui.example.org"
ADD = """mutation { addDynamicPartition(partitionsDefName: "part", partitionKey: "evil",
  repositorySelector: {repositoryLocationName: "hourllava", repositoryName: "__repository__"}
) { __typename } }"""
OTHER = "http://127.0.0.1:1"
EVIL = "http://evil.example"
JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
BODY = json.dumps({"query": ADD})
IN_ADDRESS = f"/graphql?query={quote(ADD)}"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ui")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    row = {"video": "clips/v.mp4", "data_source": "clips", "question": "What?", "answer": "Red."}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "drop").mkdir()
    settings = {
        "root": "root",
        "parts": 1,
        "variants": ["tiny"],
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {"clips": {"kind": "drop", "folder": "drop"}},
        "automation": {"data": False},
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def port(home) -> Iterator[int]:
    """Where the command listens. At the end it is killed, and leaves no process and a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port), "--name", PROXIED]
    command += ["--config", str(home / "deployment.yaml")]
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    with open(home / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        DagsterClient(f"http://127.0.0.1:{port}").wait_until_ready()
        assert len(processes(home)) >= 5, "the command, the server, the daemon, the code's two"
        yield port
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(90)
    deadline = time.monotonic() + 90
    while left := processes(home):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed ones linger
        again.bind(("127.0.0.1", port))
    assert "superseded" not in (home / "log").read_text()


def processes(home: Path) -> dict[str, str]:
    """Every process of the instance in `home`, by its own environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"DAGSTER_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[folder.name] = (folder / "cmdline").read_text()
    return found


def ask(port, method, path, headers, body=None):
    """Status and text of an answer to exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    headers = {"Host": f"127.0.0.1:{port}", **headers}
    if body is not None:
        headers["Content-Length"] = str(len(body))
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(None if body is None else body.encode())
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read().decode(), answer.headers


def parts(home) -> list[str]:
    with contextlib.chdir(home), dg.DagsterInstance.from_config(str(home)) as instance:
        return list(instance.get_dynamic_partitions("part"))


FOREIGN = {
    "a picture in a page": (405, "GET", IN_ADDRESS, {"Accept": "image/avif,*/*"}, None),
    "a picture, with a slash": (405, "GET", "/graphql/?query=" + quote(ADD), {}, None),
    "HEAD": (405, "HEAD", IN_ADDRESS, {}, None),
    "text without an origin": (405, "POST", IN_ADDRESS, TEXT, "x"),
    "a form": (405, "POST", IN_ADDRESS, {"Content-Type": "multipart/form-data"}, "x"),
    "text that names JSON": (
        405, "POST", "/graphql", {"Content-Type": "text/plain; application/json"}, BODY,
    ),
    "text from another site": (
        403, "POST", IN_ADDRESS, {**TEXT, "Origin": EVIL}, "x",
    ),
    "JSON from another site": (403, "POST", "/graphql", {**JSON, "Origin": EVIL}, BODY),
    "JSON from another port": (403, "POST", "/graphql", {**JSON, "Origin": OTHER}, BODY),
    "JSON from a file": (403, "POST", "/graphql", {**JSON, "Origin": "null"}, BODY),
    "a broken origin": (403, "POST", "/graphql", {**JSON, "Origin": "http://[evil"}, BODY),
    "a rebound name": (
        403, "POST", "/graphql", {**JSON, "Host": "evil.example", "Origin": EVIL}, BODY,
    ),
    "a name that begins like ours": (
        403, "POST", "/graphql", {**JSON, "Host": "localhost.evil.example"}, BODY,
    ),
    "a page under a rebound name": (403, "GET", "/", {"Host": "evil.example"}, None),
    "a report of an asset": (
        403, "POST", "/report_asset_materialization/x", {"Origin": EVIL}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_page_of_another_site_sends_to_the_ui_does_nothing(home, port, case):
    status, method, path, headers, body = FOREIGN[case]
    got, said, _ = ask(port, method, path, headers, body)
    assert (got, "__typename" in said) == (status, False), said
    assert "evil" not in parts(home)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": f"{PROXIED}", "Origin": f"https://{PROXIED}"},
        {"Origin": f"https://{PROXIED}"},
        {"Host": "localhost:{port}", "Origin": "http://localhost:{port}"},
        {"Host": "[::1]:{port}"},
        {},
    ],
    ids=["proxy", "proxy that changes the name", "localhost", "IPv6", "no browser"],
)
def test_the_own_page_and_a_proxy_that_was_named_are_answered(home, port, headers):
    given = {name: value.format(port=port) for name, value in headers.items()}
    body = json.dumps({"query": "{ version }"})
    status, said, answered = ask(port, "POST", "/graphql", {**JSON, **given}, body)
    assert (status, json.loads(said)["data"]["version"]) == (200, dg.__version__)
    assert answered["X-Frame-Options"] == "DENY"
    assert ask(port, "GET", "/server_info", given)[0] == 200


def socket_of(port, **headers):
    return connect(
        f"ws://127.0.0.1:{port}/graphql", subprotocols=["graphql-ws"], compression=None, **headers
    )


def test_a_websocket_of_another_site_is_refused_and_the_own_one_is_answered(port):
    for origin in (EVIL, OTHER):
        with pytest.raises(InvalidStatus, match="403"), socket_of(port, origin=origin):
            pass
    with socket_of(port, origin=f"http://127.0.0.1:{port}") as own:
        own.send(json.dumps({"type": "connection_init"}))
        assert json.loads(own.recv(60))["type"] == "connection_ack"


@pytest.mark.skipif(bool(missing_chromium()), reason=str(missing_chromium()))
def test_a_browser_shows_what_strangers_wrote_and_fetches_nothing_of_it(home, port):
    nasty = f"![x]({IN_ADDRESS}) <img src='{IN_ADDRESS}'> [l]({IN_ADDRESS}) http://evil.example"
    answer = Answer(
        id=nasty, task=nasty, form="open", duration=1.0, prompt=nasty, expected=nasty, chosen=nasty,
        generated=nasty, correct=True, written_correct=True,
    )  # fmt: skip
    told = {
        "a link of ours": product_links(["annotations", nasty]),
        "one question": table(example_question([answer])),
        "a text": nasty,
        **samples([{"id": "a", "note": nasty, "conversation": f"human: {nasty}\ngpt: {nasty}"}]),
    }
    with contextlib.chdir(home), dg.DagsterInstance.from_config(str(home)) as instance:
        event = dg.AssetMaterialization(
            "annotations", description=description(nasty), metadata=told
        )
        instance.report_runless_asset_event(event)
    with browser(f"http://127.0.0.1:{port}", width=1600) as ui:
        sent: list[str] = []
        ui.page.on("request", lambda request: sent.append(f"{request.method} {request.url}"))
        ui.open("/assets/annotations?view=events")
        expect(ui.page.get_by_text("http://evil.example").first).to_be_visible()
        expect(ui.page.get_by_role("link", name="annotations", exact=True).first).to_be_visible()
        for active in ("img[src*=graphql]", "a[href*=graphql]", "a[href*='evil.example']"):
            expect(ui.page.locator(active)).to_have_count(0)
        assert ui.problems == []
        assert not [request for request in sent if "mutation" in request]
    assert "evil" not in parts(home)


def test_the_mutation_would_do_something(home, port):
    """After all others: what they send is no empty threat."""
    status, said, _ = ask(port, "POST", "/graphql", JSON, BODY)
    assert (status, "AddDynamicPartitionSuccess" in said) == (200, True), said
    assert "evil" in parts(home)
