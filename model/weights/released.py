"""The released Hour-LLaVA checkpoints: who released them, which stage each has finished, and what
they may be called on the hub.

The names are defaults, no more, and were not checked against the hub: `hourllava checkpoints` asks
it what the author has, a deployment names any repository, and what a repository holds is decided by
its configuration and tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Released:
    """One checkpoint.

    Attributes:
        name: short, for the command line.
        preset: its size, a key of `model.config.PRESETS`.
        stage: that it has finished: 1 image pretraining, 2 adaptation, 3 tuning.
    """

    name: str
    preset: str
    stage: int


AUTHOR = "jylins"
STAGE_NAMES = {1: "pretraining", 2: "adaptation", 3: "tuning"}
_REPOSITORIES = {
    ("3b", 1): f"{AUTHOR}/Hour-LLaVA-3B-Stage1",
    ("3b", 2): f"{AUTHOR}/Hour-LLaVA-3B-Stage2",
    ("3b", 3): f"{AUTHOR}/Hour-LLaVA-3B",
    ("7b", 1): f"{AUTHOR}/Hour-LLaVA-7B-Stage1",
    ("7b", 2): f"{AUTHOR}/Hour-LLaVA-7B-Stage2",
    ("7b", 3): f"{AUTHOR}/Hour-LLaVA-7B",
}
# Repository on the hub -> what it should hold.
RELEASED: dict[str, Released] = {
    repo: Released(f"{preset}-{STAGE_NAMES[stage]}", preset, stage)
    for (preset, stage), repo in _REPOSITORIES.items()
}
# No tensor and no configuration shows which stage a checkpoint has finished: only a name can.
_STAGE_IN_NAME = (
    (re.compile(r"stage[-_ ]?1(?!\d)|pre-?train", re.IGNORECASE), 1),
    (re.compile(r"stage[-_ ]?2(?!\d)|adapt", re.IGNORECASE), 2),
    (re.compile(r"stage[-_ ]?3(?!\d)|tun(?:ing|ed)|instruct", re.IGNORECASE), 3),
)


def stage_by_name(repo: str) -> int | None:
    """The stage that a repository's name says its checkpoint has finished; None where it says
    nothing, or more than one.
    """
    name = repo.rpartition("/")[2]
    found = {stage for pattern, stage in _STAGE_IN_NAME if pattern.search(name)}
    if len(found) == 1:
        return found.pop()
    known = RELEASED.get(repo)
    return known.stage if known and not found else None
