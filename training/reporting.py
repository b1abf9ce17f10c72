"""Where a run reports: the log of rank 0, and the Dagster run that owns it, if one does."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("training")

OWNER_EVERY_S = 15.0  # the owner keeps every message in its database


@dataclass(slots=True)
class Reporter:
    """Writes lines to the log, and now and then to the owner.

    Attributes:
        owner: a Dagster Pipes context, where a Dagster run owns this one.
    """

    owner: Any | None = None
    _last_step_s: float = float("-inf")

    def step(self, text: str) -> None:
        """A line that comes with every step; the owner sees one every `OWNER_EVERY_S`."""
        log.info(text)
        if self.owner is not None and time.monotonic() - self._last_step_s >= OWNER_EVERY_S:
            self._last_step_s = time.monotonic()
            self.owner.log.info(text)

    def note(self, text: str) -> None:
        """Something that happens rarely and should be seen."""
        log.info(text)
        if self.owner is not None:
            self.owner.log.info(text)


@contextmanager
def open_reporter() -> Iterator[Reporter]:
    """The reporter of this process. Only rank 0 reports to the owner, although all ranks inherit
    its address.
    """
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        stream=sys.stdout,
        level=logging.INFO if first else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    if not first or "DAGSTER_PIPES_CONTEXT" not in os.environ:
        yield Reporter()
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as owner:
        yield Reporter(owner)
