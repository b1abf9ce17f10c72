"""The neutral form of questions is strict about what it cannot use and says where it stands."""

from __future__ import annotations

import json

import pytest

from assets.evaluation.questions import (
    EvaluationQuestion,
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
    ],
)
def test_a_bad_question_is_named_with_its_line(tmp_path, change, message):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "b"} | change) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_questions(path)
    assert "q.jsonl, line 2" in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", "[1]\n", "{", '{"id": "a"}'])
def test_a_file_without_usable_questions_is_an_error(tmp_path, text):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"q\.jsonl"):
        read_questions(path)


def test_an_id_that_occurs_twice_is_an_error(tmp_path):
    write_questions(
        tmp_path / "q.jsonl",
        [
            EvaluationQuestion("x", "text", "", "a?", "b"),
            EvaluationQuestion("x", "text", "", "c?", "d"),
        ],
    )
    with pytest.raises(ValueError, match="'x' occurs twice"):
        read_questions(tmp_path / "q.jsonl")
