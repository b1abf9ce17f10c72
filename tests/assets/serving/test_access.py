"""Who is answered: nobody from another site, nobody without the token where there is one."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from assets.serving.access import Access, check_address

TOKEN = "a token of this test alone"
HERE = "http://127.0.0.1:8765"


async def _read(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


def browser(token=None, base=HERE, most=1000):
    routes = [Route("/", _read, methods=["GET", "POST"]), WebSocketRoute("/socket", _socket)]
    return TestClient(Access(Starlette(routes=routes), token, most), base_url=base)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost:1", "[::1]:8765"])
def test_without_a_token_this_machine_is_answered(host):
    answer = browser().get("/", headers={"host": host})
    assert answer.text == "0 bytes"
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "192.168.1.2", ""]
)
def test_without_a_token_no_other_name_of_it_is(host):
    answer = browser().get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "names of its own machine" in answer.json()["error"]["message"]


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:8766"])
def test_what_a_page_of_another_site_sends_is_refused(token, origin):
    headers = {"origin": origin, "authorization": f"Bearer {TOKEN}"}
    assert browser(token).post("/", headers=headers).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        browser(token).websocket_connect("/socket", headers={**headers, "host": "127.0.0.1:8765"}),
    ):
        pass


def test_a_page_of_its_own_may_ask_and_open_a_socket():
    headers = {"origin": HERE, "host": "127.0.0.1:8765"}
    assert browser().post("/", headers=headers).status_code == 200
    with browser().websocket_connect("/socket", headers=headers) as socket:
        assert socket.receive_text() == "hello"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": "hourllava=wrong"},
        {"cookie": f"hourllava={TOKEN}"},
    ],
)
def test_a_missing_or_wrong_token_is_refused(headers):
    answer = browser(TOKEN, "http://gpu.example").get("/", headers=headers)
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_the_token_opens_it_as_a_header_and_after_a_login():
    base = "http://gpu.example"
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert browser(TOKEN, base).get("/", headers=bearer).text == "0 bytes"
    person = browser(TOKEN, base)
    assert "<form" in person.get("/", headers={"accept": "text/html"}).text
    wrong = person.post("/login", data={"token": "guess"}, follow_redirects=False)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    entered = person.post("/login", data={"token": TOKEN}, follow_redirects=False)
    assert entered.status_code == 303
    for word in ("HttpOnly", "SameSite=Strict"):
        assert word in entered.headers["set-cookie"]
    assert TOKEN not in entered.headers["set-cookie"]
    assert person.get("/").text == "0 bytes"


def test_a_request_that_is_too_large_is_not_read_to_its_end():
    assert browser().post("/", content=b"x" * 1000).text == "1000 bytes"
    assert browser().post("/", content=b"x" * 1001).status_code == 413
    with pytest.raises(ClientDisconnect):  # in pieces, which state no length
        browser().post("/", content=iter([b"x" * 600] * 2))


def test_other_addresses_need_a_token_that_is_long():
    check_address("127.0.0.1", None)
    check_address("0.0.0.0", TOKEN)
    with pytest.raises(ValueError, match="HOURLLAVA_SERVE_TOKEN"):
        check_address("0.0.0.0", None)
    with pytest.raises(ValueError, match="shorter than 16"):
        check_address("127.0.0.1", "short")
