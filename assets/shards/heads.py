"""One column of a part's samples, read from the heads of their rows: nothing of their images is
touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from training.formats.storage import Storage


def read_column(storage: Storage, folder: str, column: str) -> Iterator[str]:
    """The text column `column` of every sample of a part, in order. A remote part is fetched for
    it.
    """
    for shard in storage.read_json(f"{folder}/index.json")["shards"]:
        data = np.memmap(storage.local(f"{folder}/{shard['raw_data']['basename']}"), np.uint8, "r")
        yield from _column(data, shard, column)


def _column(data: np.ndarray, shard: dict[str, Any], column: str) -> Iterator[str]:
    """A column of the rows of one shard.

    An MDS file begins with the number of its rows and where each of them begins and the last one
    ends; a row, with the sizes of its columns of variable size. All of these are uint32. The
    columns follow, in the index's order.
    """
    sizes: list[int | None] = shard["column_sizes"]
    place = shard["column_names"].index(column)
    heads = sum(size is None for size in sizes)
    before = sum(size is None for size in sizes[:place])
    fixed = sum(size or 0 for size in sizes[:place])
    for start in np.frombuffer(data[4 : 4 + 4 * shard["samples"]].tobytes(), "<u4").tolist():
        head = np.frombuffer(data[start : start + 4 * heads].tobytes(), "<u4").tolist()
        begin = start + 4 * heads + fixed + sum(head[:before])
        yield data[begin : begin + head[before]].tobytes().decode()
