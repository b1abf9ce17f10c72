"""Which Dagster instance, and with it which history, a command opens: one rule for all of them."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "DAGSTER_HOME"
INSTANCE_FILE = "dagster.yaml"
REPOSITORY = Path(__file__).resolve().parents[1]


def instance_folder() -> Path:
    """The folder of the instance's dagster.yaml: that of DAGSTER_HOME, else this repository.

    Relative folders of its dagster.yaml count from there; so whoever opens it does so in there.

    Raises:
        ValueError: DAGSTER_HOME is not an absolute path, or it is not set and `dagster dev`,
            started here, would open another instance, or this repository is read-only.
    """
    if given := os.environ.get(HOME_VARIABLE):
        if not Path(given).is_absolute():
            raise ValueError(f"{HOME_VARIABLE} is {given!r}; set it to an absolute path")
        return Path(given)
    here = Path.cwd()
    if (here / INSTANCE_FILE).exists() and not here.samefile(REPOSITORY):
        raise ValueError(
            f"{here} has a {INSTANCE_FILE}, whose history `dagster dev` would open here; without "
            f"{HOME_VARIABLE} this command opens that of {REPOSITORY}. Say which: export "
            f"{HOME_VARIABLE}={here}, or start it elsewhere"
        )
    if not os.access(REPOSITORY, os.W_OK):
        raise ValueError(
            f"{REPOSITORY} is read-only for you; copy its {INSTANCE_FILE} into a folder of yours "
            f"and export {HOME_VARIABLE}=THAT_FOLDER, where history and demos then lie"
        )
    return REPOSITORY


def state_folder() -> Path:
    """The folder for demos: this repository, or the instance's where it is read-only."""
    return REPOSITORY if os.access(REPOSITORY, os.W_OK) else instance_folder()
