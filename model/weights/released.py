"""The released Hour-LLaVA checkpoints: what they are called on the hub, and which stage each has
finished.

The names are defaults for a table, no more, and were not checked against the hub: a deployment
names any repository, and what a repository holds is decided by its tensors.
"""

from __future__ import annotations

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


STAGE_NAMES = {1: "pretraining", 2: "adaptation", 3: "tuning"}
_REPOSITORIES = {
    ("3b", 1): "jylins/Hour-LLaVA-3B-Stage1",
    ("3b", 2): "jylins/Hour-LLaVA-3B-Stage2",
    ("3b", 3): "jylins/Hour-LLaVA-3B",
    ("7b", 1): "jylins/Hour-LLaVA-7B-Stage1",
    ("7b", 2): "jylins/Hour-LLaVA-7B-Stage2",
    ("7b", 3): "jylins/Hour-LLaVA-7B",
}
# Repository on the hub -> what it holds.
RELEASED: dict[str, Released] = {
    repo: Released(f"{preset}-{STAGE_NAMES[stage]}", preset, stage)
    for (preset, stage), repo in _REPOSITORIES.items()
}
