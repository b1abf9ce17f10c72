"""What several files of tests share: one finished demo, minutes to make, for the whole session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.demo.instance import REPOSITORY
from pipeline.demo.run import run_demo
from training.formats.storage import Storage


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A folder with the demo's deployment and the history of the Dagster that made it.

    Whoever materializes again in it leaves the same bytes behind and nothing out of date: other
    tests count on that.
    """
    folder = tmp_path_factory.mktemp("demo")
    shutil.copy(REPOSITORY / "dagster.yaml", folder)
    assert run_demo(folder / "deployment", folder) == 0
    return folder


@pytest.fixture(scope="session")
def storage(demo) -> Storage:
    """Where the demo's products lie."""
    return Storage(str(demo / "deployment" / "data"))
