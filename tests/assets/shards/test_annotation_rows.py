"""Rows of annotation files by their place: those that the json module finds, in any layout, in any
block size.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.shards.annotation_rows import mapped, parse_row, row_spans

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(alphabet='ab"\\{}[],: \n<é😀', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet='k"\\}', max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
rows = st.lists(
    st.dictionaries(st.sampled_from(["id", "image", "x\\"]), values, max_size=3), max_size=12
)


def read(path, block=1 << 24):
    begins, ends = row_spans(path, block)
    with mapped(path) as data:
        return [
            parse_row(data, begin, end)
            for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
        ]


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=rows,
    layout=st.sampled_from(["compact", "indented", "lines"]),
    ascii_only=st.booleans(),
    block=st.integers(1, 80),
)
def test_rows_are_those_of_the_json_module(tmp_path, data, layout, ascii_only, block):
    path = tmp_path / "rows.json"
    if layout == "lines":
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in data)
    else:
        text = json.dumps(data, ensure_ascii=ascii_only, indent=2 if layout == "indented" else None)
    path.write_text(text, encoding="utf-8")
    assert read(path, block) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"b": "cut', "ends inside row 2"),
        ('[{"a": 1}', "cut short"),
        ('"just a string"', "neither a JSON array of rows"),
        ('[{"a": 1}, 7, {"b": 2}]', "row 2 is not a JSON object: b'7'"),
        ('[{"a": 1}] trailing', "not a JSON object"),
    ],
)
def test_what_is_not_a_list_of_rows_is_an_error_that_says_where(tmp_path, text, message):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        row_spans(path)


def test_an_empty_file_and_an_empty_list_have_no_rows(tmp_path):
    for text in ("", "  \n", "[]", "\ufeff[ ]\n"):
        (tmp_path / "rows.json").write_text(text, encoding="utf-8")
        assert read(tmp_path / "rows.json") == []


BROKEN_LINES = {
    "a quote too few": '{"id": "b", "value": "never closed}',
    "a bracket too many": '{"id": "b"}}',
    "a bracket too few": '{"id": "b", "turns": [{"from": "gpt"}',
    "no object": "<html>502 Bad Gateway</html>",
    "half a line": '{"id": "b", "va',
    "a list": "[1, 2]",
}


@pytest.mark.parametrize("name", BROKEN_LINES)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_one_broken_line_is_one_broken_row_and_costs_no_other(tmp_path, name, place):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": str(number), "value": 'a "quoted" [text'} for number in range(4)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(place, BROKEN_LINES[name])
    path.write_text("\ufeff" + "\r\n".join([*lines, "", "  ", ""]), encoding="utf-8")
    expected = [*rows[:place], None, *rows[place:]]
    if place == 0 and name in ("no object", "a list"):
        path.write_text("\n".join([*lines[1:], lines[0], ""]))
        expected = [*rows, None]
    assert read(path) == expected


def test_a_file_of_lines_that_ends_within_one_is_cut_short(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": 2, "val')
    with pytest.raises(ValueError, match=r"ends inside row 2; the file is cut short, fetch it"):
        row_spans(path)


def test_objects_over_several_lines_are_rows_too(tmp_path):
    rows = [{"id": 1, "turns": [{"from": "gpt"}]}, {"id": 2, "turns": []}]
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    assert read(path) == rows
