"""Which answers are believed: those to the same question about the same bytes, by the same
checkpoint. What could not be asked is no answer.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from assets.evaluation import score as score_module
from assets.evaluation.score import score_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path, media):
    """A folder of the test's own with the media."""
    return shutil.copytree(media, tmp_path / "own")


@pytest.fixture
def evaluate(export, tmp_path, monkeypatch):
    """Scores the checkpoint into one file; the ids that were asked stand in `asked`."""
    real = score_module.ask_together

    def spy(session, group, media, **options):
        evaluate.asked += [question.id for question in group]
        return real(session, group, media, **options)

    def evaluate(questions, media):
        evaluate.asked = []
        file = tmp_path / "answers.parquet"
        return score_checkpoint(
            export, questions, media, file, lambda _: None, write=False, device="cpu"
        )

    monkeypatch.setattr(score_module, "ask_together", spy)
    return evaluate


def test_what_could_not_be_asked_is_asked_again_where_its_medium_is(
    evaluate, questions, own, tmp_path
):
    before = evaluate([questions[0], questions[3]], tmp_path)
    assert "short.mp4: no such file" in before.answers[0].problem
    now = evaluate([questions[0], questions[3]], own)
    assert evaluate.asked == ["q0"]
    assert (now.answers[0].problem, now.answers[1]) == ("", before.answers[1])
    assert now.version != before.version
    assert evaluate([questions[0], questions[3]], own).version == now.version
    assert evaluate.asked == []


def test_a_problem_in_a_journal_is_no_answer(evaluate, questions, own, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(score_module, "write_answers", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate([questions[0], questions[3]], tmp_path)
    assert (tmp_path / "answers.journal.jsonl").exists()
    report = evaluate([questions[0], questions[3]], own)
    assert evaluate.asked == ["q0"]
    assert report.answers[0].problem == ""


def test_a_video_that_was_replaced_under_its_name_is_asked_about_again(evaluate, questions, own):
    asked = [questions[0], questions[1], questions[2]]
    before = evaluate(asked, own)
    shutil.copy(own / "long.mp4", own / "short.mp4")
    now = evaluate(asked, own)
    assert evaluate.asked == ["q0"]
    assert now.answers[0].scores != before.answers[0].scores
    assert now.answers[1:] == before.answers[1:]
    assert now.version != before.version


def test_subtitles_that_changed_are_asked_with_again(evaluate, questions, own):
    told = replace(questions[0], subtitles="short.srt")
    cue = "00:00:01,000 --> 00:00:02,000\n"
    (own / "short.srt").write_text(f"{cue}It is red\n")
    evaluate([told], own)
    (own / "short.srt").write_text(f"{cue}It is not\n")
    assert "It is not" in evaluate([told], own).answers[0].prompt


def test_answers_to_other_questions_are_kept_where_one_changed(evaluate, questions, own):
    before = evaluate(questions[:4], own)
    changed = replace(questions[2], question="What is it?")
    now = evaluate([questions[4], changed, questions[0]], own)
    assert sorted(evaluate.asked) == ["q2", "q4"]
    assert [answer.id for answer in now.answers] == ["q4", "q2", "q0"]
    assert now.answers[2] == before.answers[0]


def test_a_medium_is_read_again_only_where_the_file_system_says_that_it_changed(
    evaluate, questions, own, monkeypatch
):
    from assets.evaluation import media as media_module

    read, real = [], media_module.describe_files

    def spy(storage, names, stamps):
        read.extend(name.rpartition("/")[2] for name in names)
        return real(storage, names, stamps)

    monkeypatch.setattr(media_module, "describe_files", spy)
    time.sleep(0.2)  # what was written just now is read again for safety
    evaluate(questions, own)
    assert sorted(read) == ["long.mp4", "picture.jpg", "short.mp4"]
    read.clear()
    (own / "long.mp4").touch()
    evaluate(questions, own)
    assert (read, evaluate.asked) == (["long.mp4"], [])
