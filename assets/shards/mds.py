"""MDS shard files: written by the library's own writer, with its traps closed, and one column of
them read.

`MDSWriter` as a context manager publishes a valid-looking index when it is left by an exception,
begins with a shard of no samples when the first one is large, waits whole seconds for uploads where
nothing is uploaded, and imports torch. So it is used here for a few shards at a time, in a folder
of its own, finished by hand, and imported only by the process that writes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from model.atomic import fsync_file
from training.formats.sample import COLUMNS
from training.formats.storage import Storage

HASH = "xxh64"
# Bytes of one shard. Offsets in it are 32 bits wide: far larger ones would wrap without a word.
SIZE_LIMIT = 1 << 26
# Bytes of one row. A larger one has a shard of its own, which has to stay below 4 GiB.
ROW_LIMIT = 1 << 29


def write_shards(
    folder: Path, prefix: str, rows: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Write rows of `COLUMNS` as `<prefix>.mds`, `<prefix>.1.mds`, ... and return their
    `index.json` entries.

    The files are on the disk when this returns. No rows give no file.
    """
    from streaming import MDSWriter

    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{prefix}-") as fresh:
        writer = MDSWriter(
            columns=COLUMNS, out=f"{fresh}/mds", hashes=[HASH], size_limit=SIZE_LIMIT
        )
        writer.executor = _AtOnce()
        try:
            for row in rows:
                writer.write(dict(row))
            writer.finish()
        except BaseException:
            writer.cancel_future_jobs()
            raise
        written = json.loads(Path(fresh, "mds", "index.json").read_bytes())["shards"]
        for entry in (shard for shard in written if shard["samples"]):
            name = f"{prefix}.{len(entries)}.mds" if entries else f"{prefix}.mds"
            source = Path(fresh, "mds", entry["raw_data"]["basename"])
            fsync_file(source)
            os.replace(source, folder / name)
            entries.append({**entry, "raw_data": {**entry["raw_data"], "basename": name}})
    return entries


class _AtOnce(ThreadPoolExecutor):
    """Runs what it is given where it is given: the library's uploads, which do nothing for a local
    folder.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # the writer's callback looks at it
            future.set_exception(error)
        return future


def index_json(shards: Iterable[Mapping[str, Any]]) -> str:
    """The text of an `index.json`."""
    return json.dumps({"shards": list(shards), "version": 2}, sort_keys=True)


def read_column(storage: Storage, folder: str, column: str) -> Iterator[str]:
    """The text column `column` of every sample of a part, in order. A remote part is fetched for
    it.
    """
    for shard in storage.read_json(f"{folder}/index.json")["shards"]:
        data = np.memmap(storage.local(f"{folder}/{shard['raw_data']['basename']}"), np.uint8, "r")
        yield from _column(data, shard, column)


def shard_videos(
    storage: Storage, folder: str, shard: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """(video, its seconds) of every sample of one shard of a part, in order."""
    data = _shard_bytes(storage, folder, shard)
    seconds = _fixed_column(data, shard, "duration", "<f8")
    yield from zip(_column(data, shard, "video"), seconds.tolist(), strict=True)


def samples_about(storage: Storage, folder: str, video: str) -> int:
    """How many samples of a part are about one video."""
    found = 0
    for shard in storage.read_json(f"{folder}/index.json")["shards"]:
        data = _shard_bytes(storage, folder, shard)
        if video.encode() in data.tobytes():
            found += sum(name == video for name in _column(data, shard, "video"))
    return found


def _shard_bytes(storage: Storage, folder: str, shard: Mapping[str, Any]) -> np.ndarray:
    """The bytes of one shard, uint8 [n]; mapped where it lies on this machine."""
    name = f"{folder}/{shard['raw_data']['basename']}"
    if storage.is_local:
        return np.memmap(storage.local(name), np.uint8, "r")
    return np.frombuffer(storage.read_bytes(name), np.uint8)


def _column(data: np.ndarray, shard: Mapping[str, Any], column: str) -> Iterator[str]:
    """A text column of the rows of one shard."""
    begins, heads = _places(data, shard, column)
    ends = begins + heads[:, shard["column_sizes"][: _place(shard, column)].count(None)]
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        yield data[begin:end].tobytes().decode()


def _fixed_column(
    data: np.ndarray, shard: Mapping[str, Any], column: str, dtype: str
) -> np.ndarray:
    """A column of the rows of one shard whose values have one size."""
    begins, _ = _places(data, shard, column)
    values = data[begins[:, None] + np.arange(np.dtype(dtype).itemsize)]
    return np.ascontiguousarray(values).view(dtype)[:, 0]


def _places(
    data: np.ndarray, shard: Mapping[str, Any], column: str
) -> tuple[np.ndarray, np.ndarray]:
    """Where a column of each row begins, int64 [rows], and the sizes of the row's columns of
    variable size, int64 [rows, columns].

    An MDS file begins with the number of its rows and where each of them begins and the last one
    ends; a row, with the sizes of its columns of variable size. All of these are uint32. The
    columns follow, in the index's order.
    """
    sizes: list[int | None] = shard["column_sizes"]
    before, variable = sizes[: _place(shard, column)], sizes.count(None)
    starts = np.frombuffer(data[4 : 4 + 4 * shard["samples"]].tobytes(), "<u4").astype(np.int64)
    heads = np.ascontiguousarray(data[starts[:, None] + np.arange(4 * variable)]).view("<u4")
    heads = heads.astype(np.int64)
    fixed = sum(size or 0 for size in before)
    return starts + 4 * variable + fixed + heads[:, : before.count(None)].sum(1), heads


def _place(shard: Mapping[str, Any], column: str) -> int:
    return int(shard["column_names"].index(column))
