"""Rows of any accepted form become the same questions; everything else is refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.annotations.rows import QuestionRow, RowParser
from assets.annotations.video_names import RejectedRow
from assets.fetching.errors import AnnotationError

SOURCES = ("panda", "ego4d", "activitynet")


def one(
    row: dict[str, Any] | str,
    sources: Sequence[str] = SOURCES,
    columns: Mapping[str, str | None] | None = None,
) -> QuestionRow:
    (question,) = RowParser(sources, columns).parse(row, "file.jsonl")
    return question


def flat(**changes: Any) -> dict[str, Any]:
    return {"video": "x.mp4", "data_source": "panda", "question": "Q?", "answer": "A", **changes}


@pytest.mark.parametrize(
    ("video", "source"),
    [
        ("videos/panda/x.mp4", "panda"),
        ("panda/x.mp4", "panda"),
        ("panda/x.mp4", None),
        ("x.mp4", "panda"),
        ("./panda//x.mp4", None),
        ("x", "Panda"),
        ("x.mp4", "panda-70m"),
        ("x.pt", "panda"),
        ("PANDA/x.MP4", "panda"),
    ],
)
def test_every_way_of_writing_a_video_names_the_same_one(video: str, source: str | None) -> None:
    question = one(flat(video=video, data_source=source))
    assert (question.video, question.source, question.id) == ("panda/x", "panda", "x")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_source": ["panda"]}, "unknown_source"),
        ({"data_source": {"name": "panda"}}, "unknown_source"),
        ({"data_source": 1.5}, "unknown_source"),
        ({"video": ["x.mp4"]}, "no_video"),
        ({"video": {"path": "x.mp4"}}, "no_video"),
        ({"video": "\ud800.mp4"}, "unsafe_video_path"),
    ],
)
def test_values_of_no_use_set_the_row_aside_and_end_nothing(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RejectedRow, match=reason):
        one(flat(**changes))


def test_a_duration_beyond_all_numbers_is_none() -> None:
    assert one(flat(duration=10**400)).duration is None


def test_an_id_may_contain_dots_and_folders() -> None:
    assert one(flat(video="a.b/c.d.mp4")).id == "a.b/c.d"
    assert one(flat(video="-v_1.2")).id == "-v_1.2"


@pytest.mark.parametrize(
    "video", ["../x.mp4", "panda/../../x.mp4", "/etc/x.mp4", "..\\x.mp4", ".hidden.mp4", "a\nb", ""]
)
def test_a_video_that_leaves_its_folder_is_rejected(video: str) -> None:
    with pytest.raises(RejectedRow, match=r"unsafe_video_path|no_video"):
        one(flat(video=video))


@given(st.text(max_size=300), st.sampled_from(["panda", None]))
def test_no_video_name_ever_leaves_its_folder(video: str, source: str | None) -> None:
    try:
        question = one(flat(video=video, data_source=source))
    except RejectedRow:
        return
    steps = question.id.split("/")
    assert all(steps)
    assert not {".", ".."} & set(steps)
    assert not any(step.startswith(".") or "\0" in step or "\\" in step for step in steps)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (flat(answer=""), "no_answer"),
        (flat(answer=None), "no_answer"),
        (flat(question="<image>\n"), "no_question"),
        (flat(data_source="vimeo"), "unknown_source"),
        (flat(data_source=None), "unknown_source"),
        (flat(video="ego4d/x.mp4", data_source="panda"), "source_conflict"),
        (flat(video=None), "no_video"),
        (flat(video=float("nan")), "no_video"),
        (flat(options=list("abcdefghijklmnopqrstuvwxyz1")), "too_many_options"),
        ("just text", "not_an_object"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_with_its_reason(
    row: dict[str, Any] | str, reason: str
) -> None:
    with pytest.raises(RejectedRow, match=reason):
        one(row)


def test_one_configured_source_needs_no_column() -> None:
    assert (
        one({"video": "x.mp4", "question": "Q?", "answer": "A"}, sources=["mine"]).video == "mine/x"
    )


def test_names_of_columns_are_compared_without_case_and_by_their_aliases() -> None:
    row = {
        "Video_Name": "x",
        "Dataset": "panda",
        "Prompt": "Q?",
        "RESPONSE": "A",
        "video_url": "http://h",
        "Type": "a/mc",
    }
    question = one(row)
    assert (question.question, question.answer, question.url, question.question_type) == (
        "Q?",
        "A",
        "http://h",
        "a/mc",
    )


def test_an_unknown_column_is_an_error_that_says_what_was_found_and_what_to_do() -> None:
    with pytest.raises(AnnotationError) as error:
        one(flat(colour="red"))
    text = str(error.value)
    for part in (
        "file.jsonl",
        "'colour'",
        "video, data_source, question, answer, colour",
        "data_source/source",
        "annotations.columns",
    ):
        assert part in text


def test_missing_columns_are_an_error() -> None:
    with pytest.raises(AnnotationError, match="columns are missing"):
        one({"video": "x", "question": "Q?"})


def test_a_later_row_with_other_columns_is_set_aside_alone() -> None:
    parser = RowParser(SOURCES)
    parser.parse(flat(), "file.jsonl")
    without_answer = {name: value for name, value in flat().items() if name != "answer"}
    for row, reason in (
        (without_answer, "no_answer"),
        (flat(mood="good"), "other_columns"),
        ({}, "no_video"),
    ):
        with pytest.raises(RejectedRow, match=reason):
            parser.parse(row, "file.jsonl")
    assert len(parser.parse(flat(url="https://a.example/x.mp4"), "file.jsonl")) == 1


def test_the_settings_may_name_columns_or_leave_them_out() -> None:
    row = {"clip": "x", "where": "panda", "question": "Q?", "answer": "A", "colour": "red"}
    assert one(row, columns={"clip": "video", "where": "source", "colour": None}).video == "panda/x"
    with pytest.raises(AnnotationError, match="the fields are"):
        one(row, columns={"clip": "film"})


def test_separate_options_become_lines_of_the_question_unless_they_stand_there() -> None:
    assert one(flat(options=["red", "blue"])).question == "Q?\nA. red\nB. blue"
    assert one(flat(options='["red", "blue"]')).question == "Q?\nA. red\nB. blue"
    assert one(flat(question="Q?\nA. red", options=["red", "blue"])).question == "Q?\nA. red"


def test_a_question_id_is_kept_or_follows_from_the_content() -> None:
    assert one(flat(id=17)).question_id == "17"
    first, again, other = one(flat()), one(flat(video="panda/x")), one(flat(answer="B"))
    assert first.question_id == again.question_id != other.question_id


def test_a_grouped_row_becomes_its_turns() -> None:
    talk = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nOne?"},
        {"from": "gpt", "value": "1"},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        {"role": "assistant", "content": "2"},
    ]
    questions = RowParser(SOURCES).parse(
        {"id": "s1", "video": "x.mp4", "data_source": "panda", "conversations": talk}, "file.json"
    )
    assert [(q.question, q.answer, q.sample_id, q.turn) for q in questions] == [
        ("One?", "1", "s1", 0),
        ("Two?", "2", "s1", 1),
    ]
    assert len({q.question_id for q in questions}) == 2


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        ([], "roles_do_not_alternate"),
        ([{"from": "gpt", "value": "1"}], "roles_do_not_alternate"),
        ([{"from": "human", "value": "1"}], "roles_do_not_alternate"),
        (
            [{"from": "human", "value": "1"}, {"from": "human", "value": "2"}],
            "roles_do_not_alternate",
        ),
        ([{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "2"}], "empty_turn"),
        ([{"from": "robot", "value": "1"}], "unknown_role"),
        ("nothing", "conversation_not_json"),
        ({"from": "human"}, "conversation_not_a_list"),
    ],
)
def test_a_broken_conversation_is_rejected_with_its_reason(talk: Any, reason: str) -> None:
    with pytest.raises(RejectedRow, match=reason):
        RowParser(SOURCES).parse({"video": "x", "data_source": "panda", "conversations": talk}, "f")
