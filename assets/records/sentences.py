"""How a sentence for people names many things."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object], most: int) -> str:
    """The first of some names, and how many more there are: `a, b and 1,204 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(map(str, names[:most]))}{more}"
