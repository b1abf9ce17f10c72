"""A local HTTP server whose answers can go wrong on demand: stalls, resets, truncation, false
lengths, redirects.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a ``faults`` hook and a server's log see it. ``path`` is unquoted and without
    its query.
    """

    server: Literal["hub", "media"]
    method: str
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes = b""

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass(frozen=True, slots=True)
class Fault:
    """How a request goes wrong. Use the constructors below; ``headers`` are added to the answer,
    and a header whose value is None is left out of it."""

    kind: Literal[
        "status", "stall", "reset", "truncate", "lie", "throttle", "ignore_range", "headers"
    ]
    status: int = 500
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes = b""
    after_bytes: int = 0
    seconds: float = 0.0
    extra_bytes: int = 0
    bytes_per_s: float = 0.0

    @staticmethod
    def answer(
        status: int, body: bytes = b"", headers: Mapping[str, str | None] | None = None
    ) -> Fault:
        """This status, body and headers instead of the file (429 with Retry-After, HTML with 200,
        ...).
        """
        return Fault("status", status=status, body=body, headers=headers or {})

    @staticmethod
    def redirect(location: str, status: int = 302) -> Fault:
        return Fault("status", status=status, headers={"Location": location})

    @staticmethod
    def stall(seconds: float = 3600.0, after_bytes: int = 0) -> Fault:
        """Go silent after ``after_bytes`` of the body, keep the connection open, then continue."""
        return Fault("stall", seconds=seconds, after_bytes=after_bytes)

    @staticmethod
    def reset(after_bytes: int = 0) -> Fault:
        """Send ``after_bytes`` of the body and drop the connection with a TCP reset."""
        return Fault("reset", after_bytes=after_bytes)

    @staticmethod
    def truncate(after_bytes: int) -> Fault:
        """Promise the whole body, send ``after_bytes`` of it, and close the connection in an
        orderly way.
        """
        return Fault("truncate", after_bytes=after_bytes)

    @staticmethod
    def lie(extra_bytes: int) -> Fault:
        """State a Content-Length that is off by ``extra_bytes`` (negative: the client sees too
        little).
        """
        return Fault("lie", extra_bytes=extra_bytes)

    @staticmethod
    def throttle(bytes_per_s: float) -> Fault:
        return Fault("throttle", bytes_per_s=bytes_per_s)

    @staticmethod
    def ignore_range() -> Fault:
        """Answer a range request with 200 and the whole file, as servers without ranges do."""
        return Fault("ignore_range")

    @staticmethod
    def with_headers(headers: Mapping[str, str | None]) -> Fault:
        """The right answer with other headers; a value of None removes one."""
        return Fault("headers", headers=headers)


Faults = Callable[[Request], Fault | None]


def in_turn(script: Mapping[str, Iterable[Fault | None]]) -> Faults:
    """A hook that gives each matching request the next fault of its list, and none once the list is
    used up.

    Args:
        script: regular expression, searched in ``"METHOD path"`` -> faults in order. The first
            match counts.
    """
    lock = threading.Lock()
    pending = [(re.compile(pattern), iter(faults)) for pattern, faults in script.items()]

    def faults(request: Request) -> Fault | None:
        with lock:
            for pattern, remaining in pending:
                if pattern.search(f"{request.method} {request.path}"):
                    return next(remaining, None)
        return None

    return faults


@dataclass(slots=True)
class Exchange:
    """One request in a server's log. ``sent_bytes`` counts the body as it goes out, also when it
    breaks off; ``status`` is 0 while no answer has begun, and stays 0 where the connection was
    reset before one."""

    request: Request
    status: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """A body that lies in memory or in a file."""

    data: bytes | Path
    size: int

    @staticmethod
    def of(data: bytes | Path) -> Content:
        return Content(data, len(data) if isinstance(data, bytes) else data.stat().st_size)

    def chunks(self, start: int, length: int) -> Iterable[bytes]:
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
    """What a server would answer if nothing went wrong."""

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


class LocalServer(ABC):
    """A threaded HTTP/1.1 server on 127.0.0.1 that a subclass gives its answers.

    A context manager; also ``start()`` and ``stop()``. Stopping cuts open connections and ends
    stalls.

    Attributes:
        faults: the hook; may be exchanged while the server runs.
        log: every exchange so far, in order of arrival.
    """

    name: Literal["hub", "media"]

    def __init__(self, port: int = 0, faults: Faults | None = None) -> None:
        self.faults = faults
        self.log: list[Exchange] = []
        self._stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._http = _HttpServer(port, self)
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
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client may have gone already
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def reply(self, request: Request) -> Reply:
        """What is answered when no fault interferes."""

    def _record(self, exchange: Exchange) -> None:
        with self._lock:
            self.log.append(exchange)

    def _opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def _closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, owner: LocalServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is its own affair; anything else is a defect of the server and is
        shown.
        """
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Carries a server's replies, and its faults, over the wire."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Exchanges are kept in the server's log instead of being printed."""

    def setup(self) -> None:
        super().setup()
        self.server.owner._opened(self.connection)

    def finish(self) -> None:
        self.server.owner._closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        request = Request(owner.name, self.command, unquote(url.path), query, self.headers, body)
        exchange = Exchange(request)
        owner._record(exchange)
        fault = owner.faults(request) if owner.faults else None
        if fault is not None and fault.kind == "status":
            reply = Reply(fault.status, Content.of(fault.body), {"Content-Type": "text/html"})
        else:
            reply = owner.reply(request)
        self._send(reply, fault, exchange)

    def _send(self, reply: Reply, fault: Fault | None, exchange: Exchange) -> None:
        kind = fault.kind if fault else None
        size = reply.content.size
        start, length, status = 0, size, reply.status
        headers = dict(reply.headers)
        if reply.ranges:
            headers["Accept-Ranges"] = "bytes"
            wanted = _parse_range(exchange.request.range, size) if kind != "ignore_range" else None
            if wanted == "unsatisfiable":
                status, length, headers["Content-Range"] = 416, 0, f"bytes */{size}"
            elif isinstance(wanted, tuple):
                start, length, status = wanted[0], wanted[1] - wanted[0] + 1, 206
                headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[1]}/{size}"
        stated = length + (fault.extra_bytes if fault and kind == "lie" else 0)
        headers["Content-Length"] = str(max(stated, 0))
        for name, value in (fault.headers if fault else {}).items():
            headers = {
                known: given for known, given in headers.items() if known.lower() != name.lower()
            }
            if value is not None:
                headers[name] = value
        if kind == "reset" and fault and fault.after_bytes == 0:
            self._reset()
            return
        exchange.status = status
        if "Content-Length" not in headers or stated > length:
            self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(reply.content, start, min(length, max(stated, 0)), fault, exchange)

    def _send_body(
        self, content: Content, start: int, length: int, fault: Fault | None, exchange: Exchange
    ) -> None:
        kind = fault.kind if fault else None
        stop_at = fault.after_bytes if fault and kind in ("stall", "reset", "truncate") else None
        if fault and stop_at is not None and stop_at < length:
            self._send_plain(content, start, stop_at, fault, exchange)
            if kind == "stall":
                self.server.owner._stopping.wait(fault.seconds)
                self._send_plain(content, start + stop_at, length - stop_at, None, exchange)
            elif kind == "reset":
                self._reset()
            else:
                self.close_connection = True
            return
        self._send_plain(content, start, length, fault, exchange)

    def _send_plain(
        self, content: Content, start: int, length: int, fault: Fault | None, exchange: Exchange
    ) -> None:
        for chunk in content.chunks(start, length):
            exchange.sent_bytes += len(chunk)
            self.wfile.write(chunk)
            if fault and fault.kind == "throttle":
                self.server.owner._stopping.wait(len(chunk) / fault.bytes_per_s)

    def _reset(self) -> None:
        """Close with a reset: linger of zero seconds discards what is unsent and skips the orderly
        goodbye.
        """
        time.sleep(0.02)  # lets the client take what was sent before the reset overtakes it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()


def _parse_range(
    header: str | None, size: int
) -> tuple[int, int] | Literal["unsatisfiable"] | None:
    """First and last byte of a single ``bytes=`` range; None where there is none that is
    understood.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(size - int(last), 0), size - 1
        return (start, end) if int(last) > 0 and size > 0 else "unsatisfiable"
    start, end = int(first), min(int(last) if last else size - 1, size - 1)
    if start >= size or end < start:
        return "unsatisfiable"
    return start, end
