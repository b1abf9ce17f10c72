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


def ok(what: str, found: str) -> Finding:
    """The pipeline can do what the settings ask."""
    return Finding(what, OK, found)


def note(what: str, found: str, advice: str) -> Finding:
    """The pipeline can do what the settings ask, and a person may want to know this."""
    return Finding(what, NOTE, found, advice)


def missing(what: str, found: str, advice: str) -> Finding:
    """The pipeline cannot do what the settings ask."""
    return Finding(what, MISSING, found, advice)
