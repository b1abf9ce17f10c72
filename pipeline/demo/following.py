"""What runs say while somebody waits for them: the newest line of each one's log, now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pipeline.demo.client import DagsterClient
from training.progress import span

EVERY_S = 10.0


class Follower:
    """Prints how runs go on. Something is printed at least every `every_s` seconds.

    Args:
        say: takes one line.
    """

    def __init__(
        self, client: DagsterClient, say: Callable[[str], None], every_s: float = EVERY_S
    ) -> None:
        self._client, self._say, self._every_s = client, say, every_s
        self._began = self._last = time.monotonic()
        self._cursors: dict[str, str] = {}

    def look(self, runs: Mapping[str, str]) -> None:
        """Print what runs that go on said since the last line, if it is time.

        Args:
            runs: id -> what it is called.
        """
        now = time.monotonic()
        if now - self._last < self._every_s:
            return
        self._last = now
        newest = {run: self._newest(run) for run in runs}
        for run, line in newest.items():
            if line:
                self._say(f"  {runs[run]}: {line}")
        if not any(newest.values()):
            self._say(
                f"  {', '.join(runs.values()) or 'waiting'}: {span(now - self._began)} so far"
            )

    def _newest(self, run: str) -> str:
        """The first line of the newest message of a run since the last call; empty without one."""
        messages, self._cursors[run] = self._client.messages(run, self._cursors.get(run))
        return messages[-1].strip().partition("\n")[0] if messages else ""
