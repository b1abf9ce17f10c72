"""Annotation files of every form give the same rows, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.fetching import table_files, table_json, table_text
from assets.fetching.errors import AnnotationError
from assets.fetching.table_files import read_rows
from assets.fetching.table_rows import KEY

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
    elif suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            between = "\t" if suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=between)
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
    monkeypatch.setattr(table_json, "READ_CHARS", chars)
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
        ("r.csv", b"\x1f\x8b\x08 packed"),
        ("r.csv", b"video,video_id,question\xff\xfe" * 1000),
        ("r.txt", b""),
    ],
    ids=range(6),
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=name):
        list(read_rows(path, name))


QUESTIONS = [
    {"video": f"panda/v{n}.mp4", "question": f"Wer läuft, {n}; und warum?", "answer": "Der Hund"}
    for n in range(40)
]


def as_csv(rows: list[dict], between: str = ",", **options: Any) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=between, **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("encoding", "called"),
    [
        ("utf-8", "UTF-8"),
        ("utf-8-sig", "UTF-8 with a mark"),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("cp1252", "Windows-1252"),
    ],
)
def test_a_table_of_any_program_is_read_and_says_how(
    between: str, encoding: str, called: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(QUESTIONS, between).encode(encoding))
    file = read_rows(path, path.name)
    assert [row.value for row in file] == QUESTIONS
    assert file.form == f"CSV, columns by {table_text.DELIMITERS[between]}, {called}"


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_json_of_any_program_keeps_its_first_row(
    suffix: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    lines = [json.dumps(row, ensure_ascii=False) for row in QUESTIONS]
    text = f"[{', '.join(lines)}]" if suffix == ".json" else "\n".join(lines)
    path.write_bytes(text.encode(encoding))
    assert [row.value for row in read_rows(path, path.name)] == QUESTIONS


def test_a_stray_byte_costs_its_own_row_and_no_letter_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    data = as_csv(QUESTIONS).encode().splitlines(keepends=True)
    data[3] = data[3].replace("ä".encode(), b"\xe4")
    path.write_bytes(b"".join(data))
    values = [row.value for row in read_rows(path, path.name)]
    assert values[:2] + values[3:] == QUESTIONS[:2] + QUESTIONS[3:]
    with pytest.raises(UnicodeEncodeError):
        values[2]["question"].encode()


def test_the_line_that_excel_reads_is_not_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("sep=;\n" + as_csv(QUESTIONS, ";"))
    file = read_rows(path, path.name)
    assert [(row.value, row.line) for row in file][:2] == [(QUESTIONS[0], 3), (QUESTIONS[1], 4)]


def test_spaces_around_names_of_columns_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("video , question,\tanswer,answer\nx,Q?,A,B\n")
    (row,) = read_rows(path, path.name)
    assert row.value == {"video": "x", "question": "Q?", "answer": "A", "answer (2)": "B"}


# A broken line, and the rest of the file as it must be read.
UNCLOSED = [
    'panda/x.mp4,"Who is it,red',
    'panda/x.mp4,Who is it?,"red',
    '"panda/x.mp4,Who is it?,red',
    'panda/x.mp4,"Who says "hello" here?",red',
]


@pytest.mark.parametrize("line", UNCLOSED)
@pytest.mark.parametrize("place", [1, 20, 40])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_quote_that_is_not_closed_costs_its_own_line(
    line: str, place: int, quoting: int, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    plain = [{**row, "question": f"Who {n}?"} for n, row in enumerate(QUESTIONS)]
    lines = as_csv(plain, quoting=quoting, lineterminator="\n").splitlines()
    path.write_text("\n".join([*lines[:place], line, *lines[place:]]) + "\n")
    found = list(read_rows(path, path.name))
    broken = [row for row in found if row.fault]
    assert [(row.line, row.fault, row.value) for row in broken] == [
        (place + 1, "unclosed_quote", line)
    ]
    assert [row.value for row in found if not row.fault] == plain


def test_a_quote_closed_by_a_later_row_swallows_no_rows_between(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = ["video,question,answer", 'a,"Who?,x', *(f"b{n},Who?,x" for n in range(5))]
    path.write_text("\n".join([*lines, 'c,Which disk?,5",z', "d,Who?,x"]))
    found = [row for row in read_rows(path, path.name) if not row.fault]
    assert [row.value["video"] for row in found] == ["b0", "b1", "b2", "b3", "b4", "d"]


def test_text_of_several_lines_stays_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = [{"video": "x", "question": "Who?\nA. red, blue\nB. green\r\n\nC. none", "answer": "A"}]
    path.write_text(as_csv(rows), newline="")
    assert [row.value for row in read_rows(path, path.name)] == rows


def test_a_row_with_more_cells_than_columns_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("video,question,answer\nx,Who, or what?,A\ny,Who?,A,,\nz,Who?\n")
    found = list(read_rows(path, path.name))
    assert [row.fault for row in found] == ["more_cells_than_columns", "", ""]
    assert found[2].value == {"video": "z", "question": "Who?", "answer": None}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"q1": {"a": 1}, "q2": {"a": 2}}', [{KEY: "q1", "a": 1}, {KEY: "q2", "a": 2}]),
        ('{"v": [{"a": 1}, {"a": 2}], "w": []}', [{KEY: "v", "a": 1}, {KEY: "v", "a": 2}]),
        ('{"info": {"year": 2024}, "n": 3, "annotations": [{"a": 1}]}', [{"a": 1}]),
        ('{"a": 1}', [{"a": 1}]),
        ('[{"a": 1}]\n[{"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('{"a": [{"b": 1}], "c": 2}', [{"a": [{"b": 1}], "c": 2}]),
        ('[{"a": "}]{\\"["}, {"a": {"b": [1]}}]', [{"a": '}]{"['}, {"a": {"b": [1]}}]),
        ("[]", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("chars", [1, 3, 1 << 20])
def test_json_is_read_in_every_form_that_people_write(
    text: str, rows: list[dict], chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_json, "READ_CHARS", chars)
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert [row.value for row in read_rows(path, "rows.json")] == rows


def test_a_large_file_of_rows_by_their_keys_is_read_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_json, "LONGEST_ROW", 400)
    monkeypatch.setattr(table_json, "READ_CHARS", 100)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({f"q{n}": row for n, row in enumerate(QUESTIONS)}, indent=1))
    found = [row.value for row in read_rows(path, "rows.json")]
    assert found == [{KEY: f"q{n}", **row} for n, row in enumerate(QUESTIONS)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_no_number_is_the_same_in_all_forms(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    line = '{"a": NaN, "b": -Infinity, "c": 12345678901234567890123}'
    path.write_text(f"[{line}]" if suffix == ".json" else line)
    (row,) = read_rows(path, path.name)
    assert row.value["a"] != row.value["a"]
    assert row.value["b"] == float("-inf")
    assert row.value["c"] == 12345678901234567890123


# What a row may be at worst, and the reason under which it is set aside.
HOSTILE = {
    "a hundred thousand brackets": ("[" * 100_000 + "]" * 100_000, "too_deep"),
    "brackets in a row": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "too_deep"),
    "objects in each other": ('{"a": ' * 500 + "1" + "}" * 500, "too_deep"),
    "a number of five thousand digits": ('{"a": ' + "9" * 5000 + "}", "not_json"),
    "a row of twenty million characters": ('{"a": "' + "x" * 20_000_000 + '"}', "too_long"),
    "a list": ('["a", 1]', "not_an_object"),
    "no value": ('{"a": nothing}', "not_json"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_one_hostile_row_costs_itself(name: str, suffix: str, tmp_path: Path) -> None:
    text, fault = HOSTILE[name]
    rows = ['{"a": 1}', text, '{"a": 2}']
    path = tmp_path / f"rows{suffix}"
    path.write_text("[" + ",\n".join(rows) + "]" if suffix == ".json" else "\n".join(rows))
    found = list(read_rows(path, path.name))
    assert [row.value for row in found if not row.fault] == [{"a": 1}, {"a": 2}]
    assert [(row.number, row.line, row.fault) for row in found if row.fault] == [(1, 2, fault)]
    assert len(found[1].value) <= 2000, "a message stays short"


def test_half_a_surrogate_pair_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud800"}\n{"a": "b"}\n')
    assert [row.value for row in read_rows(path, path.name)] == [{"a": "\ud800"}, {"a": "b"}]


def test_a_kilobyte_of_parquet_that_unpacks_to_64_gb_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = 1 << 16
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * (1 << 20)])
    talk = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), texts)
    pq.write_table(pa.table({"a": texts, "b": talk}), path, compression="zstd")
    assert path.stat().st_size < 40_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = sum(len(row.value["a"]) for row in read_rows(path, path.name))
    assert found == rows << 20
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1 << 20, "kilobytes: it would be 128 GiB"


def test_a_long_row_of_a_parquet_file_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": ["b", "x" * 20_000_000, "c"]}), path)
    assert [(row.fault, row.number) for row in read_rows(path, path.name)] == [
        ("", 0),
        ("too_long", 1),
        ("", 2),
    ]


def test_texts_of_parquet_that_are_no_text_cost_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    pq.write_table(pa.table({"a": texts}), path)
    assert [row.value["a"] for row in read_rows(path, path.name)] == ["a", "\udcff", "c"]


def test_parquet_gives_lists_objects_and_maps(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table(
        {
            "list": [["a", "a"], None, []],
            "object": [{"x": "a", "y": 1}, None, {"x": None, "y": 2}],
            "map": pa.array([[("A", "red")], None, []], pa.map_(pa.string(), pa.string())),
        }
    )
    pq.write_table(table, path)
    values = [row.value for row in read_rows(path, path.name)]
    assert [value["list"] for value in values] == [["a", "a"], None, []]
    assert [value["object"] for value in values] == table["object"].to_pylist()
    assert [value["map"] for value in values] == [{"A": "red"}, None, {}]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_too_many_columns_is_refused_by_a_short_sentence(
    suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{suffix}"
    write(path, [{f"column {n}": "x" for n in range(1500)}])
    with pytest.raises(AnnotationError, match="has 1,500 columns, more than 1,000") as error:
        list(read_rows(path, path.name))
    assert len(str(error.value)) < 200


def test_a_file_of_too_many_rows_or_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [{"a": n} for n in range(11)])
    monkeypatch.setattr(table_files, "MOST_ROWS", 10)
    with pytest.raises(AnnotationError, match=r"rows\.jsonl: has more than 10 rows"):
        list(read_rows(path, path.name))
    monkeypatch.setattr(table_files, "MOST_BYTES", 10)
    with pytest.raises(AnnotationError, match=r"rows\.jsonl: has 0 GiB, more than 0"):
        read_rows(path, path.name)
