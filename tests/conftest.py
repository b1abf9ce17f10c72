"""Shared fixtures. The code location reads its settings when it loads, so the tests name a
deployment of their own.
"""

from __future__ import annotations

import atexit
import functools
import os
import resource
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent

# No test is timed: a loaded machine must not decide about it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

os.environ["HOURLLAVA_CONFIG"] = str(TESTS / "deployment.yaml")
# Side by side, a second thread of one test takes the core of another one, which it waits for: a
# step of a small model then takes ten times as long. Set anew in each process, since those of xdist
# get the environment of the first one.
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No test cuts the power, so what it writes need not be on the disk when a call returns. A closed
# descriptor is an error all the same.
os.fsync = os.fstat  # type: ignore[assignment]

# A StreamingDataset keeps some hundred descriptors of shared memory open until its process ends.
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1 << 16) if most > 0 else 1 << 16, most))


# Files of tests that take a minute or more, roughly in their order.
LONGEST = [
    "test_own_videos",
    "test_kill_matrix",
    "test_own_questions",
    "test_running_instance",
    "test_stage_jobs",
    "test_train",
    "test_kills",
    "test_needle_task",
    "test_graph_on_slurm",
    "test_loop",
    "test_parallel",
    "test_two_weeks",
    "test_ablation_runs",
    "test_hosts",
    "test_corpus",
    "test_supervise",
    "test_launcher",
    "test_faults",
    "test_hub_acquisition",
    "test_url_acquisition",
]


@pytest.fixture(autouse=True, scope="module")
def cheap_instances() -> Iterator[None]:
    """Instances of Dagster that begin as copies of an empty one, and that another module's do not
    change: Dagster remembers the storage of one that is entered twice, and no definitions load
    after its end.
    """
    if "dagster" not in sys.modules:
        yield
        return
    import dagster
    from dagster._core.storage.defs_state.base import set_defs_state_storage

    with set_defs_state_storage(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dagster, "instance_for_test", instance_for_test)
        yield


@functools.cache
def _empty_instance() -> Path:
    """The folder of an instance without runs: making its tables takes four times as long as all
    else of it. Made once a process, and gone with it.
    """
    from dagster._core.instance_for_test import instance_for_test as made_from_nothing
    from sqlalchemy import Engine, event

    # Neither does SQLite wait for the disk.
    @event.listens_for(Engine, "connect")
    def write_without_waiting(connection: Any, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    folder = tempfile.mkdtemp(prefix="empty-instance-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with made_from_nothing(temp_dir=folder):
        return Path(folder)


@contextmanager
def instance_for_test(*args: Any, temp_dir: str | None = None, **fields: Any) -> Iterator[Any]:
    """Dagster's own, begun as a copy of an empty instance unless it is to be in `temp_dir`."""
    from dagster._core.instance_for_test import instance_for_test as made_from_nothing

    with ExitStack() as stack:
        if temp_dir is None:
            temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            temp_dir = stack.enter_context(temporary)
            shutil.copytree(_empty_instance(), temp_dir, dirs_exist_ok=True)
        yield stack.enter_context(made_from_nothing(*args, temp_dir=temp_dir, **fields))


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
