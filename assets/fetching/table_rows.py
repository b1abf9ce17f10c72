"""A row of an annotation file as it stands there, and what a file may cost at most.

Files come from strangers. What a row or a file may not exceed stands here and nowhere else,
whatever form the file has: a row beyond it is set aside alone, a file beyond it is refused by a
sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_BYTES = 16 << 30  # of one file
MOST_ROWS = 20_000_000  # of one file; VideoMarathon has 3.3 million
MOST_COLUMNS = 1000
LONGEST_ROW = 16 << 20  # characters; a conversation of a thousand turns has a thirtieth of that
DEEPEST = 32  # levels of lists and objects in each other

# Why a row cannot be read. Each is the reason under which it is counted.
NOT_JSON, NOT_AN_OBJECT = "not_json", "not_an_object"
TOO_DEEP, TOO_LONG = "too_deep", "too_long"
UNCLOSED_QUOTE, MORE_CELLS = "unclosed_quote", "more_cells_than_columns"
FAULTS = (NOT_JSON, NOT_AN_OBJECT, TOO_DEEP, TOO_LONG, UNCLOSED_QUOTE, MORE_CELLS)

# The column of a row's key, where a file is one object of rows by their keys.
KEY = "(key)"
SHOWN = 2000  # characters of a row that cannot be read, as it is kept for a person


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in a file.

    Attributes:
        number: from 0.
        value: column -> value, or the beginning of the text that is no row.
        line: of the file, from 1, where the row begins; None where there are no lines.
        fault: why the row cannot be read; empty where it can.
    """

    number: int
    value: dict[str, Any] | str
    line: int | None = None
    fault: str = ""


Found = tuple[dict[str, Any] | str, int | None, str]  # value, line, fault: a row without its number


def unreadable(text: str, line: int | None, fault: str) -> Found:
    """A row that cannot be read, with as much of its text as a person needs to find it."""
    return text[:SHOWN].rstrip("\r\n"), line, fault


def in_brief(text: object, most: int = 80) -> str:
    """A text from a file, so short that a message can hold it, and without what no log can."""
    whole = str(text).encode(errors="replace").decode()
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."
