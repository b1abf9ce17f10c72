"""One thing that was looked at on this machine: a line of `hourllava doctor`'s table."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, MISSING = "ok", "note", "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it.

    Attributes:
        state: `missing` when the pipeline cannot do what the settings ask, `note` when it can but a
            person may want to know, else `ok`.
    """

    what: str
    state: str
    found: str
    advice: str = ""
