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
from assets.fetching.table_rows import KEY

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
        (flat(data_source=None), "no_source"),
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


@pytest.mark.parametrize("nothing", [None, "", float("nan"), float("inf"), "NaN", "nan"])
def test_what_says_nothing_is_missing_in_all_forms(nothing: Any) -> None:
    question = one(flat(id=nothing, url=nothing, options=nothing, duration=nothing))
    assert (question.row_id, question.url, question.duration) == (None, None, None)
    with pytest.raises(RejectedRow, match="no_answer"):
        one(flat(answer=nothing))


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


def test_an_unknown_column_is_left_out_and_named() -> None:
    parser = RowParser(SOURCES)
    (question,) = parser.parse(flat(colour="red", **{" Mood ": "good"}), "file.jsonl")
    assert (question.video, parser.unused) == ("panda/x", ["colour", " Mood "])


def test_missing_columns_are_an_error_that_says_what_was_found_and_what_to_do() -> None:
    with pytest.raises(AnnotationError) as error:
        one({"video": "x", "data_source": "panda", "question": "Q?", "anwser": "A"})
    for part in (
        "file.jsonl: columns are missing",
        "Found: video, data_source, question, anwser. Not known: 'anwser'.",
        "answer: answer/response/a",
        "annotations.columns",
    ):
        assert part in str(error.value)


def test_a_message_about_columns_stays_short() -> None:
    columns = {f"column {number} {'x' * 500}": "1" for number in range(5000)}
    with pytest.raises(AnnotationError, match="and 4,990 more") as error:
        one(columns)
    assert len(str(error.value)) < 2000


def test_a_row_without_the_needed_columns_is_set_aside_alone_where_rows_have_their_own() -> None:
    parser = RowParser(SOURCES, same_columns=False)
    without_answer = {name: value for name, value in flat().items() if name != "answer"}
    for row in ({}, {"version": 3}, without_answer):
        with pytest.raises(RejectedRow, match="columns_missing"):
            parser.parse(row, "file.jsonl")
    assert len(parser.parse(flat(mood="good"), "file.jsonl")) == 1
    assert "Found: nothing" in str(parser.columns_error)


@pytest.mark.parametrize("name", [" Question ", "QUESTION", "\tquestion"])
def test_names_of_columns_may_have_spaces_around_them(name: str) -> None:
    assert one({"video ": "x", "source": "panda", name: "Q?", " answer": "A"}).question == "Q?"


def test_the_settings_may_name_columns_or_leave_them_out() -> None:
    row = {"clip": "x", "where": "panda", "question": "Q?", "answer": "A", "colour": "red"}
    assert one(row, columns={"clip": "video", "where": "source", "colour": None}).video == "panda/x"
    with pytest.raises(AnnotationError, match="the fields are"):
        one(row, columns={"clip": "film"})


def test_separate_options_become_lines_of_the_question_unless_they_stand_there() -> None:
    assert one(flat(options=["red", "blue"])).question == "Q?\nA. red\nB. blue"
    assert one(flat(options='["red", "blue"]')).question == "Q?\nA. red\nB. blue"
    assert one(flat(question="Q?\nA. red", options=["red", "blue"])).question == "Q?\nA. red"


OPTIONS = [
    ["red", "blue"],
    ("red", "blue"),
    '["red", "blue"]',
    "['red', 'blue']",
    '{"A": "red", "B": "blue"}',
    {"A": "red", "B": "blue"},
    {"b": "blue", "a": "red", "C": None},
    "red|blue",
    " red | blue ",
    "A. red\nB. blue",
    "(A) red|(B) blue",
    ["A. red", "B) blue"],
    ["red", "blue", None],
]


@pytest.mark.parametrize("options", OPTIONS, ids=map(str, OPTIONS))
def test_options_are_read_in_every_way_that_people_write_them(options: Any) -> None:
    assert one(flat(options=options)).question == "Q?\nA. red\nB. blue"


@pytest.mark.parametrize(
    "names",
    [("option_a", "option_b"), ("Choice 1", "Choice 2"), ("option0", "option1"), ("A", "B")],
)
def test_a_column_for_each_option_is_read(names: tuple[str, str]) -> None:
    labels = [name.strip()[-1].upper() for name in names]
    question = one(flat(**dict(zip(names, ("red", "blue"), strict=True)))).question
    assert question == f"Q?\n{labels[0]}. red\n{labels[1]}. blue"


@pytest.mark.parametrize(
    "options",
    ["red, blue", "see the video", 7, [None, "blue"], "[red", "[__import__('os')]", [{"x": 1}]],
    ids=str,
)
def test_options_that_cannot_be_read_set_the_row_aside_and_are_never_dropped(options: Any) -> None:
    with pytest.raises(RejectedRow, match=r"options_not_read|not_a_text"):
        one(flat(options=options, answer="B"))


@pytest.mark.parametrize("options", [[], {}, "[]", "{}", [None, ""], {"A": None}], ids=str)
def test_no_options_are_those_of_an_open_question(options: Any) -> None:
    assert one(flat(options=options)).question == "Q?"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1:02:03", 3723),
        ("02:03", 123),
        ("1:02:03.5", 3723.5),
        ("1,5", 1.5),
        ("3,600", 3600),
        ("PT5M", 300),
        ("PT1H2M3S", 3723),
        ("90 s", 90),
        ("90 seconds", 90),
        ("1h 5m", 3900),
        ("2.5 min", 150),
        ("1500 ms", 1.5),
        ("61.25", 61.25),
        (61, 61),
    ],
)
def test_durations_are_read_as_people_write_them(written: Any, seconds: float) -> None:
    assert one(flat(duration=written)).duration == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["a while", "-5", "0", "1:2:3:4", "PTX", "1e9", [5], "inf", ""])
def test_what_is_no_duration_is_left_out_and_counted(written: Any) -> None:
    parser = RowParser(SOURCES)
    (question,) = parser.parse(flat(duration=written), "f")
    assert question.duration is None
    assert parser.unread["duration"] == (written != "")


@pytest.mark.parametrize(
    ("video", "identifier"),
    [
        ("C:\\clips\\a b.mp4", "a b"),
        ("d:/films/2024/a.MKV", "a"),
        ("\\\\server\\share\\a.mov", "a"),
        ("clips\\a.mp4", "clips/a"),
        ("https://youtu.be/dQw4w9WgXcQ?t=3", "dQw4w9WgXcQ"),
        ("https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=x", "dQw4w9WgXcQ"),
        ("https://host.example/clips/a%20b.mp4?token=1", "a b"),
        ("http://host.example/a.m2ts", "a"),
        ("file:///C:/clips/a.mp4", "a"),
        ("s3://bucket/folder/a.webm", "a"),
        ("cafe\u0301.mp4", "caf\u00e9"),
        (" a.mpeg ", "a"),
    ],
)
def test_paths_of_other_machines_and_addresses_name_a_video_by_their_last_step(
    video: str, identifier: str
) -> None:
    assert one(flat(video=video)).id == identifier


def test_an_address_in_place_of_a_name_is_where_the_video_is_fetched() -> None:
    assert one(flat(video="https://host.example/a.mp4")).url == "https://host.example/a.mp4"
    both = flat(video="https://host.example/a.mp4", url="https://mirror.example/a.mp4")
    assert one(both).url == "https://mirror.example/a.mp4"
    assert one(flat(video="s3://bucket/a.mp4")).url is None


@pytest.mark.parametrize(
    "video", ["https://host.example/watch?v=1", "https://host.example/", "http://[", "https://"]
)
def test_an_address_that_names_no_file_is_no_name(video: str) -> None:
    with pytest.raises(RejectedRow, match="no_name_in_address"):
        one(flat(video=video))


def test_two_addresses_that_end_alike_are_never_one_video() -> None:
    parser = RowParser(SOURCES)
    assert parser.parse(flat(video="https://a.example/1/clip.mp4"), "f")
    with pytest.raises(RejectedRow, match="two_addresses_of_one_name"):
        parser.parse(flat(video="https://a.example/2/clip.mp4"), "f")
    for watch in ("https://youtu.be/dQw4w9WgXcQ", "https://www.youtube.com/shorts/dQw4w9WgXcQ"):
        assert parser.parse(flat(video=watch), "f")[0].id == "dQw4w9WgXcQ"


@pytest.mark.parametrize("field", ["id", "url", "question_type"])
@pytest.mark.parametrize("value", [{"en": "Q?"}, 10**5000, ["x"]], ids=["object", "number", "list"])
def test_a_value_that_is_no_text_is_left_out_and_counted_where_a_row_can_do_without(
    field: str, value: Any
) -> None:
    parser = RowParser(SOURCES)
    (question,) = parser.parse(flat(**{field: value}), "f")
    assert {"id": question.row_id, "url": question.url, "question_type": question.question_type}[
        field
    ] is None
    assert parser.unread == {field: 1}


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize("value", [{"en": "Q?"}, 10**5000], ids=["object", "number"])
def test_a_value_that_is_no_text_sets_the_row_aside(field: str, value: Any) -> None:
    with pytest.raises(RejectedRow, match="not_a_text"):
        one(flat(**{field: value}))


def test_rows_by_their_keys_take_the_key_as_what_they_lack() -> None:
    assert one({KEY: "x", "data_source": "panda", "question": "Q?", "answer": "A"}).id == "x"
    assert one({KEY: "q7", **flat()}).question_id == "q7"
    assert one({KEY: "q7", **flat(id="mine")}).question_id == "mine"


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
