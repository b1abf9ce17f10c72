"""Notices: who is told, in which time, and that no address is ever logged."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from assets.deployment.automation import Notices
from pipeline.notices import notify

SECRET = "s3cret-token"


class Hook:
    """A webhook that keeps what it was sent, and answers as it is told: a status, or `hang`."""

    def __init__(self) -> None:
        self.behaviour: int | str = 200
        self.got: list[dict] = []
        self.asked = 0
        hook, self.released = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.asked += 1
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if hook.behaviour == "hang":
                    for _ in range(600):  # a byte now and then: no read of it ever times out
                        if hook.released.wait(0.5):
                            return
                        self.wfile.write(b"H")
                        self.wfile.flush()
                    return
                if hook.behaviour == 200:
                    hook.got.append(body)
                self.send_response(int(hook.behaviour))
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"json://127.0.0.1:{self.server.server_address[1]}/{SECRET}"


@pytest.fixture
def hook(monkeypatch):
    made = Hook()
    monkeypatch.setenv("HOURLLAVA_NOTICES", made.url)
    yield made
    made.released.set()
    made.server.shutdown()


def tell(settings: Notices | None = None, event: str = "run_failed") -> tuple[bool, list[str]]:
    said: list[str] = []
    sent = notify(settings or Notices(), event, "conversations[part0] failed", "Why", said.append)
    return sent, said


@pytest.mark.slow
def test_a_webhook_gets_title_and_text(hook):
    assert tell() == (True, [])
    (message,) = hook.got
    assert message["title"] == "conversations[part0] failed"
    assert message["message"] == "Why"


def test_only_the_events_of_the_settings_are_told(hook):
    assert tell(Notices(events=["held"])) == (False, [])
    assert tell(Notices(events=["held"]), "held") == (True, [])


def test_without_addresses_nothing_happens(monkeypatch):
    monkeypatch.delenv("HOURLLAVA_NOTICES", raising=False)
    assert tell() == (False, [])


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", [500, 404])
def test_a_service_that_refuses_is_named_by_its_kind_alone(hook, behaviour):
    hook.behaviour = behaviour
    sent, (said,) = tell()
    assert not sent
    assert "1 of 1 services: json" in said
    assert SECRET not in said
    assert "127.0.0.1" not in said


@pytest.mark.slow
def test_a_service_that_never_ends_its_answer_costs_the_time_of_the_settings(hook):
    hook.behaviour = "hang"
    began = time.monotonic()
    sent, (said,) = tell(Notices(timeout_s=8))
    assert not sent
    assert time.monotonic() - began < 20
    assert "not delivered within 8 s" in said
    assert SECRET not in said


def test_one_bad_address_does_not_keep_the_others_from_their_notice(hook, monkeypatch):
    monkeypatch.setenv("HOURLLAVA_NOTICES", f"{SECRET}:nonsense {hook.url}")
    sent, (said,) = tell()
    assert not sent
    assert len(hook.got) == 1
    assert "1 of 2 services" in said
    assert SECRET not in said


def test_a_long_text_is_cut(hook):
    said: list[str] = []
    assert notify(Notices(), "held", "t", "x" * 100_000, said.append)
    assert len(hook.got[0]["message"]) == 3000
