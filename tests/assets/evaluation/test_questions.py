"""The neutral form of questions is strict about what it cannot use and says where it stands."""

from __future__ import annotations

import json

import pytest

from assets.evaluation.questions import (
    parse_question,
    read_questions,
    write_questions,
)

GOOD = {
    "id": "a",
    "media": "video",
    "path": "a.mp4",
    "question": "Which?",
    "answer": "red",
    "options": ["red", "blue"],
}


def test_what_is_written_is_read_back(tmp_path, questions):
    write_questions(tmp_path / "q.jsonl", questions)
    assert read_questions(tmp_path / "q.jsonl") == questions


def test_the_prompt_letters_its_options_and_hides_candidates():
    assert parse_question(GOOD).prompt == (
        "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    hidden = {key: value for key, value in GOOD.items() if key != "options"} | {
        "candidates": ["red", "blue"]
    }
    assert parse_question(hidden).prompt == "Which?"
    assert parse_question(hidden).choices == ("red", "blue")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": "audio"}, "unknown media 'audio'"),
        ({"path": ""}, "path ''"),
        ({"answer": "green"}, "must be one of"),
        ({"answer": ""}, "no question or no answer"),
        ({"options": ["red", "red"]}, "distinct"),
        ({"candidates": ["red"]}, "both options and candidates"),
        ({"anwser": "red"}, "unknown keys anwser"),
        ({"options": ["red"] * 30}, "letters end"),
        ({"id": " "}, "its id is empty"),
        ({"id": True}, "id must be a text, found true; write it in quotes"),
        ({"id": ["a"]}, r'id must be a text, found \["a"\]'),
        ({"media": 5}, "media must be a text, found 5"),
        ({"path": 5}, "path must be a text, found 5"),
        ({"question": 5}, "question must be a text, found 5"),
        ({"question": {"text": "Which?"}}, "question must be a text, found {"),
        ({"question": "half \ud83d"}, "question holds half of a character at 6"),
        ({"answer": None}, "missing answer"),
        ({"answer": float("nan"), "options": None}, "answer must be a text, found NaN"),
        ({"task": 5}, "task must be a text, found 5"),
        ({"subtitles": 5}, "subtitles must be a text, found 5"),
        ({"options": "1|3"}, r'options must be a list as \["yes", "no"\], found "1\|3"'),
        ({"options": {"red": 1}}, "options must be a list"),
        ({"options": ["red", None]}, r"options\[1\] must be a text, found null"),
        ({"options": None, "candidates": "red"}, "candidates must be a list"),
        ({"duration": "1:02"}, 'seconds above 0, found "1:02"; 62 is 1:02'),
        ({"duration": True}, "seconds above 0, found true"),
        ({"duration": 0}, "seconds above 0, found 0"),
        ({"duration": -3.5}, "seconds above 0, found -3.5"),
        ({"duration": float("inf")}, "seconds above 0, found Infinity"),
        ({"duration": 10**400}, "seconds above 0, found 1000"),
    ],
)
def test_a_bad_question_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "b"} | change) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(path)
    assert "q.jsonl, line 2" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "\n\n", "\ufeff", "[1]\n", "{", '{"id": "a"}', "[" * 100_000, "9" * 5_000]
)
def test_a_file_without_usable_questions_is_an_error(tmp_path, text):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"q\.jsonl"):
        read_questions(path)


def test_numbers_become_text_where_an_answer_may_be_one(tmp_path):
    number = GOOD | {"id": 7, "answer": 3}
    rows = [
        number | {"options": [1, 3.5, 3]},
        number | {"id": 7.5, "options": None, "candidates": ["1", "3"]},
        number | {"id": 8, "options": [], "duration": 62, "task": None},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lettered, rated, free = read_questions(tmp_path / "q.jsonl")
    assert (lettered.id, lettered.answer, lettered.options) == ("7", "3", ("1", "3.5", "3"))
    assert (rated.id, rated.answer, rated.candidates) == ("7.5", "3", ("1", "3"))
    assert (free.form, free.answer, free.duration, free.task) == ("open", "3", 62.0, "")


def test_a_file_is_read_as_editors_and_tables_write_it(tmp_path):
    rows = [
        GOOD | {"id": str(n), "question": f"Which\u2028{n}?" + " \u00e9" * 10**6} for n in (1, 2)
    ]
    first, second = (json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "q.jsonl").write_bytes(f"\ufeff{first}\r\n\r\n  \r\n{second}".encode())
    assert read_questions(tmp_path / "q.jsonl") == [parse_question(row) for row in rows]
    (tmp_path / "q.jsonl").write_bytes(f"\ufeff\r\n{first}\r\n{first[:-1]}".encode())
    with pytest.raises(ValueError, match=r"q\.jsonl, line 3: not JSON \(.* at character \d+\);"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path, encoding):
    line = json.dumps(GOOD | {"question": "O\u00f9?"}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_bytes(f"\n{line}\n".encode(encoding))
    with pytest.raises(ValueError, match=r"q\.jsonl, line \d: byte \d+ .* as UTF-8") as caught:
        read_questions(tmp_path / "q.jsonl")
    assert encoding == "utf-16" or "line 2" in str(caught.value)


def test_an_id_that_occurs_twice_is_an_error(tmp_path):
    rows = [GOOD | {"id": id} for id in ("0", "1", 1)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ValueError, match=r"line 3: the id '1' occurs twice, first in line 2"):
        read_questions(tmp_path / "q.jsonl")
