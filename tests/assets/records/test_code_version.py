"""A product's record names the code that made it."""

import subprocess
from importlib.metadata import version

import pytest

from assets.records.code_version import PROJECT, code_version


def test_it_is_the_packages_version_and_the_commit_of_the_checkout():
    assert code_version().partition("+")[0] == version("hour-llava")
    if not (PROJECT / ".git").exists():
        pytest.skip("this is no checkout")
    commit = subprocess.run(
        ["git", "-C", PROJECT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    named = code_version().partition("+")[2].removesuffix("-changed")
    assert len(named) >= 12
    assert commit.stdout.startswith(named)
