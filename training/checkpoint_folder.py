"""What lies in the folder of a run's checkpoints, and whether it is whole. No torch here.

    state/step-40/    COMMITTED   size and hash of every other file, written last: a folder without
                                  it does not count
                      ...         see `training.checkpoint`
    state/latest      name of the newest one, for people

A checkpoint that is being written has a temporary name, so every `step-N` was whole once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.atomic import writing_file
from training.formats.hashing import hash_file_xxh64
from training.formats.receipts import FileEntry, Stamps, find_damage
from training.formats.storage import Storage

COMMITTED_NAME = "COMMITTED"
LATEST_NAME = "latest"
STATE_NAME = "state.json"


def step_folders(folder: Path) -> list[Path]:
    """Every checkpoint in `folder`, whole or not, oldest first."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def committed(folder: Path) -> list[Path]:
    """Checkpoints in `folder` with their marker, oldest first."""
    return [path for path in step_folders(folder) if (path / COMMITTED_NAME).is_file()]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        OSError, ValueError: they cannot be read.
    """
    return dict(json.loads((checkpoint / STATE_NAME).read_text()))


def describe(folder: Path, names: Iterable[str]) -> list[FileEntry]:
    """Sizes and hashes of files that were just written into a checkpoint's folder."""
    return [
        FileEntry(name, (folder / name).stat().st_size, f"xxh64:{hash_file_xxh64(folder / name)}")
        for name in sorted(names)
    ]


def write_marker(folder: Path, entries: Iterable[FileEntry]) -> None:
    """Say that a checkpoint is complete, and what it consists of."""
    with writing_file(folder / COMMITTED_NAME) as marker:
        marker.write_text(json.dumps({"files": [asdict(entry) for entry in sorted(entries)]}))


def read_marker(checkpoint: Path) -> list[FileEntry]:
    """The files of a checkpoint.

    Raises:
        ValueError: the marker is not there, or says nothing; a clause for people.
    """
    try:
        text = (checkpoint / COMMITTED_NAME).read_text()
    except FileNotFoundError:
        raise ValueError(f"{COMMITTED_NAME} is missing") from None
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    if not text:
        raise ValueError(f"{COMMITTED_NAME} is empty")
    try:
        return [FileEntry(**entry) for entry in json.loads(text)["files"]]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{COMMITTED_NAME} is not readable") from None


def faults(checkpoint: Path, entries: Sequence[FileEntry]) -> list[str]:
    """What is wrong with some files of a checkpoint: every byte is read."""
    try:
        damage = find_damage(Storage(str(checkpoint)), entries, Stamps(), full=True)
    except OSError as error:
        return [f"{error.filename or checkpoint} cannot be read ({error.strerror})"]
    return [str(found) for found in damage]
