"""Question-answer rows -> multi-turn samples: which pairs come together is decided by a hash, never
by row order.

A part's rows come in buckets of whole videos (`part_rows.py`). Each bucket is cleaned with Arrow
kernels and sorted by hash (`cleaning.py`), made into samples (`samples.py`) and written before the
next one is touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from assets.annotations.catalogue import present_videos
from assets.conversations.cleaning import REJECTED_SCHEMA, clean
from assets.conversations.part_coverage import MissingVideo, PartCoverage, missing_videos
from assets.conversations.part_rows import PartRows
from assets.conversations.samples import SCHEMA, SampleBuilder, examples
from assets.deployment.parts import is_held_out, part_name
from assets.deployment.settings import Settings
from assets.records.coverage import Coverage
from training.formats import layout
from training.formats.hashing import hash_file, stable_hash
from training.formats.storage import Storage
from training.progress import Progress

ROW_GROUP = 1024  # samples in one Parquet row group: what a shard task has to read at least
EXAMPLES = 5  # samples that the UI shows


@dataclass(slots=True)
class GroupingReport:
    """What became of a part's rows.

    Attributes:
        version: content hash of the Parquet file.
        counts: `rows_in`, `rows_grouped`, `samples`, `videos`, and rows dropped by reason
            (`dropped: ...`).
        coverage: how many of the part's rows are in its samples, and why the others are not.
        examples: a few samples, as a person would read them.
    """

    version: str
    counts: dict[str, int]
    coverage: Coverage
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
    """Group one part's rows about videos that are there into `conversations/part<i>.parquet`.

    Raises:
        FileNotFoundError: the part is not catalogued, or there are no annotations.
        ValueError: the annotation file has other columns than expected.
    """
    durations = {
        found.video: found.duration for found in present_videos(storage, settings, part_name(part))
    }
    shards = settings.shards
    missing = missing_videos(storage, settings, part_name(part))
    share = settings.held_out_share
    return group_rows(
        storage,
        layout.ANNOTATIONS,
        part,
        durations,
        seed=shards.seed,
        turns=shards.turns_per_sample,
        log=log,
        missing=missing,
        held_out={video for video in durations if is_held_out(video, share)},
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
    missing: Mapping[str, MissingVideo] | None = None,
    held_out: Container[str] = (),
) -> GroupingReport:
    """Group the rows of a part and publish its samples, and its unused rows beside them.

    Up to `turns` question-answer pairs of one video become one sample; n pairs make ceil(n /
    turns) samples of even size. Rows that carry a `sample_id` stay together as that sample, in
    the order of `turn`. Videos stand in a seeded order, the samples of one video together.

    Args:
        annotations: Parquet file below the storage root with at least the columns
            `part_rows.REQUIRED`.
        durations: the videos that are there -> seconds.
        missing: what is known of the others.
        held_out: videos that are there and are not trained on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks a column.
    """
    path = storage.local(annotations)
    with pq.ParquetFile(path) as source, ExitStack() as stack:
        rows = PartRows(path, source, part)
        order = np.array([stable_hash("video order", seed, name) for name in rows.names], np.uint64)
        builder = SampleBuilder(part, rows.names, order, durations, turns)

        output = stack.enter_context(storage.writing(conversations_name(part)))
        refused = stack.enter_context(storage.writing(rejected_name(part)))
        writer = stack.enter_context(pq.ParquetWriter(output, SCHEMA, compression="zstd"))
        rejects = stack.enter_context(
            pq.ParquetWriter(refused, REJECTED_SCHEMA, compression="zstd")
        )
        dropped: Counter[str] = Counter()
        coverage = PartCoverage(rows, durations, missing or {})
        shown: list[dict[str, Any]] = []
        progress = Progress(log, rows.number, "rows")
        for table in rows.buckets(order):
            kept, rejected = clean(table, durations, rows.names, seed, held_out)
            samples = builder.samples(kept)
            writer.write_table(samples, row_group_size=ROW_GROUP)
            rejects.write_table(rejected)
            coverage.lose(rejected)
            for found in rejected["reason"].value_counts().to_pylist():
                dropped[f"dropped: {found['values']}"] += found["counts"]
            shown += examples(samples, EXAMPLES - len(shown))
            progress.advance(len(table))
        writer.close()
        rejects.close()
        version = hash_file(output)[:32]
    counts = {"rows_in": rows.number, **builder.counts, **dict(sorted(dropped.items()))}
    return GroupingReport(version, counts, coverage.result(), shown)
