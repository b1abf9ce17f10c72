"""Whether what a browser sends comes from a page of this server, or from one of another site.

A page from elsewhere may have its own name lead to this machine (DNS rebinding), or send what needs
no permission by the browser: pictures, forms, text, websockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = [
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def why_foreign(
    headers: Mapping[bytes, str], names: Collection[str] | None, proxied: Collection[str] = ()
) -> str:
    """Why a request comes from another site; empty where it does not.

    Args:
        headers: of the request, their names in small letters.
        names: hosts that the server answers under; None for all.
        proxied: those among them under which a reverse proxy is reached. It may hand requests on
            under another name than the one that the browser knows.
    """
    host = headers.get(b"host", "")
    if names is not None and hostname(host) not in names:
        return "this server only answers under the names of its own machine"
    origin = headers.get(b"origin")
    if origin is None or hostname(netloc := _netloc(origin)) in proxied:
        return ""
    return "" if netloc == host.lower() else "requests from pages of other sites are not answered"


def headers_of(scope: Scope) -> dict[bytes, str]:
    """The headers of a request or a websocket, their names in small letters."""
    return {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}


def hostname(host: str) -> str:
    """A Host header without its port, in small letters; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def with_headers(send: Send) -> Send:
    """`send`, with HEADERS added to each answer."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return sending


async def answer(
    send: Send, status: int, body: str, kind: str, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a whole answer of the content type `kind`."""
    headers = [(b"content-type", kind.encode()), *HEADERS, *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
