"""MDS shard files through the library's own writer, with its traps closed.

`MDSWriter` as a context manager publishes a valid-looking index when it is left by an exception,
begins with a shard of no samples when the first one is large, waits whole seconds for uploads where
nothing is uploaded, and imports torch. So it is used here for one handful of shards at a time, in a
folder of its own, finished by hand, and imported only by the process that writes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from model.atomic import fsync_file
from training.formats.sample import COLUMNS

HASH = "xxh64"
SIZE_LIMIT = (
    1 << 26
)  # bytes of one shard; offsets in it are 32 bits wide, so far larger ones would wrap in silence
ROW_LIMIT = (
    1 << 29
)  # bytes of one row; a larger one has a shard of its own, which has to stay below 4 GiB


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
