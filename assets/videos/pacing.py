"""When a video may be fetched: hosts get time between requests, failed videos wait for theirs."""

from __future__ import annotations

import heapq
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from assets.fetching.retry import LONGEST_WAIT_S
from assets.sources.base import VideoRow
from training.formats.hashing import stable_hash


@dataclass(slots=True)
class _Host:
    """What is known of a host; times as `time.monotonic` counts.

    Attributes:
        next_at: when it may be asked again; rest_from, rest_until: its last rest.
        in_a_row: refusals since its last answer; refusals: all of them.
        rests: since its last answer; rested_s: seconds that it was let rest.
    """

    next_at: float = 0.0
    requests: int = 0
    in_a_row: int = 0
    refusals: int = 0
    rest_from: float = 0.0
    rest_until: float = 0.0
    rests: int = 0
    rested_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """What follows from a refusal.

    Attributes:
        in_a_row: refusals of the host since its last answer.
        rest_s: seconds for which nobody asks it from now on; 0 where it is asked as before, or
            rests already.
        general: so many that it is about us, whatever was said of the single video.
        last: this one was the last that the host was given a chance for.
    """

    in_a_row: int
    rest_s: float
    general: bool
    last: bool


class RateLimiter:
    """Spreads the requests of all workers over time, each host for itself, and lets hosts rest that
    refuse.

    Args:
        min_interval_s: least time between two requests to a host, spread by a quarter either way.
        cooldown_s: first rest of a host that refuses; the next ones are twice as long each.
        breaker: refusals in a row after which a host is asked for nothing more. From half as many
            on it rests, whatever it says.
    """

    def __init__(self, min_interval_s: float, cooldown_s: float, breaker: int) -> None:
        self.min_interval_s, self.cooldown_s, self.breaker = min_interval_s, cooldown_s, breaker
        self._hosts: dict[str, _Host] = defaultdict(_Host)
        self._lock = threading.Lock()

    def wait(self, host: str, stopped: threading.Event) -> float:
        """Return when this worker may ask `host`, or when the work is stopped; the time then."""
        while not stopped.is_set():
            with self._lock:
                state, now = self._hosts[host], time.monotonic()
                if state.next_at <= now:
                    state.requests += 1
                    # A hash instead of chance: 0.75 to 1.25, the same in every run.
                    spread = 0.75 + stable_hash("pace", host, str(state.requests)) / 2**65
                    state.next_at = now + self.min_interval_s * spread
                    return now
                remaining = state.next_at - now
            stopped.wait(min(remaining, 1.0))
        return time.monotonic()

    def rest_left(self, host: str) -> float:
        """Seconds for which a host still rests."""
        with self._lock:
            return max(self._hosts[host].rest_until - time.monotonic(), 0.0)

    def is_given_up(self, host: str) -> bool:
        """Whether the host has refused so often in a row that this run asks it no more."""
        with self._lock:
            return self._hosts[host].in_a_row >= self.breaker

    def record_answer(self, host: str) -> None:
        """The host did not refuse: its refusals and rests are counted from zero again."""
        with self._lock:
            state = self._hosts[host]
            state.in_a_row = state.rests = 0

    def record_refusal(
        self, host: str, asked_at: float, *, rest: bool, asked_s: float | None
    ) -> Refusal:
        """Count a refusal.

        Args:
            asked_at: what `wait` returned before the request. Several requests that were on their
                way when the host began to rest make it rest once.
            rest: it was told to us that the host wants fewer requests.
            asked_s: for how long, if that was said, too.
        """
        with self._lock:
            state, now = self._hosts[host], time.monotonic()
            state.in_a_row += 1
            state.refusals += 1
            general = state.in_a_row >= max(self.breaker // 2, 1)
            seconds, last = 0.0, state.in_a_row == self.breaker
            if (rest or general) and not last and asked_at >= state.rest_from:
                seconds = max(self.cooldown_s * 2**state.rests, asked_s or 0.0)
                seconds = min(seconds, LONGEST_WAIT_S)
                state.rests += 1
                state.rested_s += seconds
                state.rest_from, state.rest_until = now, now + seconds
                state.next_at = max(state.next_at, state.rest_until)
            return Refusal(state.in_a_row, seconds, general, last)

    def refusals(self) -> list[dict[str, Any]]:
        """The hosts that refused, one row each."""
        with self._lock:
            return [
                {
                    "host": host,
                    "requests": state.requests,
                    "refusals": state.refusals,
                    "rested_s": round(state.rested_s, 3),
                    "given up": state.in_a_row >= self.breaker,
                }
                for host, state in sorted(self._hosts.items())
                if state.refusals
            ]


class RetryQueue:
    """Videos to fetch, some of them not before a certain time.

    It ends when no row waits and none is in work: a row in work may come back for another try.

    Args:
        rows: to fetch, in order; a row's `next_try_at` is kept, up to the longest wait that there
            is: one further away was written by a clock that was ahead.
    """

    def __init__(self, rows: list[VideoRow]) -> None:
        now, start = time.time(), time.monotonic()
        # (when it may be fetched, a number that keeps the order of equals, row)
        self._waiting = [
            (start + min(max((row.next_try_at or now) - now, 0.0), LONGEST_WAIT_S), order, row)
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

    def drop(self, unwanted: Callable[[VideoRow], bool]) -> None:
        """Leave rows out that wait."""
        with self._changed:
            self._waiting = [entry for entry in self._waiting if not unwanted(entry[2])]
            heapq.heapify(self._waiting)
            self._changed.notify_all()

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
