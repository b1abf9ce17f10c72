"""Puts the annotations together: from the readings of today's files, the rows that count, part
after part.

What comes out depends only on the readings in their order, the parts of the videos and the
withdrawn videos. Rows stay in Arrow tables; only videos are Python objects.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from assets.annotations.record import AnnotationRecord, Origin
from assets.annotations.tables import REJECTED_SCHEMA, ROW_GROUP, SCHEMA, digests
from assets.fetching.disk import scratch
from training.formats import layout
from training.formats.storage import Storage

BATCH_ROWS = 32_768
COLUMNS = SCHEMA.names[:-1]
NOWHERE = -1  # the part of rows that are left out


def videos_of(storage: Storage, origin: Origin) -> list[str]:
    """The videos that a file has rows about."""
    column = pq.read_table(storage.local(layout.reading(origin.reading)), columns=["video"])
    return [str(video) for video in pc.unique(column["video"]).to_pylist()]


def write_annotations(
    storage: Storage, record: AnnotationRecord, alive: Sequence[np.ndarray], part_of: dict[str, int]
) -> None:
    """Write the annotation file. The counts and the part versions of `record` are filled in, and
    the record is written with the rows.

    Args:
        alive: of each file of the record, which of its pairs count.
        part_of: the part of each video; rows about others are left out as withdrawn.
    """
    folder = scratch(storage, "annotations", "parts")
    shutil.rmtree(folder)
    folder.mkdir()
    paths = [folder / f"{part}.arrow" for part in range(len(record.part_names))]
    contents: list[list[np.ndarray]] = [[] for _ in paths]
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_file(str(path), SCHEMA)) for path in paths]
        for origin, mask in zip(record.origins, alive, strict=True):
            _deal(storage, origin, mask, part_of, writers, contents)
    record.part_versions = [_version(parts) for parts in contents]
    with (
        storage.writing(layout.ANNOTATIONS) as temporary,
        pq.ParquetWriter(temporary, record.schema(), compression="zstd") as file,
    ):
        for path in paths:
            _append(path, file)
    shutil.rmtree(folder)


def mention(video: str) -> str:
    """A regular expression for the id of `source/id` in the text of a row, not as a piece of a
    longer word: as it is or as JSON writes it, in either form of Unicode, also with backslashes
    between its steps.
    """
    names = set()
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, video.partition("/")[2])
        in_json = [json.dumps(name, ensure_ascii=escaped)[1:-1] for escaped in (False, True)]
        names |= {name, *in_json}
    named = "|".join(re.escape(name) for name in sorted(names)).replace("/", r"[\\/]{1,2}")
    # In JSON a line break is a backslash and a letter.
    return rf"(^|[^\w-]|\\[bfnrt])({named})($|[^\w-])"


def write_rejected(
    storage: Storage, origins: Sequence[Origin], withdrawn: Iterable[str] = ()
) -> None:
    """Write the rows that were set aside, of all files in their order.

    Args:
        withdrawn: videos; a row in whose text the id of one of them stands is left out.
    """
    named = "|".join(map(mention, sorted(withdrawn)))
    with (
        storage.writing(layout.REJECTED_ANNOTATIONS) as temporary,
        pq.ParquetWriter(temporary, REJECTED_SCHEMA, compression="zstd") as file,
    ):
        for origin in origins:
            table = pq.read_table(storage.local(layout.rejected_reading(origin.reading)))
            if named:
                table = table.filter(pc.invert(pc.match_substring_regex(table["content"], named)))
            names = [origin.file, origin.checksum]
            same = [pa.array([name] * len(table), pa.string()) for name in names]
            file.write_table(pa.table([*same, *table.columns], REJECTED_SCHEMA))


def _deal(
    storage: Storage,
    origin: Origin,
    alive: np.ndarray,
    part_of: dict[str, int],
    writers: list[pa.ipc.RecordBatchFileWriter],
    contents: list[list[np.ndarray]],
) -> None:
    """Write those rows of a file that count to the files of their parts; counts them."""
    origin.rows = origin.superseded = origin.withdrawn = 0
    path, start = storage.local(layout.reading(origin.reading)), 0
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=[*COLUMNS, "content"]):
            mask = alive[start : start + len(batch)]
            start += len(batch)
            batch = batch.filter(pa.array(mask))
            parts = _parts(batch.column("video"), part_of)
            origin.superseded += int((~mask).sum())
            origin.withdrawn += int((parts == NOWHERE).sum())
            origin.rows += int((parts != NOWHERE).sum())
            for part in np.unique(parts[parts != NOWHERE]):
                rows = batch.filter(pa.array(parts == part))
                number = pa.array(np.full(len(rows), part, np.int32))
                columns = [*(rows.column(name) for name in COLUMNS), number]
                writers[part].write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
                contents[part].append(digests(rows.column("content")).copy())


def _parts(videos: pa.Array, part_of: dict[str, int]) -> np.ndarray:
    """The part of each row's video."""
    encoded = videos.dictionary_encode()
    parts = [part_of.get(video, NOWHERE) for video in encoded.dictionary.to_pylist()]
    return np.array(parts, np.int64)[np.asarray(encoded.indices)] if len(videos) else np.zeros(0)


def _version(contents: list[np.ndarray]) -> str:
    """A hash of what a part's rows say, whatever their order."""
    if not contents:
        return xxhash.xxh3_128_hexdigest(b"")
    rows = np.concatenate(contents)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows[order]).tobytes())


def _append(path: Path, file: pq.ParquetWriter) -> None:
    """Append a part's rows. No row group of the annotation file holds rows of two parts."""
    with pa.memory_map(str(path)) as source:
        rows = pa.ipc.open_file(source)
        pending: list[pa.RecordBatch] = []
        for number in range(rows.num_record_batches):
            pending.append(rows.get_batch(number))
            last = number + 1 == rows.num_record_batches
            if last or sum(len(batch) for batch in pending) >= ROW_GROUP:
                table = pa.Table.from_batches(pending).combine_chunks()
                table = table.replace_schema_metadata(file.schema.metadata)
                file.write_table(table, row_group_size=len(table))
                pending = []
