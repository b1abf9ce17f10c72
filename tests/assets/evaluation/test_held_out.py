"""The held-out split: decided by a video's name, never trained on, asked with a choice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from assets.annotations.build import build_catalogue
from assets.annotations.collect import collect_annotations
from assets.conversations.grouping import group_part
from assets.deployment.parts import is_held_out
from assets.deployment.settings import load_settings
from assets.evaluation.held_out import split_options, with_choices, write_held_out
from assets.evaluation.questions import EvaluationQuestion, read_questions
from assets.videos.acquire import acquire_part
from tests.servers.clips import clip
from training.formats.storage import Storage

VIDEOS = [f"own/{number}" for number in range(2000)]


def test_a_share_of_the_videos_is_held_out_and_a_larger_one_holds_a_smaller_one():
    small = {video for video in VIDEOS if is_held_out(video, 0.15)}
    large = {video for video in VIDEOS if is_held_out(video, 0.3)}
    assert 0.12 < len(small) / len(VIDEOS) < 0.18
    assert small < large
    assert not any(is_held_out(video, 0.0) for video in VIDEOS)


def settings_of(folder: Path, **evaluation: object):
    chosen = {
        "root": "data",
        "variants": ["tiny"],
        "annotations": {"paths": ["rows.jsonl"]},
        "sources": {"own": {"kind": "drop", "folder": "drop"}},
        "training": {"long_videos_only": True},
        "evaluation": evaluation,
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(chosen))
    return load_settings(folder / "deployment.yaml")


def test_ones_own_videos_are_split_by_themselves_unless_questions_are_named(tmp_path):
    assert settings_of(tmp_path).held_out_share == 0.15
    assert settings_of(tmp_path, questions="q.jsonl").held_out_share == 0
    with pytest.raises(ValueError, match="give either questions"):
        settings_of(tmp_path, questions="q.jsonl", held_out_share=0.2)


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("Which?\nA. red\nB. blue", "B. blue", ("Which?", ("red", "blue"), "blue")),
        ("Which?\n(A) red\n(B) blue", "B", ("Which?", ("red", "blue"), "blue")),
        ("Which?\nA. red\nB. blue", "green", ("Which?\nA. red\nB. blue", (), "green")),
        ("Which?\nA. red\nC. blue", "A", ("Which?\nA. red\nC. blue", (), "A")),
        ("Which?\nA. red\nB. blue", "B. red", ("Which?\nA. red\nB. blue", (), "B. red")),
        ("Why is it red?", "A dog did it.", ("Why is it red?", (), "A dog did it.")),
    ],
)
def test_options_in_a_rows_text_are_found_where_the_answer_is_one_of_them(text, answer, found):
    assert split_options(text, answer) == found


def question(name: str, answer: str, task: str = "colour") -> EvaluationQuestion:
    return EvaluationQuestion(name, "video", "v.mp4", "Which colour?", answer, task=task)


def test_other_answers_of_the_same_kind_stand_for_choice_and_each_only_once():
    answers = ["red", "Red", "blue", "green", "white", "black"]
    asked = [question(str(n), answer) for n, answer in enumerate(answers)]
    asked.append(question("alone", "because", task="why"))
    chosen = with_choices(asked)
    for found in chosen[:-1]:
        assert len(found.candidates) == 4
        assert found.answer in found.candidates
        assert len({text.casefold() for text in found.candidates}) == 4
    assert chosen[-1].form == "open"  # nobody else was asked why
    assert with_choices(asked) == chosen


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve short videos with three rows each, fetched and grouped, some of them held out."""
    folder = tmp_path_factory.mktemp("world")
    settings = settings_of(folder, held_out_share=0.4)
    (folder / "drop").mkdir()
    rows = []
    for number in range(12):
        (folder / "drop" / f"v{number}.mp4").write_bytes(clip())
        rows += [
            {"video": f"v{number}.mp4", "question": f"What is {place}?", "answer": f"{number}"}
            for place in range(3)
        ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage, log = Storage(settings.root), [].append
    collect_annotations(storage, settings, log)
    build_catalogue(storage, settings, log)
    acquire_part(storage, settings, "own", "part0", log)
    return settings, storage, group_part(storage, settings, 0, log)


@pytest.mark.slow
def test_no_row_about_a_held_out_video_is_in_a_sample_and_all_of_them_are_asked(world):
    settings, storage, report = world
    held = {f"own/v{n}" for n in range(12) if is_held_out(f"own/v{n}", 0.4)}
    assert 0 < len(held) < 12
    trained = pq.read_table(storage.local("VideoMarathon/conversations/part0.parquet"))
    assert set(trained["video"].to_pylist()) == {f"own/v{n}" for n in range(12)} - held
    assert report.counts["dropped: held out"] == 3 * len(held)

    made = write_held_out(storage, settings, ["part0"])
    questions = read_questions(storage.local("VideoMarathon/held_out.jsonl"))
    assert made.counts["questions"] == len(questions) == 3 * len(held)
    assert {question.id.partition(":")[0] for question in questions} == held
    assert all(storage.exists(question.path) for question in questions)
    assert write_held_out(storage, settings, ["part0"]) == made


def test_a_split_that_holds_out_no_video_says_what_to_set(world):
    settings, storage, _ = world
    none = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"held_out_share": 1e-9})}
    )
    with pytest.raises(ValueError, match=r"evaluation\.held_out_share; raise it"):
        write_held_out(storage, none, ["part0"])
