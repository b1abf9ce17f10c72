"""How much of what was asked for a checkpoint was trained on: what its shards have, without the
videos that gave no features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.records.coverage import Cell, Coverage
from assets.records.lineage import covered
from training.formats import layout
from training.formats.storage import Storage

HELD_OUT = "held out"  # samples that the run keeps for its own questions


def stage_coverage(
    storage: Storage,
    variant: str,
    shards: Iterable[str],
    parts: Sequence[str],
    left_out: Mapping[str, int],
) -> Coverage:
    """What a finished run of a stage was trained on.

    Args:
        shards: the products of shards, or of the mixture, that it reads.
        parts: of the long videos that it reads; none where it reads none.
        left_out: samples that the run left out, by reason.
    """
    coverage = covered(storage, shards)
    refused = _without_features(storage, variant) if parts else {}
    for part in parts if refused else ():
        _lose_videos(storage, coverage, part, refused)
    coverage.notes += [
        f"{samples:,} samples were left out by the run: {reason}"
        for reason, samples in sorted(left_out.items())
        if reason == HELD_OUT or not refused
    ]
    return coverage


def _without_features(storage: Storage, variant: str) -> dict[str, str]:
    """Videos that could not be decoded or encoded -> why."""
    folder = layout.features(variant)
    names = storage.list(folder, layout.QUARANTINE_SUFFIX)
    return {
        name[len(folder) + 1 : -len(layout.QUARANTINE_SUFFIX)]: (
            f"no features: {storage.read_json(name).get('reason')}"
        )
        for name in names
    }


def _lose_videos(
    storage: Storage, coverage: Coverage, part: str, refused: Mapping[str, str]
) -> None:
    """Take the rows of a part's videos without features out of what is there."""
    path = storage.local(layout.conversations(part))
    names = pa.array(sorted(refused), pa.string())
    table = pq.read_table(path, columns=["video", "source", "duration", "question_ids"])
    table = table.filter(pc.is_in(table["video"], names))
    rows = table.append_column("rows", pc.list_value_length(table["question_ids"]))
    lost = rows.group_by(["video", "source"]).aggregate([("rows", "sum"), ("duration", "max")])
    for raw in lost.to_pylist():
        cell = Cell(raw["rows_sum"], 1, raw["duration_max"])
        coverage.lose(raw["source"], refused[raw["video"]], cell)
    videos = lost["video"].combine_chunks()
    if len(videos):
        _lose_kinds(storage, coverage, videos)


def _lose_kinds(storage: Storage, coverage: Coverage, videos: pa.Array) -> None:
    """The same for the kinds of question, by the rows that ask about these videos."""
    with pq.ParquetFile(storage.local(layout.ANNOTATIONS)) as file:
        for batch in file.iter_batches(columns=["video", "question_type"]):
            kinds = batch.filter(pc.is_in(batch["video"], videos))["question_type"]
            for entry in pc.fill_null(kinds, "").value_counts().to_pylist():
                coverage.lose_kind(entry["values"], entry["counts"])
