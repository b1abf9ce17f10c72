"""Rows of whole videos -> multi-turn samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from assets.conversations.cleaning import CleanRows
from training.formats.sample import IMAGE_TOKEN, ROLES

READ_ROWS = 8192  # samples in memory at a time while they are read

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


class SampleBuilder:
    """Makes the samples of one part, a bucket of videos at a time.

    Args:
        names: the part's videos.
        order: uint64 [names], by which the videos are ordered.
        durations: the videos that are there -> seconds.
        turns: question-answer pairs in one sample, at most.

    Attributes:
        counts: `rows_grouped`, `samples` and `videos`, over all buckets so far.
    """

    def __init__(
        self,
        part: int,
        names: list[str],
        order: np.ndarray,
        durations: Mapping[str, float],
        turns: int,
    ) -> None:
        self.part, self.names, self.order = part, names, order
        self.durations, self.turns = durations, turns
        self.counts: Counter[str] = Counter(rows_grouped=0, samples=0, videos=0)

    def samples(self, rows: CleanRows) -> pa.Table:
        """A table of `SCHEMA`: videos in their order; of each video its ready-made samples, then
        those made of its other rows.
        """
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        for video, places in self._videos(rows):
            groups = self._groups(video, places, rows)
            for name, group in groups:
                pairs = [(rows.questions[row], rows.answers[row]) for row in group]
                columns["id"].append(name)
                columns["video"].append(video)
                columns["source"].append(video.partition("/")[0])
                columns["duration"].append(self.durations[video])
                columns["conversations"].append(_conversation(pairs))
                columns["question_ids"].append([rows.question_ids[row] for row in group])
            self.counts.update(rows_grouped=len(places), samples=len(groups), videos=1)
        return pa.table(columns, SCHEMA)

    def _videos(self, rows: CleanRows) -> list[tuple[str, list[int]]]:
        """Each video and its rows (places in `rows`), in the order of the videos."""
        if not len(rows.order):
            return []
        codes = rows.codes[rows.order]
        bounds = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1], True]).tolist()
        places = rows.order.tolist()
        spans = sorted(
            (int(self.order[codes[start]]), self.names[codes[start]], start, end)
            for start, end in pairwise(bounds)
        )
        return [(video, places[start:end]) for _, video, start, end in spans]

    def _groups(
        self, video: str, places: list[int], rows: CleanRows
    ) -> list[tuple[str, list[int]]]:
        """Name and rows of each sample of one video."""
        ready: dict[str, list[int]] = {}
        loose: list[int] = []
        for row in places:
            name = rows.sample_ids[row]
            if name is None:
                loose.append(row)
            else:
                ready.setdefault(name, []).append(row)
        groups = [
            (name, sorted(ready[name], key=lambda row: rows.turns[row] or 0))
            for name in sorted(ready)
        ]
        numbered = (f"{video}#{self.part}-{number}" for number in range(len(loose) + len(ready)))
        free = (name for name in numbered if name not in ready)
        return groups + [(next(free), chunk) for chunk in even_chunks(loose, self.turns)]


def even_chunks(rows: list[int], most: int) -> list[list[int]]:
    """`rows` in ceil(n / most) consecutive chunks whose sizes differ by at most one, larger ones
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
    """Turns as JSON; the first question gets the placeholder of the video."""
    human, assistant = ROLES
    turns = []
    for index, (question, answer) in enumerate(pairs):
        text = question if index else f"{IMAGE_TOKEN}\n{question}"
        turns += [{"from": human, "value": text}, {"from": assistant, "value": answer}]
    return orjson.dumps(turns).decode()


def read_samples(path: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The samples of a part's file, one after another; all columns of `SCHEMA`, or some.

    Args:
        path: on this machine.
    """
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(READ_ROWS, columns=columns):
            yield from batch.to_pylist()


def examples(samples: pa.Table, most: int) -> list[dict[str, Any]]:
    """The first `most` samples of a table, as a person would read them."""
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
