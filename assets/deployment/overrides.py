"""Changes to the recipes of the stages: what can be said of them before there is any data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from training.run_config import RunConfig, parse_run


def unplaced_run(preset: str, stage: int, changes: Mapping[str, Any]) -> RunConfig:
    """The run of a stage that reads and writes nowhere: that does not change what it needs.

    Args:
        changes: fields of `RunConfig`, as JSON has them.

    Raises:
        ValueError: an unknown key, a wrong type, or values that no run can have.
    """
    stream = {"name": "any", "root": "", "indexes": ["index.json"]}
    nowhere = {"start": "", "out": "", "streams": [stream]}
    return parse_run({"variant": preset, "stage": stage, **nowhere, **changes})


def refuse_unusable(
    where: str, presets: Iterable[str], stage: int, changes: Mapping[str, Any]
) -> None:
    """Stop where settings change what no run has: a training is the last thing that is started,
    hours after the settings were read.

    Args:
        where: the changes' own place in the settings.

    Raises:
        ValueError: it names the place and what is wrong.
    """
    for preset in presets:
        try:
            unplaced_run(preset, stage, changes)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
