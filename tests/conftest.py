"""Shared fixtures. The code location reads its settings when it loads, so the tests name a
deployment of their own.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# No test is timed: a loaded machine must not decide about it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

os.environ["HOURLLAVA_CONFIG"] = str(TESTS / "deployment.yaml")
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

# A StreamingDataset keeps some hundred descriptors of shared memory open until its process ends.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1 << 16) if most > 0 else 1 << 16, most))


# Files of tests that take a minute or more, roughly in their order.
LONGEST = [
    "test_kill_matrix",
    "test_train",
    "test_supervise",
    "test_launcher",
    "test_stage_jobs",
    "test_needle",
    "test_faults",
    "test_hub_acquisition",
    "test_url_acquisition",
]


@pytest.fixture(autouse=True, scope="module")
def no_instance_of_another_module() -> Iterator[None]:
    """Dagster remembers the storage of an instance that is entered twice, and no definitions load
    after its end.
    """
    if "dagster" not in sys.modules:
        yield
        return
    from dagster._core.storage.defs_state.base import set_defs_state_storage

    with set_defs_state_storage(None):
        yield


@pytest.hookimpl(
    tryfirst=True
)  # before tests are chosen by their marks, and before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the finished demo are marked as such; side by side (`pytest -n`), those of one file
    stay together, and long files start first, so that no process works alone at the end.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if "demo" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.demo)
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path.stem for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: _turn(item.path.stem, slow))


def _turn(file: str, slow: set[str]) -> int:
    """The place of a file's tests: the longest, then those with a slow test, then the others."""
    if file in LONGEST:
        return LONGEST.index(file)
    return len(LONGEST) + (file not in slow)
