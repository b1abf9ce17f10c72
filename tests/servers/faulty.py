"""The demo's servers with a log of what was asked, and with answers that go wrong on demand.

A `faults` hook sees every request and may answer it with a `Fault`: stalls, resets, truncation,
false lengths, redirects.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.demo.local_server import Content, Handler, LocalServer, Part, Reply, Request
from pipeline.demo.servers import HubServer, MediaServer


@dataclass(frozen=True, slots=True)
class Fault:
    """How a request goes wrong. Use the constructors below.

    Attributes:
        headers: added to the answer; a header whose value is None is left out of it.
    """

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
        """An answer that sends the client elsewhere."""
        return Fault("status", status=status, headers={"Location": location})

    @staticmethod
    def stall(seconds: float = 3600.0, after_bytes: int = 0) -> Fault:
        """Go silent after `after_bytes` of the body, keep the connection open, then continue."""
        return Fault("stall", seconds=seconds, after_bytes=after_bytes)

    @staticmethod
    def reset(after_bytes: int = 0) -> Fault:
        """Send `after_bytes` of the body and drop the connection with a TCP reset."""
        return Fault("reset", after_bytes=after_bytes)

    @staticmethod
    def truncate(after_bytes: int) -> Fault:
        """Promise the whole body, send `after_bytes` of it, and close the connection in an orderly
        way.
        """
        return Fault("truncate", after_bytes=after_bytes)

    @staticmethod
    def lie(extra_bytes: int) -> Fault:
        """State a Content-Length that is off by `extra_bytes` (negative: the client sees too
        little).
        """
        return Fault("lie", extra_bytes=extra_bytes)

    @staticmethod
    def throttle(bytes_per_s: float) -> Fault:
        """Send no faster than this."""
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
        script: regular expression, searched in `"METHOD path"` -> faults in order. The first match
            counts.
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
    """One request in a server's log.

    Attributes:
        status: 0 while no answer has begun; stays 0 where the connection was reset before one.
        sent_bytes: of the body, counted as it goes out, also when it breaks off.
    """

    request: Request
    status: int = 0
    sent_bytes: int = 0


class FaultyHandler(Handler):
    """Keeps the log, and carries out the faults."""

    exchange: Exchange
    fault: Fault | None

    def answer(self, request: Request) -> None:
        owner = self.server.owner
        assert isinstance(owner, FaultyServer)
        self.exchange = Exchange(request)
        owner.record(self.exchange)
        self.fault = fault = owner.faults(request) if owner.faults else None
        kind = fault.kind if fault else None
        if fault and kind == "status":
            reply = Reply(fault.status, Content.of(fault.body), {"Content-Type": "text/html"})
        else:
            reply = owner.reply(request)
        part = Part.of(reply, None if kind == "ignore_range" else request.range)
        stated = part.length + (fault.extra_bytes if fault and kind == "lie" else 0)
        headers = {**part.headers, "Content-Length": str(max(stated, 0))}
        headers = replaced(headers, fault.headers if fault else {})
        if fault and kind == "reset" and fault.after_bytes == 0:
            self.reset()
            return
        self.exchange.status = part.status
        if "Content-Length" not in headers or stated > part.length:
            self.close_connection = True
        self.send_head(part.status, headers)
        if self.command != "HEAD":
            self.send_faulty_body(reply.content, part.start, min(part.length, max(stated, 0)))

    def send_faulty_body(self, content: Content, start: int, length: int) -> None:
        fault = self.fault
        stop_at = length
        if fault and fault.kind in ("stall", "reset", "truncate"):
            stop_at = min(fault.after_bytes, length)
        self.send_body(content, start, stop_at)
        if fault is None or stop_at == length:
            return
        if fault.kind == "stall":
            self.wait(fault.seconds)
            self.send_body(content, start + stop_at, length - stop_at)
        elif fault.kind == "reset":
            self.reset()
        else:
            self.close_connection = True

    def send_body(self, content: Content, start: int, length: int) -> None:
        for chunk in content.chunks(start, length):
            self.exchange.sent_bytes += len(chunk)
            self.wfile.write(chunk)
            if self.fault and self.fault.kind == "throttle":
                self.wait(len(chunk) / self.fault.bytes_per_s)

    def wait(self, seconds: float) -> None:
        """Until the time is over or the server stops."""
        owner = self.server.owner
        assert isinstance(owner, FaultyServer)
        owner.stopping.wait(seconds)

    def reset(self) -> None:
        """Close with a reset: a linger of zero seconds discards what is unsent and skips the
        orderly goodbye.
        """
        time.sleep(0.02)  # lets the client take what was sent before the reset overtakes it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()


def replaced(headers: dict[str, str], others: Mapping[str, str | None]) -> dict[str, str]:
    """The headers with others in their place; a value of None removes one, whatever its case."""
    lowered = {name.lower() for name in others}
    kept = {name: value for name, value in headers.items() if name.lower() not in lowered}
    return kept | {name: value for name, value in others.items() if value is not None}


class FaultyServer(LocalServer):
    """A local server with a log and a hook; stopping ends stalls.

    Attributes:
        faults: the hook; may be exchanged while the server runs.
        log: every exchange so far, in order of arrival.
    """

    handler = FaultyHandler
    faults: Faults | None
    log: list[Exchange]
    stopping: threading.Event

    def prepare(self, faults: Faults | None) -> None:
        """Before the server listens."""
        self.faults, self.log, self.stopping = faults, [], threading.Event()

    def record(self, exchange: Exchange) -> None:
        with self._lock:
            self.log.append(exchange)

    def stop(self) -> None:
        self.stopping.set()
        super().stop()


class FaultyMediaServer(FaultyServer, MediaServer):
    """A `MediaServer` whose answers can go wrong."""

    def __init__(self, folder: Path, port: int = 0, faults: Faults | None = None) -> None:
        self.prepare(faults)
        super().__init__(folder, port)


class FaultyHubServer(FaultyServer, HubServer):
    """A `HubServer` whose answers can go wrong."""

    def __init__(self, port: int = 0, faults: Faults | None = None) -> None:
        self.prepare(faults)
        super().__init__(port)
