"""Which question-answer rows can be used, each pair of a video once, and in which order they stand.

Arrow kernels check the text, a column at a time. Rows are ordered by a hash of their text, so that
neither their order nor their number in a file decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from training.formats.sample import LEFTOVER_MARKER, STRAY_TOKENS

REJECTED_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("question_id", pa.string()),
        ("question_type", pa.string()),
        ("reason", pa.string()),
    ]
)

HELD_OUT = "held out"  # about a video that is only asked about, never trained on

# Rows of other tools open or close with a placeholder; samples get theirs when they are grouped.
OUTER_PLACEHOLDER = r"^(?:(?:<image>|<video>)\s*)+|(?:\s*(?:<image>|<video>))+$"


@dataclass(slots=True)
class CleanRows:
    """Usable rows, column by column.

    Attributes:
        codes: int64 [n], the row's video as its place among the part's videos.
        order: int64 [m], rows by video and then by hash; those that repeat others are left out.
        kinds: the kind of question; None where none is stated.
        sample_ids, turns: the sample that a row came in, and its place there; None where it came
            alone.
    """

    codes: np.ndarray
    order: np.ndarray
    questions: list[str]
    answers: list[str]
    question_ids: list[str]
    kinds: list[str | None]
    sample_ids: list[str | None]
    turns: list[int | None]


def clean(
    table: pa.Table,
    durations: Mapping[str, float],
    names: list[str],
    seed: str,
    held_out: Container[str] = (),
) -> tuple[CleanRows, pa.Table]:
    """Usable rows, and a table of `REJECTED_SCHEMA` of the others, with the most basic reason that
    applies to each.

    Args:
        table: columns `code` (place in `names`), `question_id`, `question`, `answer`, and
            where the rows have them `sample_id`, `turn` and `question_type`.
        durations: the videos that are there -> seconds.
        names: the part's videos.
        seed: goes into the hashes that order the rows.
        held_out: videos whose rows are not used, though they are there.
    """
    table = table.combine_chunks()
    codes = table["code"].to_numpy()
    there = np.array([name in durations for name in names], bool)[codes]
    answer = _until_nothing_changes(table["answer"], _without_marker)
    question = _until_nothing_changes(table["question"], _without_marker, _without_placeholder)
    reason = np.full(len(table), "", object)
    # The last one that applies stays, so the most basic reason comes last.
    for text, mask in (
        ("stray token in answer", _mask(pc.match_substring_regex(answer, STRAY_TOKENS))),
        ("stray token in question", _mask(pc.match_substring_regex(question, STRAY_TOKENS))),
        ("empty answer", _mask(pc.equal(answer, ""))),
        ("empty question", _mask(pc.equal(question, ""))),
        (HELD_OUT, np.array([name in held_out for name in names], bool)[codes]),
        ("video not available", ~there),
    ):
        reason[mask] = text
    question_ids = pc.fill_null(table["question_id"], "")
    usable = pa.array(reason == "")
    rows = CleanRows(
        codes=codes[reason == ""],
        order=np.zeros(0, np.int64),
        questions=question.filter(usable).to_pylist(),
        answers=answer.filter(usable).to_pylist(),
        question_ids=question_ids.filter(usable).to_pylist(),
        kinds=_optional(table, "question_type", usable),
        sample_ids=_optional(table, "sample_id", usable),
        turns=_optional(table, "turn", usable),
    )
    rows.order, duplicates = _without_duplicates(rows, seed)
    refused = np.flatnonzero(reason != "")
    kinds = _optional(table, "question_type", pa.array(np.ones(len(table), bool)))
    lost = [*refused, *np.flatnonzero(reason == "")[duplicates]]
    rejected = {
        "video": [names[code] for code in (*codes[refused], *rows.codes[duplicates])],
        "question_id": [
            *question_ids.take(refused).to_pylist(),
            *(rows.question_ids[row] for row in duplicates),
        ],
        "question_type": [kinds[row] for row in lost],
        "reason": [*reason[refused], *["duplicate"] * len(duplicates)],
    }
    by = [("video", "ascending"), ("question_id", "ascending"), ("reason", "ascending")]
    return rows, pa.table(rejected, REJECTED_SCHEMA).sort_by(by)


def _until_nothing_changes(
    column: pa.ChunkedArray, *changes: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> pa.ChunkedArray:
    """Text after all changes, again and again: what one takes out can leave what another is to take
    out. Whatever is looked at afterwards is what will be learned from.
    """
    text = _trimmed(column)
    while True:
        before = text
        for change in changes:
            text = _trimmed(change(text))
        if text.equals(before):
            return text


def _without_marker(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring(column, LEFTOVER_MARKER, "")


def _without_placeholder(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(column, OUTER_PLACEHOLDER, "")


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.fill_null(column, ""))


def _mask(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column).astype(bool)


def _optional(table: pa.Table, name: str, usable: pa.Array) -> list[Any]:
    if name not in table.column_names:
        return [None] * usable.true_count
    return table[name].filter(usable).to_pylist()


def _without_duplicates(rows: CleanRows, seed: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows by video and then by hash of seed, question and answer, each pair of a video once; the
    rows left out).

    Of equal pairs the one that already belongs to a sample stays, then the one with the smallest
    id.
    """
    prefix, digest = seed.encode(), xxhash.xxh3_128_digest
    digests = [
        digest(b"\0".join((prefix, question.encode(), answer.encode())))
        for question, answer in zip(rows.questions, rows.answers, strict=True)
    ]
    hashes = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)
    grouped = np.array([name is not None for name in rows.sample_ids], bool)
    # Text only breaks ties, so it is ranked once instead of being compared in the sort.
    id_rank, sample_rank = _rank(rows.question_ids), _rank([name or "" for name in rows.sample_ids])
    turn = np.array([place or 0 for place in rows.turns], np.int64)
    # The last key counts most.
    order = np.lexsort(
        (id_rank, turn, sample_rank, ~grouped, hashes[:, 1], hashes[:, 0], rows.codes)
    )
    same = np.zeros(len(order), bool)
    if len(order) > 1:
        one, two = order[:-1], order[1:]
        same[1:] = (rows.codes[one] == rows.codes[two]) & (hashes[one] == hashes[two]).all(axis=1)
        # Two samples may share a pair; only a pair that repeats within its own sample, or
        # ungrouped, is a duplicate.
        same[1:] &= ~grouped[two] | (
            (sample_rank[one] == sample_rank[two]) & (turn[one] == turn[two])
        )
    return order[~same], order[same]


def _rank(texts: list[str]) -> np.ndarray:
    """Order of each text among the distinct ones."""
    if not texts:
        return np.zeros(0, np.int64)
    encoded = pa.array(texts, pa.large_string()).dictionary_encode()
    places = np.empty(len(encoded.dictionary), np.int64)
    places[np.asarray(pc.array_sort_indices(encoded.dictionary))] = np.arange(len(places))
    return places[np.asarray(encoded.indices)]
