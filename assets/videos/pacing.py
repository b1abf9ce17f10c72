"""When a video may be fetched: hosts get time between requests, failed videos wait for theirs."""

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
    """What is known of a host; `next_at` as `time.monotonic` counts."""

    next_at: float = 0.0
    refusals: int = 0
    requests: int = 0


class RateLimiter:
    """Spreads the requests of all workers over time, each host for itself.

    Args:
        min_interval_s: least time between two requests to a host, spread by a quarter either way.
        breaker: refusals in a row after which a host is left alone for good.
    """

    def __init__(self, min_interval_s: float, breaker: int) -> None:
        self.min_interval_s, self.breaker = min_interval_s, breaker
        self._hosts: dict[str, _Host] = defaultdict(_Host)
        self._lock = threading.Lock()

    def wait(self, host: str, stopped: threading.Event) -> None:
        """Return when this worker may ask `host`, or when the work is stopped."""
        while not stopped.is_set():
            with self._lock:
                state, now = self._hosts[host], time.monotonic()
                if state.next_at <= now:
                    state.requests += 1
                    # A hash instead of chance: 0.75 to 1.25, the same in every run.
                    spread = 0.75 + stable_hash("pace", host, str(state.requests)) / 2**65
                    state.next_at = now + self.min_interval_s * spread
                    return
                remaining = state.next_at - now
            stopped.wait(min(remaining, 1.0))

    def pause(self, host: str, seconds: float) -> None:
        """No worker asks `host` for so long, at most an hour."""
        with self._lock:
            state = self._hosts[host]
            state.next_at = max(state.next_at, time.monotonic() + min(seconds, LONGEST_WAIT_S))

    def record_answer(self, host: str) -> None:
        """The host did not refuse: its refusals are counted from zero again."""
        with self._lock:
            self._hosts[host].refusals = 0

    def record_refusal(self, host: str) -> bool:
        """Count a refusal; True when the host has refused too often in a row."""
        with self._lock:
            self._hosts[host].refusals += 1
            return self._hosts[host].refusals >= self.breaker


class RetryQueue:
    """Videos to fetch, some of them not before a certain time.

    It ends when no row waits and none is in work: a row in work may come back for another try.

    Args:
        rows: to fetch, in order; a row's `next_try_at` is kept.
    """

    def __init__(self, rows: list[VideoRow]) -> None:
        now, start = time.time(), time.monotonic()
        # (when it may be fetched, a number that keeps the order of equals, row)
        self._waiting = [
            (start + max((row.next_try_at or now) - now, 0.0), order, row)
            for order, row in enumerate(rows)
        ]
        heapq.heapify(self._waiting)
        self._order = len(rows)
        self._in_work = 0
        self._changed = threading.Condition()
        self.stopped = threading.Event()

    def get(self) -> VideoRow | None:
        """The next row, after waiting for its time; None when all is done or stopped.

        Each row that was got is given back once, by `task_done`.
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

    def put_later(self, row: VideoRow, delay_s: float) -> None:
        """Fetch a row again, not before `delay_s` seconds have passed."""
        with self._changed:
            self._order += 1
            heapq.heappush(self._waiting, (time.monotonic() + delay_s, self._order, row))
            self._changed.notify()

    def task_done(self) -> None:
        """A row that was got is finished, or waits again."""
        with self._changed:
            self._in_work -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """No row is given out any more."""
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()
