"""What can only be seen over many rows: places of right options, and how often the longest one is
right.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from assets.questions.rows import CHOICE, LETTERS, Row
from training.formats.hashing import seed_of, stable_hash

LONGEST = "longest_option_is_right"


def trim_longest(rows: Sequence[Row], most: float) -> None:
    """Set rows aside whose right option is the longest one, the most conspicuous first, until they
    are no more than the share `most` of those that are left.
    """
    left = [row for row in rows if row.form == CHOICE and not row.reasons]
    longest = sorted((row for row in left if _excess(row) > 1), key=lambda r: (-_excess(r), r.id))
    number, all_rows = len(longest), len(left)
    for row in longest:
        if number <= most * all_rows:
            break
        row.reasons.append(LONGEST)
        number, all_rows = number - 1, all_rows - 1


def place_options(rows: Sequence[Row]) -> None:
    """Give every right option its place: one after the other within a video, from a first one that
    follows from the video's name. No place is taken more than once more than another.
    """
    by_video: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.form == CHOICE and not row.reasons:
            by_video[row.video].append(row)
    for video, some in by_video.items():
        first = seed_of("first place", video) % len(LETTERS)
        for number, row in enumerate(sorted(some, key=lambda row: stable_hash("place", row.id))):
            row.place = (first + number) % len(LETTERS)
            row.distractors.sort(key=lambda text: stable_hash("option", row.id, text))


def places(rows: Sequence[Row]) -> list[dict[str, object]]:
    """How often each place is the right one."""
    found = Counter(row.place for row in rows if row.form == CHOICE and not row.reasons)
    return [{"right": letter, "rows": found[n]} for n, letter in enumerate(LETTERS)]


def longest_share(rows: Sequence[Row]) -> float:
    """The share of rows whose right option is longer than all others."""
    left = [row for row in rows if row.form == CHOICE and not row.reasons]
    return sum(_excess(row) > 1 for row in left) / max(len(left), 1)


def _excess(row: Row) -> float:
    """Length of the right option by that of the longest other one."""
    return len(row.answer) / max(1, *(len(text) for text in row.distractors))
