"""Single columns of MDS shards, read without decoding the rest of a row.

An MDS file begins with the number of its rows and where each of them begins and the last one ends;
a row, with the sizes of its columns of variable size. All of these are uint32. The columns follow,
in the index's order. Of a mapped file only the pages that hold the column are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class ShardColumns:
    """The columns of one shard.

    Attributes:
        data: uint8, all bytes of the shard.
        names, sizes: of its columns, as the index says; the size of a variable column is None.
        source: what errors call it.
    """

    data: np.ndarray
    names: Sequence[str]
    sizes: Sequence[int | None]
    source: str = "shard"

    def text(self, column: str) -> list[str]:
        """A text column of every row, in order.

        Raises:
            ValueError: the bytes are not laid out so: they are cut short, or of another shard.
        """
        begins, heads = self._places(column)
        ends = begins + heads[:, self._before(column).count(None)]
        try:
            return [
                self.data[begin:end].tobytes().decode()
                for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
            ]
        except UnicodeDecodeError as error:
            raise self._foreign(error) from error

    def counts(self, column: str) -> Counter[str]:
        """How many rows have each value of a text column; quick where equal values stand together.
        Raises as `text`.
        """
        begins, heads = self._places(column)
        lengths = heads[:, self._before(column).count(None)]
        width = int(lengths.max(initial=0))
        if not width:
            return Counter({"": len(begins)}) if len(begins) else Counter()
        places = np.minimum(begins[:, None] + np.arange(width), len(self.data) - 1)
        rows = np.where(np.arange(width) < lengths[:, None], self.data[places], 0)
        starts = np.flatnonzero(
            np.r_[True, (rows[1:] != rows[:-1]).any(axis=1) | (lengths[1:] != lengths[:-1])]
        )
        found: Counter[str] = Counter()
        try:
            for start, end in pairwise([*starts.tolist(), len(rows)]):
                found[rows[start, : lengths[start]].tobytes().decode()] += end - start
        except UnicodeDecodeError as error:
            raise self._foreign(error) from error
        return found

    def fixed(self, column: str, dtype: str) -> np.ndarray:
        """A column of every row whose values have one size; raises as `text`."""
        begins, _ = self._places(column)
        try:
            values = self.data[begins[:, None] + np.arange(np.dtype(dtype).itemsize)]
        except IndexError as error:
            raise self._foreign(error) from error
        return np.ascontiguousarray(values).view(dtype)[:, 0]

    def _places(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Where a column of each row begins, int64 [rows], and the sizes of the row's columns of
        variable size, int64 [rows, columns].
        """
        before, variable = self._before(column), list(self.sizes).count(None)
        try:
            rows = int(np.frombuffer(self.data[:4].tobytes(), "<u4")[0])
            starts = np.frombuffer(self.data[4 : 8 + 4 * rows].tobytes(), "<u4").astype(np.int64)
            if len(starts) != rows + 1 or int(starts[-1]) != len(self.data):
                raise IndexError(f"{len(self.data):,} bytes")
            starts = starts[:-1]
            heads = self.data[starts[:, None] + np.arange(4 * variable)]
        except (IndexError, ValueError) as error:
            raise self._foreign(error) from error
        sizes = np.ascontiguousarray(heads).view("<u4").astype(np.int64)
        fixed = sum(size or 0 for size in before)
        return starts + 4 * variable + fixed + sizes[:, : before.count(None)].sum(1), sizes

    def _before(self, column: str) -> list[int | None]:
        return list(self.sizes[: list(self.names).index(column)])

    def _foreign(self, error: Exception) -> ValueError:
        return ValueError(f"{self.source}: not the shard that its index describes ({error})")
