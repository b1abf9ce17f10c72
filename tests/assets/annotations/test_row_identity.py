"""Which of several rows counts, compared with a second implementation that walks over every pair
of rows; and what a correction changes.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.annotations.collect import collect_annotations
from assets.annotations.identity import NO_ID, RowKeys, changes, survivors
from tests.assets.annotations.test_annotation_collection import deployment, land, rows_of
from tests.servers.world import question, quiet
from training.formats import layout

IDS, QUESTIONS, ANSWERS = ["", "1", "2"], ["q", "r"], ["a", "b"]
ROW = st.tuples(st.sampled_from(IDS), st.sampled_from(QUESTIONS), st.sampled_from(ANSWERS))
FILES = st.lists(st.lists(ROW, max_size=6), max_size=4)
Row = tuple[str, str, str]


def keys_of(rows: list[Row]) -> RowKeys:
    """A file of rows (id, question, answer) about one video; the texts' own hashes are the keys."""
    named = [hash(("id", one)) % 2**63 + 1 if one else NO_ID for one, _, _ in rows]
    asked = [hash(("question", text)) % 2**63 for _, text, _ in rows]
    said = [hash(("row", *row)) % 2**63 for row in rows]
    columns = (np.array(values, np.uint64) for values in (named, asked))
    return RowKeys(
        np.arange(len(rows)),
        *columns,
        np.zeros(len(rows), np.int64),
        np.array(said, np.uint64),
    ).with_clear_ids()


def clear_ids(rows: list[Row]) -> list[Row]:
    """The rows; an id that stands at several questions names none of them."""
    asked: dict[str, set[str]] = {}
    for one, text, _ in rows:
        asked.setdefault(one, set()).add(text)
    return [(one if len(asked[one]) == 1 else "", text, said) for one, text, said in rows]


def same(one: Row, other: Row) -> bool:
    return one[0] == other[0] if one[0] and other[0] else one[1] == other[1]


def counting(files: list[list[Row]]) -> list[list[bool]]:
    """Row by row: does any later row stand for it?"""
    line = [(number, row) for number, rows in enumerate(files) for row in clear_ids(rows)]
    alive = [
        not any(same(row, later) for _, later in line[at + 1 :]) for at, (_, row) in enumerate(line)
    ]
    return [
        [keep for keep, (of, _) in zip(alive, line, strict=True) if of == number]
        for number in range(len(files))
    ]


@given(FILES)
def test_the_rows_that_count_are_those_that_no_later_row_stands_for(files: list[list[Row]]) -> None:
    masks = survivors([keys_of(rows) for rows in files])
    assert [mask.tolist() for mask in masks] == counting(files)


@given(FILES, FILES)
def test_changes_are_those_that_sets_of_rows_show(
    before: list[list[Row]], after: list[list[Row]]
) -> None:
    def effective(files: list[list[Row]]) -> tuple[dict[str, RowKeys], set[tuple[Row, Row]]]:
        keys = [keys_of(rows) for rows in files]
        kept = [one.chosen(mask) for one, mask in zip(keys, survivors(keys), strict=True)]
        rows = {
            (row, clear)
            for rows, masks in zip(files, counting(files), strict=True)
            for row, clear, keep in zip(rows, clear_ids(rows), masks, strict=True)
            if keep
        }
        return {str(number): one for number, one in enumerate(kept)}, rows

    (old, old_rows), (new, new_rows) = effective(before), effective(after)
    _, total = changes(old, new)

    def stands_for(pair: tuple[Row, Row], others: set[tuple[Row, Row]]) -> bool:
        return any(same(pair[1], clear) for _, clear in others)

    def without(pairs: set[tuple[Row, Row]], others: set[tuple[Row, Row]]) -> list:
        said = {row for row, _ in others}
        return [pair for pair in pairs if pair[0] not in said]

    fresh, lost = without(new_rows, old_rows), without(old_rows, new_rows)
    assert (total.came > 0) == any(not stands_for(row, old_rows) for row in fresh)
    assert (total.changed > 0) == any(stands_for(row, old_rows) for row in fresh)
    assert (total.gone > 0) == any(not stands_for(row, new_rows) for row in lost)


DAYS = st.lists(
    st.dictionaries(
        st.sampled_from(["a.jsonl", "b.jsonl", "c.jsonl"]),
        st.none() | st.lists(st.tuples(st.sampled_from("vwx"), ROW), min_size=1, max_size=4),
        min_size=1,
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(DAYS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_life_of_the_landing_folder_ends_as_a_clean_build_of_its_final_files(
    tmp_path_factory: pytest.TempPathFactory, days: list[dict[str, list | None]]
) -> None:
    """Files come, are edited and go, in any order. A second deployment sees each file only in its
    final form, in the order in which they were first seen, with the same parts.
    """
    lived, clean = tmp_path_factory.mktemp("lived"), tmp_path_factory.mktemp("clean")
    settings_, storage = deployment(lived, rows_of(4))
    (lived / "landing").mkdir()
    for day in days:
        for name, rows in sorted(day.items()):
            path = lived / "landing" / name
            if rows is None:
                path.unlink(missing_ok=True)
            else:
                land(lived / "landing", name, [as_row(video, row) for video, row in rows])
        collect_annotations(storage, settings_, quiet)
    other, elsewhere = deployment(clean, rows_of(4))
    (clean / "landing").mkdir()
    elsewhere.write_bytes(layout.VIDEO_PARTS, storage.read_bytes(layout.VIDEO_PARTS))
    for path in sorted((lived / "landing").iterdir()):
        (clean / "landing" / path.name).write_bytes(path.read_bytes())
        os.utime(clean / "landing" / path.name, (1, 1))
    collect_annotations(elsewhere, other, quiet)
    for name in (layout.ANNOTATIONS, layout.REJECTED_ANNOTATIONS, layout.VIDEO_PARTS):
        assert elsewhere.read_bytes(name) == storage.read_bytes(name), name
    assert elsewhere.list(layout.READINGS) == storage.list(layout.READINGS)


def as_row(video: str, row: Row) -> dict[str, Any]:
    identifier, text, answer = row
    more = {"id": identifier} if identifier else {}
    return {**question(video, "panda"), "question": text, "answer": answer, **more}
