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
from training.formats.mds_columns import ShardColumns
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
        yield from _columns(storage, folder, shard).text(column)


def shard_videos(
    storage: Storage, folder: str, shard: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """(video, its seconds) of every sample of one shard of a part, in order."""
    columns = _columns(storage, folder, shard)
    seconds = columns.fixed("duration", "<f8")
    yield from zip(columns.text("video"), seconds.tolist(), strict=True)


def samples_about(storage: Storage, folder: str, video: str) -> int:
    """How many samples of a part are about one video."""
    found = 0
    for shard in storage.read_json(f"{folder}/index.json")["shards"]:
        columns = _columns(storage, folder, shard)
        if video.encode() in columns.data.tobytes():
            found += sum(name == video for name in columns.text("video"))
    return found


def _columns(storage: Storage, folder: str, shard: Mapping[str, Any]) -> ShardColumns:
    """The columns of one shard; mapped where it lies on this machine."""
    name = f"{folder}/{shard['raw_data']['basename']}"
    data: np.ndarray = (
        np.memmap(storage.local(name), np.uint8, "r")
        if storage.is_local
        else np.frombuffer(storage.read_bytes(name), np.uint8)
    )
    return ShardColumns(data, shard["column_names"], shard["column_sizes"], storage.path(name))
