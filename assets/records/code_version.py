"""Which code made a product."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@cache
def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout of its own:
    `0.1.0+1a2b3c4d5e6f`.

    `-changed` follows where tracked files differ from the commit.
    """
    package = version("hour-llava")
    if not (PROJECT / ".git").exists():
        return package
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--exclude=*"]
    command += ["--abbrev=12", "--dirty=-changed"]
    try:
        described = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return package
    return f"{package}+{described.stdout.strip()}" if described.returncode == 0 else package
