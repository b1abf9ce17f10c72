"""Question-answer rows -> multi-turn samples: which pairs come together is decided by a hash, never
by row order.

A part's rows are read in two passes over the annotation Parquet, so that 3.3 million rows need
neither to fit into memory nor to become Python objects at once: the first pass counts, the second
deals the rows into buckets of whole videos, and each bucket is cleaned with Arrow kernels, sorted
by hash and written before the next one is touched.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.annotations.catalogue import present_videos
from assets.conversations.cleaning import REJECTED_SCHEMA, CleanRows, clean
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from training.formats import layout
from training.formats.hashing import hash_file, stable_hash
from training.formats.sample import IMAGE_TOKEN, ROLES
from training.formats.storage import Storage
from training.progress import Progress

# Rows cleaned and sorted at once; bounds memory to a few hundred MB whatever the part's size.
BUCKET_ROWS = 100_000
BATCH_ROWS = 32_768
ROW_GROUP = 1024  # samples in one Parquet row group: what a shard task has to read at least
EXAMPLES = 5

REQUIRED = ("part", "video", "question_id", "question", "answer")
GROUPED = ("sample_id", "turn")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("source", pa.string()),
        ("duration", pa.float64()),
        ("conversations", pa.string()),
        ("question_ids", pa.list_(pa.string())),
    ]
)


@dataclass(slots=True)
class GroupingReport:
    """What became of a part's rows.

    Attributes:
        version: content hash of the Parquet file.
        counts: ``rows_in``, ``rows_grouped``, ``samples``, ``videos``, and rows dropped by reason
            (``dropped: ...``).
        examples: a few samples, as a person would read them.
    """

    version: str
    counts: dict[str, int]
    examples: list[dict[str, Any]] = field(default_factory=list)


def conversations_name(part: int) -> str:
    """The part's samples, relative to the storage root."""
    return layout.conversations(part_name(part))


def rejected_name(part: int) -> str:
    """The part's rows that are not used, with the reason."""
    return layout.rejected_conversations(part_name(part))


def group_part(
    storage: Storage, settings: Settings, part: int, log: Callable[[str], None]
) -> GroupingReport:
    """Group one part's rows about videos that are there into ``conversations/part<i>.parquet``.

    Raises:
        FileNotFoundError: the part is not catalogued, or there are no annotations.
        ValueError: the annotation file has other columns than expected.
    """
    durations = {
        found.video: found.duration for found in present_videos(storage, settings, part_name(part))
    }
    shards = settings.shards
    return group_rows(
        storage,
        layout.ANNOTATIONS,
        part,
        durations,
        seed=shards.seed,
        turns=shards.turns_per_sample,
        log=log,
    )


def group_rows(
    storage: Storage,
    annotations: str,
    part: int,
    durations: Mapping[str, float],
    *,
    seed: str,
    turns: int,
    log: Callable[[str], None],
) -> GroupingReport:
    """Group the rows of a part and publish its samples, and its unused rows beside them.

    Up to ``turns`` question-answer pairs of one video become one sample; n pairs make ceil(n /
    turns) samples of even size. Rows that carry a ``sample_id`` stay together as that sample, in
    the order of ``turn``. Videos stand in a seeded order, the samples of one video together.

    Args:
        annotations: Parquet file below the storage root with at least the columns ``REQUIRED``.
        durations: the videos that are there -> seconds.
    """
    path = storage.local(annotations)
    with pq.ParquetFile(path) as source, ExitStack() as stack:
        present = source.schema_arrow.names
        if missing := [name for name in REQUIRED if name not in present]:
            raise ValueError(
                f"{path}: columns {', '.join(missing)} are missing; it has {', '.join(present)}"
            )
        rows_in, names = _count(source, part)
        order = np.array([stable_hash("video order", seed, name) for name in names], np.uint64)
        bucket = _Buckets(names, order, max(1, -(-rows_in // BUCKET_ROWS)))

        output = stack.enter_context(storage.writing(conversations_name(part)))
        refused = stack.enter_context(storage.writing(rejected_name(part)))
        writer = stack.enter_context(pq.ParquetWriter(output, SCHEMA, compression="zstd"))
        rejects = stack.enter_context(
            pq.ParquetWriter(refused, REJECTED_SCHEMA, compression="zstd")
        )
        counts: Counter[str] = Counter()
        examples: list[dict[str, Any]] = []
        progress = Progress(log, rows_in, "rows")
        for table in bucket.tables(source, part):
            kept, rejected = clean(table, durations, names, seed)
            samples = _samples(kept, part, names, order, durations, turns, counts)
            writer.write_table(samples, row_group_size=ROW_GROUP)
            rejects.write_table(rejected)
            for found in rejected["reason"].value_counts().to_pylist():
                counts[f"dropped: {found['values']}"] += found["counts"]
            examples += _examples(samples, EXAMPLES - len(examples))
            progress.advance(len(table))
        writer.close()
        rejects.close()
        version = hash_file(output)[:32]
    totals = {
        "rows_in": rows_in,
        **{name: counts[name] for name in ("rows_grouped", "samples", "videos")},
    }
    dropped = {name: counts[name] for name in sorted(counts) if name.startswith("dropped: ")}
    return GroupingReport(version, totals | dropped, examples)


def _groups_of(source: pq.ParquetFile, part: int) -> list[int]:
    """Row groups that can hold rows of the part, by their statistics; parts are written one after
    another.
    """
    column = source.schema_arrow.names.index("part")
    groups = []
    for number in range(source.num_row_groups):
        statistics = source.metadata.row_group(number).column(column).statistics
        if (
            statistics is None
            or not statistics.has_min_max
            or statistics.min <= part <= statistics.max
        ):
            groups.append(number)
    return groups


def _count(source: pq.ParquetFile, part: int) -> tuple[int, list[str]]:
    """Pass one: how many rows the part has, and the names of its videos, sorted."""
    rows, names = 0, set[str]()
    for batch in source.iter_batches(
        BATCH_ROWS, row_groups=_groups_of(source, part), columns=["part", "video"]
    ):
        videos = pc.fill_null(batch.column("video"), "").filter(
            pc.equal(batch.column("part"), part)
        )
        rows += len(videos)
        names.update(pc.unique(videos).to_pylist())
    return rows, sorted(names)


@dataclass(slots=True)
class _Buckets:
    """Pass two: the part's rows in buckets of whole videos, which follow each other in the order of
    the videos.

    Attributes:
        names, order: the part's videos and the hashes that order them.
        number: how many buckets; more than one goes through temporary files.
    """

    names: list[str]
    order: np.ndarray
    number: int

    def tables(self, source: pq.ParquetFile, part: int) -> Iterator[pa.Table]:
        columns = [name for name in (*REQUIRED, *GROUPED) if name in source.schema_arrow.names]
        schema = pa.schema([("code", pa.int64()), *((name, _type(name)) for name in columns[2:])])
        bucket_of = (
            (self.order.astype(np.float64) / 2.0**64 * self.number)
            .astype(np.int64)
            .clip(max=self.number - 1)
        )
        codes_of = {name: code for code, name in enumerate(self.names)}
        held: list[pa.RecordBatch] = []
        with tempfile.TemporaryDirectory(prefix="hourllava-grouping-") as folder:
            paths = [str(Path(folder) / f"{number}.arrow") for number in range(self.number)]
            writers = [pa.ipc.new_file(path, schema) for path in paths] if self.number > 1 else []
            for batch in source.iter_batches(
                BATCH_ROWS, row_groups=_groups_of(source, part), columns=columns
            ):
                batch = batch.filter(pc.equal(batch.column("part"), part))
                codes = _codes(pc.fill_null(batch.column("video"), ""), codes_of)
                arrays = [
                    batch.column(field.name).cast(field.type)
                    for field in schema
                    if field.name != "code"
                ]
                rows = pa.RecordBatch.from_arrays([pa.array(codes), *arrays], schema=schema)
                if not writers:
                    held.append(rows)
                    continue
                target = bucket_of[codes]
                for number in np.unique(target):
                    writers[number].write_batch(rows.filter(pa.array(target == number)))
            for writer in writers:
                writer.close()
            if not writers:
                yield pa.Table.from_batches(held, schema)
                return
            for path in paths:
                with pa.memory_map(path) as file:
                    yield pa.ipc.open_file(file).read_all()
                Path(path).unlink()


def _codes(column: pa.Array, code_of: Mapping[str, int]) -> np.ndarray:
    """Each row's video as its place among the part's videos."""
    encoded = column.dictionary_encode()
    places = np.array([code_of[name] for name in encoded.dictionary.to_pylist()], np.int64)
    return places[np.asarray(encoded.indices)] if len(column) else np.zeros(0, np.int64)


def _type(name: str) -> pa.DataType:
    return pa.int64() if name == "turn" else pa.large_string()


def _samples(
    rows: CleanRows,
    part: int,
    names: list[str],
    order: np.ndarray,
    durations: Mapping[str, float],
    turns: int,
    counts: Counter[str],
) -> pa.Table:
    """Samples of one bucket: videos in seeded order; of each video its ready-made samples, then the
    chunks.
    """
    codes = rows.codes[rows.order]
    bounds = (
        np.flatnonzero(np.r_[True, codes[1:] != codes[:-1], True])
        if len(codes)
        else np.zeros(1, np.int64)
    )
    spans = sorted(
        (int(order[codes[a]]), names[codes[a]], int(a), int(b)) for a, b in pairwise(bounds)
    )
    places = rows.order.tolist()
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for _, video, start, end in spans:
        ready: dict[str, list[int]] = {}
        loose: list[int] = []
        for row in places[start:end]:
            if rows.sample_ids[row] is None:
                loose.append(row)
            else:
                ready.setdefault(rows.sample_ids[row], []).append(row)
        groups = [
            (name, sorted(ready[name], key=lambda row: rows.turns[row] or 0))
            for name in sorted(ready)
        ]
        numbers = (f"{video}#{part}-{number}" for number in range(len(loose) + len(ready)))
        free = (name for name in numbers if name not in ready)
        groups += [(next(free), chunk) for chunk in even_chunks(loose, turns)]
        for name, group in groups:
            columns["id"].append(name)
            columns["video"].append(video)
            columns["source"].append(video.partition("/")[0])
            columns["duration"].append(durations[video])
            columns["conversations"].append(
                _conversation([(rows.questions[row], rows.answers[row]) for row in group])
            )
            columns["question_ids"].append([rows.question_ids[row] for row in group])
        counts["rows_grouped"] += end - start
        counts["samples"] += len(groups)
        counts["videos"] += 1
    return pa.table(columns, SCHEMA)


def even_chunks(rows: list[int], most: int) -> list[list[int]]:
    """``rows`` in ceil(n / most) consecutive chunks whose sizes differ by at most one, larger ones
    first.
    """
    number = -(-len(rows) // most)
    chunks, start = [], 0
    for index in range(number):
        size = len(rows) // number + (index < len(rows) % number)
        chunks.append(rows[start : start + size])
        start += size
    return chunks


def _conversation(pairs: list[tuple[str, str]]) -> str:
    turns = []
    for index, (question, answer) in enumerate(pairs):
        turns.append(
            {"from": ROLES[0], "value": question if index else f"{IMAGE_TOKEN}\n{question}"}
        )
        turns.append({"from": ROLES[1], "value": answer})
    return orjson.dumps(turns).decode()


def _examples(samples: pa.Table, most: int) -> list[dict[str, Any]]:
    rows = samples.slice(0, max(most, 0)).to_pylist()
    return [
        {
            "id": row["id"],
            "duration": row["duration"],
            "turns": len(row["question_ids"]),
            "conversation": "\n".join(
                f"{turn['from']}: {turn['value']}" for turn in orjson.loads(row["conversations"])
            ),
        }
        for row in rows
    ]
