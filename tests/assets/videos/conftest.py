"""What examines videos is started once for all of these tests, and not for each acquisition."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from assets.fetching import locked_children
from assets.fetching.locked_children import LockedChildren

Idle = defaultdict[Path, list[subprocess.Popen[bytes]]]


@pytest.fixture(scope="session")
def idle_children() -> Iterator[Idle]:
    """Children that no acquisition uses, by the file that they run."""
    idle: Idle = defaultdict(list)
    yield idle
    for child in [child for children in idle.values() for child in children]:
        locked_children._kill(child)


@pytest.fixture(autouse=True, scope="module")
def children_are_used_again(idle_children: Idle) -> Iterator[None]:
    """A child takes a second of processor time to start. Those that an acquisition leaves unharmed
    serve the next one. How they start and end is the matter of tests/assets/fetching/test_probe.py.
    """
    start = locked_children._start

    def used_again(worker: Path) -> subprocess.Popen[bytes]:
        while idle_children[worker]:
            if (child := idle_children[worker].pop()).poll() is None:
                return child
        return start(worker)

    def close(self: LockedChildren) -> None:
        while not self._unused.empty():
            idle_children[self._worker].append(self._unused.get())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locked_children, "_start", used_again)
        patch.setattr(LockedChildren, "close", close)
        yield
