"""How often a host is bothered: a least interval, a pause that all workers share, an end when it
keeps refusing.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from assets.fetching.retry import LONGEST_WAIT_S
from assets.sources.base import VideoRow
from training.formats.hashing import stable_hash


@dataclass(slots=True)
class _Host:
    next_at: float = 0.0
    refusals: int = 0
    visits: int = 0


class Pace:
    """Turns at hosts.

    Args:
        min_interval_s: least time between two visits, spread by a quarter either way.
        breaker: refusals in a row after which a host is left alone for good.
    """

    def __init__(self, min_interval_s: float, breaker: int) -> None:
        self.min_interval_s, self.breaker = min_interval_s, breaker
        self._hosts: dict[str, _Host] = defaultdict(_Host)
        self._lock = threading.Lock()

    def wait(self, host: str, stopped: threading.Event) -> None:
        """Return when it is this worker's turn at ``host``, or when the work is stopped."""
        while not stopped.is_set():
            with self._lock:
                state, now = self._hosts[host], time.monotonic()
                if state.next_at <= now:
                    state.visits += 1
                    spread = 0.75 + stable_hash("pace", host, str(state.visits)) / 2**65
                    state.next_at = now + self.min_interval_s * spread
                    return
                remaining = state.next_at - now
            stopped.wait(min(remaining, 1.0))

    def cool(self, host: str, seconds: float) -> None:
        """Nobody visits ``host`` for a while."""
        with self._lock:
            state = self._hosts[host]
            state.next_at = max(state.next_at, time.monotonic() + min(seconds, LONGEST_WAIT_S))

    def answered(self, host: str) -> None:
        with self._lock:
            self._hosts[host].refusals = 0

    def refused(self, host: str) -> bool:
        """Count a refusal; True when the host has refused too often in a row."""
        with self._lock:
            self._hosts[host].refusals += 1
            return self._hosts[host].refusals >= self.breaker


class Queue:
    """Rows waiting for a worker, some of them not before their time. Ends when nothing waits and
    nothing is in work.
    """

    def __init__(self, rows: list[VideoRow]) -> None:
        now = time.time()
        self._waiting = [
            (max((row.next_try_at or now) - now, 0.0), order, row) for order, row in enumerate(rows)
        ]
        self._waiting = [
            (time.monotonic() + delay, order, row) for delay, order, row in self._waiting
        ]
        heapq.heapify(self._waiting)
        self._order = len(rows)
        self._in_work = 0
        self._changed = threading.Condition()
        self.stopped = threading.Event()

    def take(self) -> VideoRow | None:
        """The next row, after waiting for its time; None when all is done or stopped. Ends with
        ``done``.
        """
        with self._changed:
            while not self.stopped.is_set():
                if self._waiting and self._waiting[0][0] <= time.monotonic():
                    self._in_work += 1
                    return heapq.heappop(self._waiting)[2]
                if not self._waiting and not self._in_work:
                    break
                self._changed.wait(
                    self._waiting[0][0] - time.monotonic() if self._waiting else None
                )
            return None

    def again(self, row: VideoRow, delay_s: float) -> None:
        with self._changed:
            self._order += 1
            heapq.heappush(self._waiting, (time.monotonic() + delay_s, self._order, row))
            self._changed.notify()

    def done(self) -> None:
        with self._changed:
            self._in_work -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()
