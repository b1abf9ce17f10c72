"""Annotation files of every form give the same rows, in bounded memory."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.fetching import table_files
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import read_rows

ROWS = [
    {"video": f"v{n}", "question": f'Say "{n}", [please]\n{{}}', "answer": "ä, ]" * n}
    for n in range(300)
]


def write(path: Path, rows: list[dict]) -> None:
    suffix = path.suffix
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows, indent=1))


@pytest.mark.parametrize("suffix", table_files.SUFFIXES)
def test_every_form_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, ROWS)
    found = list(read_rows(path, path.name))
    assert [row.value for row in found] == ROWS
    assert [row.number for row in found] == list(range(300))


@pytest.mark.parametrize(
    "wrap", ['{{"data": {}}}', '{{ "annotations" :\n{}, "version": 1}}', "{}\n", "  {}"]
)
def test_a_list_may_be_wrapped(wrap: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(wrap.format(json.dumps(ROWS)))
    assert [row.value for row in read_rows(path, "rows.json")] == ROWS


def test_a_json_file_may_hold_one_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert [row.value for row in read_rows(path, "rows.json")] == ROWS


VALUES = st.dictionaries(
    st.text(max_size=4),
    st.one_of(st.text(max_size=40), st.integers(), st.lists(st.text(max_size=9))),
)


@given(
    rows=st.lists(VALUES, max_size=12), chars=st.integers(1, 30), indent=st.sampled_from([None, 1])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_json_list_is_read_alike_whatever_the_size_of_a_read(
    rows: list[dict[str, Any]],
    chars: int,
    indent: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_files, "READ_CHARS", chars)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent))
    assert [row.value for row in read_rows(path, "rows.json")] == rows


def test_a_broken_line_is_a_row_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1]\n{"a": 2}\n')
    assert [row.value for row in read_rows(path, "rows.jsonl")] == [
        {"a": 1},
        '{"a": ',
        "[1]",
        {"a": 2},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.json", b'[{"a": 1}, {"a": '),
        ("r.json", b"<html>"),
        ("r.parquet", b"PAR1 no"),
        ("r.csv", b"a\n\xff\xfe\n"),
        ("r.txt", b""),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=name):
        list(read_rows(path, name))
