"""Progress of long work as lines in a log: how much is done, how fast, how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Counts finished units and logs a line at most every `every_s` seconds, and one at the end.

    Args:
        log: takes one line, e.g. `context.log.info` or `print`.
        total: units expected, or None when that is not known.
        unit: what is counted, in the plural ("videos").
    """

    def __init__(
        self, log: Callable[[str], None], total: int | None, unit: str, every_s: float = 10.0
    ) -> None:
        self.log, self.total, self.unit, self.every_s = log, total, unit, every_s
        self.done = 0
        self._started = self._last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units."""
        self.done += n
        now = time.monotonic()
        if self.done == self.total or now - self._last >= self.every_s:
            self._last = now
            self.log(self.line(now - self._started))

    def note(self, text: str) -> None:
        """Log something beside the count."""
        self.log(text)

    def line(self, elapsed_s: float) -> str:
        """Count, rate and remaining time as text."""
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        of_total = f"/{self.total:,}" if self.total is not None else ""
        text = f"{self.done:,}{of_total} {self.unit}, {rate:.1f}/s"
        if self.total is not None and rate > 0 and self.done < self.total:
            text += f", {span((self.total - self.done) / rate)} left"
        return text


def size_text(size: float) -> str:
    """A number of bytes for people: `0 bytes`, `812 kB`, `3.4 GB`."""
    size, units = max(size, 0), ("bytes", "kB", "MB", "GB", "TB", "PB")
    step = 0
    while size >= 1000 and step < len(units) - 1:
        size, step = size / 1000, step + 1
    return f"{size:,.0f} {units[step]}" if not step or size >= 100 else f"{size:.1f} {units[step]}"


def span(seconds: float) -> str:
    """A time for people: `1 h 05 min`, `3 min 20 s`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
