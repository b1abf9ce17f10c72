"""When two rows are the same row, and which of them counts.

A row has an identity and a content. Its identity is its id, within its video; where a row has no
id, it is its question, within its video. Of rows with one identity the last one counts: that of the
later file, in one file the one that stands further down. A row with an id and a row without one are
the same when they ask the same question of the same video.

An id that stands at different questions of one video in one file names none of them: those rows
count as rows without an id.

Everything here works on hashes in numpy arrays, as millions of rows pass through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import xxhash

from assets.annotations.tables import digests

NO_ID = 0
_MOST_ENTRIES = 1 << 40  # rows of one file
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it moves each turn to another key

Array = np.ndarray


def key_of(*texts: str) -> int:
    """A 64-bit hash of texts; never `NO_ID`."""
    return xxhash.xxh3_64_intdigest("\0".join(texts).encode()) or 1


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The rows of one file as hashes; each array has one value for each question-answer pair.

    Attributes:
        entries: int64, the row of the file; a grouped row has several pairs.
        named: uint64, hash of video and id, or `NO_ID` where no id names the row.
        asked: uint64, hash of video and question (of a grouped row: of all its questions).
        turns: int64, the place in a grouped row, from 0.
        contents: uint64, hash of what the pair says.
    """

    entries: Array
    named: Array
    asked: Array
    turns: Array
    contents: Array

    @staticmethod
    def read(path: Path) -> RowKeys:
        """The keys in a reading (`readings.py`), with clear ids."""
        names = ["entry", "named", "asked", "turn", "content"]
        table = pq.read_table(path, columns=names, page_checksum_verification=True)
        return RowKeys(
            table["entry"].to_numpy(),
            table["named"].to_numpy(),
            table["asked"].to_numpy(),
            table["turn"].fill_null(0).to_numpy().astype(np.int64),
            digests(table["content"])[:, 0].copy(),
        ).with_clear_ids()

    def with_clear_ids(self) -> RowKeys:
        """The same rows, without ids that stand at different questions of one video."""
        order = np.lexsort((self.asked, self.named))
        named, asked = self.named[order], self.asked[order]
        unclear = np.unique(named[1:][(named[1:] == named[:-1]) & (asked[1:] != asked[:-1])])
        clear = np.where(np.isin(self.named, unclear), np.uint64(NO_ID), self.named)
        return replace(self, named=clear)

    def chosen(self, mask: Array) -> RowKeys:
        """The pairs for which `mask` is true."""
        columns = (self.entries, self.named, self.asked, self.turns, self.contents)
        return RowKeys(*(column[mask] for column in columns))


def survivors(files: Sequence[RowKeys]) -> list[Array]:
    """Which pairs count, as a mask for each file.

    Args:
        files: in their order; a later one supersedes an earlier one.
    """
    if not files:
        return []
    named = np.concatenate([file.named for file in files])
    asked = np.concatenate([file.asked for file in files])
    place = np.concatenate(
        [number * _MOST_ENTRIES + file.entries for number, file in enumerate(files)]
    )
    has_id = named != NO_ID
    same_id = _Newest(named[has_id], place[has_id])
    without_id = _Newest(asked[~has_id], place[~has_id])
    same_question = _Newest(asked, place)
    alive = np.empty(len(place), bool)
    alive[has_id] = (place >= same_id.of(named))[has_id] & (place >= without_id.of(asked))[has_id]
    alive[~has_id] = (place >= same_question.of(asked))[~has_id]
    ends = np.cumsum([len(file.entries) for file in files])
    return np.split(alive, ends[:-1])


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of the pairs of one file since the last collection.

    Attributes:
        came: pairs that nothing stood for before.
        changed: pairs that say something else than before.
        gone: pairs that nothing stands for any more.
    """

    came: int = 0
    changed: int = 0
    gone: int = 0


def changes(
    before: dict[str, RowKeys], after: dict[str, RowKeys]
) -> tuple[dict[str, Changes], Changes]:
    """(what changed, by file; what changed in all), from the pairs that count, by file.

    A pair that another file now says in the same words is not a change.
    """
    old, new = list(before.values()), list(after.values())
    kept = np.isin(_contents(new), _contents(old))
    same = _same_identity(new, old)
    lost = ~np.isin(_contents(old), _contents(new)) & ~_same_identity(old, new)
    counts = {
        "changed": dict(zip(after, _by_file(new, ~kept & same), strict=True)),
        "came": dict(zip(after, _by_file(new, ~kept & ~same), strict=True)),
        "gone": dict(zip(before, _by_file(old, lost), strict=True)),
    }
    files = {
        name: Changes(**{what: found.get(name, 0) for what, found in counts.items()})
        for name in dict.fromkeys([*before, *after])
    }
    total = Changes(**{what: sum(found.values()) for what, found in counts.items()})
    return {name: found for name, found in files.items() if found != Changes()}, total


class _Newest:
    """Key -> the last place at which it stands."""

    def __init__(self, keys: Array, places: Array) -> None:
        order = np.lexsort((places, keys))
        keys, places = keys[order], places[order]
        last = np.ones(len(keys), bool)
        last[:-1] = keys[1:] != keys[:-1]
        self._keys, self._places = keys[last], places[last]

    def of(self, keys: Array) -> Array:
        """The last place of each key; -1 for those that stand nowhere."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        found = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return np.where(self._keys[found] == keys, self._places[found], -1)


def _same_identity(rows: list[RowKeys], others: list[RowKeys]) -> Array:
    """Which of `rows` stand for a pair that is among `others`."""
    named, asked = _pair_keys(rows)
    other_named, other_asked = _pair_keys(others)
    has_id = named != NO_ID
    by_id = has_id & np.isin(named, other_named)
    to_nameless = np.isin(asked, other_asked[other_named == NO_ID])
    return by_id | to_nameless | (~has_id & np.isin(asked, other_asked))


def _pair_keys(files: list[RowKeys]) -> tuple[Array, Array]:
    """`named` and `asked` of each pair, with its place in a grouped row."""
    named, asked = (_joined([getattr(file, name) for file in files]) for name in ("named", "asked"))
    turns = _joined([file.turns.astype(np.uint64) for file in files]) * _SPREAD
    return np.where(named == NO_ID, np.uint64(NO_ID), named ^ turns), asked ^ turns


def _contents(files: list[RowKeys]) -> Array:
    return _joined([file.contents for file in files])


def _joined(arrays: list[Array]) -> Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.uint64)


def _by_file(files: list[RowKeys], mask: Array) -> list[int]:
    """How often `mask` is true within each file."""
    ends = np.cumsum([len(file.entries) for file in files])
    return [int(part.sum()) for part in np.split(mask, ends[:-1])] if files else []
