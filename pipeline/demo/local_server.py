"""A local HTTP server whose answers a subclass gives; it knows byte ranges."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for. `path` is unquoted and without its query."""

    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes = b""

    @property
    def range(self) -> str | None:
        """The `Range` header."""
        return self.headers.get("Range")


@dataclass(frozen=True, slots=True)
class Content:
    """A body that lies in memory or in a file; `size` in bytes."""

    data: bytes | Path
    size: int

    @staticmethod
    def of(data: bytes | Path) -> Content:
        return Content(data, len(data) if isinstance(data, bytes) else data.stat().st_size)

    def chunks(self, start: int, length: int) -> Iterable[bytes]:
        """`length` bytes from `start` on, in pieces."""
        if isinstance(self.data, bytes):
            for offset in range(start, start + length, CHUNK_BYTES):
                yield self.data[offset : min(offset + CHUNK_BYTES, start + length)]
            return
        with open(self.data, "rb") as file:
            file.seek(start)
            while length > 0 and (chunk := file.read(min(CHUNK_BYTES, length))):
                length -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answers to a request for the whole content.

    Attributes:
        ranges: whether a part of the content may be asked for.
    """

    status: int
    content: Content
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = False

    @staticmethod
    def json(status: int, value: Any, headers: dict[str, str] | None = None) -> Reply:
        body = json.dumps(value).encode()
        return Reply(
            status, Content.of(body), {"Content-Type": "application/json", **(headers or {})}
        )


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a reply that a request's range asks for: `length` bytes from `start` on."""

    status: int
    headers: dict[str, str]
    start: int
    length: int

    @staticmethod
    def of(reply: Reply, wanted: str | None) -> Part:
        """What is sent for the request's `Range` header `wanted`."""
        size, headers = reply.content.size, dict(reply.headers)
        start, length, status = 0, size, reply.status
        if reply.ranges:
            headers["Accept-Ranges"] = "bytes"
            match parse_range(wanted, size):
                case (first, last):
                    start, length, status = first, last - first + 1, 206
                    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
                case False:
                    length, status = 0, 416
                    headers["Content-Range"] = f"bytes */{size}"
        return Part(status, {**headers, "Content-Length": str(length)}, start, length)


def parse_range(header: str | None, size: int) -> tuple[int, int] | Literal[False] | None:
    """First and last byte of a single `bytes=` range.

    Returns:
        False where the content has no such bytes; None where there is no range that is understood.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(size - int(last), 0), size - 1
        return (start, end) if int(last) > 0 and size > 0 else False
    start, end = int(first), min(int(last) if last else size - 1, size - 1)
    return False if start >= size or end < start else (start, end)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection with what its server says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def setup(self) -> None:
        super().setup()
        self.server.owner.connection_opened(self.connection)

    def finish(self) -> None:
        self.server.owner.connection_closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.answer(Request(self.command, unquote(url.path), query, self.headers, body))

    def answer(self, request: Request) -> None:
        """Send what the server replies, or the part of it that the request asks for."""
        reply = self.server.owner.reply(request)
        part = Part.of(reply, request.range)
        self.send_head(part.status, part.headers)
        if self.command != "HEAD":
            for chunk in reply.content.chunks(part.start, part.length):
                self.wfile.write(chunk)

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class LocalServer(ABC):
    """A threaded HTTP/1.1 server on 127.0.0.1 that a subclass gives its answers.

    A context manager; also `start()` and `stop()`. Stopping cuts open connections.

    Args:
        port: 0 takes a free one.
    """

    handler: type[Handler] = Handler

    def __init__(self, port: int = 0) -> None:
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._http = _HttpServer(port, self)
        # The interval in seconds at which the thread looks whether it is to stop.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client may have gone already
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def reply(self, request: Request) -> Reply:
        """What is answered to a request for the whole content."""

    def connection_opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def connection_closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, owner: LocalServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", port), owner.handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show defects of the server; a client that hangs up is none."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)
