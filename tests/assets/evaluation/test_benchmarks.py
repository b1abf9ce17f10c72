"""Annotation files of public benchmarks, as their authors write them, become neutral questions."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.evaluation.benchmarks import load_benchmark, main, split_options
from assets.evaluation.questions import read_questions, write_questions


def test_video_mme_as_parquet_and_as_nested_json(tmp_path):
    asked = {
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many birds are there?",
        "options": ["A. One.", "B. Two.", "C. Three.", "D. Four."],
        "answer": "C",
    }
    video = {
        "video_id": "001",
        "duration": "short",
        "domain": "Knowledge",
        "videoID": "fFjv93ACGo8",
    }
    pq.write_table(pa.Table.from_pylist([video | asked]), tmp_path / "test-00000-of-00001.parquet")
    (tmp_path / "nested.json").write_text(json.dumps([video | {"questions": [asked]}]))
    [flat] = load_benchmark("video-mme", tmp_path / "test-00000-of-00001.parquet").questions
    [nested] = load_benchmark("video-mme", tmp_path / "nested.json").questions
    assert flat == nested
    assert (flat.path, flat.answer, flat.options) == (
        "fFjv93ACGo8.mp4",
        "Three.",
        ("One.", "Two.", "Three.", "Four."),
    )
    assert flat.task == "short: Counting Problem"


def test_lvbench_carries_its_options_inside_the_question(tmp_path):
    row = {
        "key": "Cm73ma6Ibcs",
        "type": "cartoon",
        "video_info": {"fps": 24.0, "duration_minutes": 61.5, "resolution": "1280x720"},
        "qa": [
            {
                "uid": "7",
                "question": "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
                "answer": "D",
                "question_type": ["key information retrieval", "reasoning"],
                "time_reference": "00:15-00:19",
            }
        ],
    }
    (tmp_path / "video_info.meta.jsonl").write_text(json.dumps(row) + "\n")
    [question] = load_benchmark("lvbench", tmp_path / "video_info.meta.jsonl").questions
    assert (question.question, question.answer) == ("What year appears?", "1633")
    assert question.options == ("1636", "1366", "1363", "1633")
    assert (question.path, question.duration) == ("Cm73ma6Ibcs.mp4", 3690.0)
    assert question.task == "key information retrieval, reasoning"


def test_longvideobench_has_any_number_of_candidates(tmp_path):
    common = {
        "video_id": "86C",
        "video_path": "86C.mp4",
        "question_category": "T2E",
        "duration": 190.16,
    }
    rows = [
        common
        | {
            "id": "86C_0",
            "question": "What happens?",
            "candidates": ["a", "b", "c", "d", "e"],
            "correct_choice": 4,
        },
        common
        | {"id": "86C_1", "question": "Who?", "candidates": ["x", "y", "z"], "correct_choice": 0},
        common
        | {"id": "86C_2", "question": "Why?", "candidates": ["x", "y"], "correct_choice": None},
    ]
    (tmp_path / "lvb_val.json").write_text(json.dumps(rows))
    loaded = load_benchmark("longvideobench", tmp_path / "lvb_val.json")
    assert [(q.answer, len(q.options)) for q in loaded.questions] == [("e", 5), ("x", 3)]
    assert loaded.left_out == {"no answer is published": 1}
    spread = {
        **rows[1],
        **{f"option{i}": option for i, option in enumerate(["x", "y", "z", "N/A", "N/A"])},
    }
    del spread["candidates"]
    pq.write_table(pa.Table.from_pylist([spread]), tmp_path / "validation.parquet")
    assert (
        load_benchmark("longvideobench", tmp_path / "validation.parquet").questions
        == loaded.questions[1:]
    )


def test_mlvu_videos_are_told_apart_by_their_tasks_folder(tmp_path):
    row = {"video": "movie101_66.mp4", "duration": 480.0, "question": "What colour is the car?"}
    choice = row | {"candidates": ["Yellow", "Red"], "answer": "Yellow", "question_type": "plotQA"}
    (tmp_path / "1_plotQA.json").write_text(json.dumps([choice]))
    (tmp_path / "2_needle.json").write_text(json.dumps([choice | {"question_type": "findNeedle"}]))
    (tmp_path / "9_summary.json").write_text(
        json.dumps([row | {"answer": "A tale.", "question_type": "summary"}])
    )
    loaded = load_benchmark("mlvu", tmp_path)
    assert [q.path for q in loaded.questions] == [
        "1_plotQA/movie101_66.mp4",
        "2_needle/movie101_66.mp4",
    ]
    assert sum(loaded.left_out.values()) == 1


def test_tempcompass_in_its_three_forms_that_need_no_judge(tmp_path):
    forms = {
        "multi-choice": {
            "question": "What is he doing?\nA. running\nB. sleeping",
            "answer": "B. sleeping",
        },
        "yes_no": {"question": "Does he run?", "answer": "no"},
        "caption_matching": {
            "question": "Which caption matches the video better?\n"
            "Caption A: He runs.\nCaption B: He sleeps.",
            "answer": "Caption B: He sleeps.",
        },
        "captioning": {
            "question": "Describe.",
            "mc_question": "?",
            "mc_answer": "A. x",
            "answer": "A. x",
        },
    }
    for form, row in forms.items():
        (tmp_path / f"{form}.json").write_text(json.dumps({"101": {"action": [row]}}))
    loaded = load_benchmark("tempcompass", tmp_path)
    found = {question.id.split("/")[0]: question for question in loaded.questions}
    assert found["multi-choice"].answer == "sleeping"
    assert found["caption_matching"].options == ("He runs.", "He sleeps.")
    assert found["yes_no"].candidates == ("yes", "no")
    assert found["yes_no"].prompt == "Does he run?\nPlease answer yes or no:"
    assert loaded.left_out == {"an open description, which needs a judge": 1}


def test_a_row_that_cannot_be_used_is_counted_and_costs_no_other(tmp_path):
    good = {
        "video": "a.mp4",
        "question": "Which?",
        "candidates": ["x", "y"],
        "answer": "x",
        "question_type": "count",
    }
    rows = [good, good | {"answer": "z"}, good | {"candidates": ["x", "x"]}, good]
    (tmp_path / "4_count.json").write_text(json.dumps(rows))
    loaded = load_benchmark("mlvu", tmp_path / "4_count.json")
    assert len(loaded.questions) == 2
    assert sum(loaded.left_out.values()) == 2


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", '[{"video": "a"}]', "not json"])
def test_another_file_is_a_clear_error(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_text(content)
    for name in ("video-mme", "lvbench", "longvideobench", "mlvu", "tempcompass"):
        with pytest.raises(ValueError, match=r"x\.json"):
            load_benchmark(name, path)


def test_an_unknown_benchmark_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="longvideobench, lvbench, mlvu, tempcompass, video-mme"):
        load_benchmark("videomme", tmp_path)


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Q?\nA. x\nB. y", "Q?", ("x", "y")),
        ("Two\nlines?\n(A) x: 1\n(B) y", "Two\nlines?", ("x: 1", "y")),
        ("No options?", "No options?", ()),
        ("A. one\nmore?\nA) x\nB) y", "A. one\nmore?", ("x", "y")),
    ],
)
def test_options_are_cut_off_the_end_of_a_question(text, question, options):
    assert split_options(text) == (question, options)


def test_a_converted_benchmark_can_be_kept_as_a_questions_file(tmp_path):
    row = {
        "video": "a.mp4",
        "question": "Which?",
        "candidates": ["x", "y"],
        "answer": "x",
        "question_type": "count",
    }
    (tmp_path / "4_count.json").write_text(json.dumps([row]))
    questions = load_benchmark("mlvu", tmp_path / "4_count.json").questions
    write_questions(tmp_path / "q.jsonl", questions)
    assert read_questions(tmp_path / "q.jsonl") == questions


def test_the_command_writes_the_questions_whose_videos_are_there(tmp_path, capsys):
    row = {
        "video": "a.mp4",
        "question": "Which?",
        "candidates": ["x", "y"],
        "answer": "x",
        "question_type": "count",
    }
    (tmp_path / "4_count.json").write_text(
        json.dumps([row, row | {"video": "b.mp4"}, row | {"answer": "z"}])
    )
    videos = tmp_path / "videos"
    (videos / "4_count").mkdir(parents=True)
    (videos / "4_count" / "a.mp4").write_bytes(b"")
    assert main(["mlvu", str(tmp_path / "4_count.json"), "--videos", str(videos)]) == 0
    [question] = read_questions(videos / "mlvu.jsonl")
    assert (question.path, question.answer) == ("4_count/a.mp4", "x")
    said = capsys.readouterr().out
    assert "1 questions; 1 about videos that are not there" in said
    assert "left out: 1" in said


def test_the_command_says_what_it_could_not_use(tmp_path, capsys):
    row = {
        "video": "a.mp4",
        "question": "Which?",
        "candidates": ["x", "y"],
        "answer": "x",
        "question_type": "count",
    }
    (tmp_path / "4_count.json").write_text(json.dumps([row]))
    assert main(["mlvu", str(tmp_path / "4_count.json"), "--videos", str(tmp_path)]) == 2
    assert "4_count/a.mp4" in capsys.readouterr().out
    assert main(["lvbench", str(tmp_path / "gone.jsonl"), "--videos", str(tmp_path)]) == 2
    assert "gone.jsonl" in capsys.readouterr().out


def test_subtitles_are_found_by_the_videos_name(tmp_path, capsys):
    asked = {
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "How many birds are there?",
        "options": ["A. One.", "B. Two."],
        "answer": "B",
    }
    rows = [{"duration": "short", "videoID": name} | asked for name in ("told", "silent")]
    rows[1]["question_id"] = "002-1"
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    for folder in ("videos", "subtitle"):
        (tmp_path / folder).mkdir()
    for name in ("told", "silent"):
        (tmp_path / "videos" / f"{name}.mp4").touch()
    (tmp_path / "subtitle" / "told.srt").write_text("00:00:01,000 --> 00:00:02,000\nTwo\n")
    videos = tmp_path / "videos"
    arguments = ["video-mme", str(tmp_path / "questions.json"), "--videos", str(videos)]
    assert main([*arguments, "--subtitles", str(tmp_path / "subtitle")]) == 0
    assert "1 of them with subtitles" in capsys.readouterr().out
    told, silent = read_questions(videos / "video-mme.jsonl")
    assert (videos / told.subtitles).resolve() == tmp_path / "subtitle" / "told.srt"
    assert silent.subtitles == ""
