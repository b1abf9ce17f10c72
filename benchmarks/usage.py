"""Cores and memory of a process and its children while something runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


class Usage:
    """Cores and memory used by this process and its children, sampled while something runs."""

    def __enter__(self) -> Usage:
        self.peak, self._stop = 0, threading.Event()
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cores(self, seconds: float) -> float:
        """Mean number of busy cores over the last `seconds`."""
        end, busy = self._samples[-1]
        start = min(self._samples, key=lambda sample: abs(end - sample[0] - seconds))
        return (busy - start[1]) / max(end - start[0], 1e-9)

    def _watch(self) -> None:
        ticks = os.sysconf("SC_CLK_TCK")
        while not self._stop.wait(0.5):
            fields = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
            self._samples.append((time.monotonic(), (sum(fields) - fields[3] - fields[4]) / ticks))
            self.peak = max(self.peak, sum(map(proportional_bytes, family(os.getpid()))))


def family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [member for child in task.read_text().split() for member in family(int(child))]
        except FileNotFoundError:  # a process that just ended
            continue
    return found


def proportional_bytes(pid: int) -> int:
    """Memory of a process, shared pages counted in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
