"""Who may use the server: a check of every request and every websocket before anything else sees
it.

Without a token the server listens on this machine alone, and takes only requests that name this
machine as their host: a page from elsewhere that has its own name lead here (DNS rebinding) is
refused. With a token each request carries it, as a header or as the cookie that /login sets. What a
browser sends from another site is refused either way.
"""

from __future__ import annotations

import hashlib
import hmac
import html
from collections.abc import MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from assets.serving.origin import (
    LOOPBACK,
    App,
    Receive,
    Scope,
    Send,
    answer,
    headers_of,
    why_foreign,
    with_headers,
)

TOKEN_VARIABLE = "HOURLLAVA_SERVE_TOKEN"
LEAST_TOKEN = 16
COOKIE = "hourllava"
LOGIN = "/login"
MOST_LOGIN_BYTES = 4096


def check_address(host: str, token: str | None) -> None:
    """Raise ValueError where a server would be open to others without a token, or with a weak
    one.
    """
    if token is not None and len(token) < LEAST_TOKEN:
        raise ValueError(f"{TOKEN_VARIABLE} is shorter than {LEAST_TOKEN} characters")
    if token is None and host not in LOOPBACK:
        raise ValueError(
            f"to listen on {host} a token is needed: set {TOKEN_VARIABLE} to a long random text, "
            "for example from `openssl rand -hex 32`"
        )


class Access:
    """ASGI middleware.

    Args:
        token: that each request must carry; None asks for none.
        most_bytes: of one request.
    """

    def __init__(self, app: App, token: str | None, most_bytes: int) -> None:
        self.app, self._token, self._most_bytes = app, token, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        page_wanted = "text/html" in headers.get(b"accept", "")
        if refused := why_foreign(headers, LOOPBACK if self._token is None else None):
            await _refuse(scope, receive, send, 403, refused)
        elif _stated_length(headers) > self._most_bytes:
            message = f"the request is larger than {self._most_bytes:,} bytes"
            await _refuse(scope, receive, send, 413, message)
        elif self._token is None or self._carries(headers):
            await self.app(scope, _bounded(receive, self._most_bytes), with_headers(send))
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", LOGIN):
            await self._log_in(scope, receive, send)
        elif scope["type"] == "http" and page_wanted:
            await answer(send, 401, _login_page(""), "text/html; charset=utf-8")
        else:
            await _refuse(scope, receive, send, 401, "the token is missing or wrong")

    def _carries(self, headers: dict[bytes, str]) -> bool:
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(
            cookie.value.encode(), self._cookie().encode()
        )

    def _is_token(self, given: str) -> bool:
        assert self._token is not None  # asked only where there is one
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _cookie(self) -> str:
        """What shows that a browser has logged in; the token cannot be had from it."""
        assert self._token is not None
        return hmac.new(self._token.encode(), b"cookie", hashlib.sha256).hexdigest()

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more and len(body) <= MOST_LOGIN_BYTES:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        fields = parse_qs(body[:MOST_LOGIN_BYTES].decode("latin-1"))
        if not self._is_token(fields.get("token", [""])[0]):
            page = _login_page("That is not the token.")
            await answer(send, 401, page, "text/html; charset=utf-8")
            return
        secure = "; Secure" if scope["scheme"] == "https" else ""
        cookie = f"{COOKIE}={self._cookie()}; HttpOnly; SameSite=Strict; Path=/{secure}"
        await answer(
            send,
            303,
            "",
            "text/plain",
            [(b"location", b"/"), (b"set-cookie", cookie.encode())],
        )


def _login_page(told: str) -> str:
    return (
        "<!doctype html><meta charset=utf-8><title>Hour-LLaVA</title>"
        "<body style='font-family:sans-serif;max-width:30rem;margin:4rem auto'>"
        f"<h1>Hour-LLaVA</h1><p>{html.escape(told)}</p><form method=post action='{LOGIN}'>"
        "<label>Token <input type=password name=token autofocus></label> "
        "<button>Enter</button></form>"
    )


def _stated_length(headers: dict[bytes, str]) -> int:
    stated = headers.get(b"content-length", "0")
    return int(stated) if stated.isdecimal() and len(stated) < 20 else 0


def _bounded(receive: Receive, most: int) -> Receive:
    """A request that is larger than it may be ends as if its sender had gone."""
    came = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b"")) if message["type"] == "http.request" else 0
        return message if came <= most else {"type": "http.disconnect"}

    return receiving


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    from assets.serving.openai_protocol import error_body

    await answer(send, status, error_body(why, "invalid_request_error"), "application/json")
