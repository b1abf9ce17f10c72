"""Scores are those of the model's own full forward pass, survive interruption, and name what could
not be asked.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from assets.evaluation import score as score_module
from assets.evaluation.answers import Answer, answered
from assets.evaluation.questions import EvaluationQuestion
from assets.evaluation.report import (
    EvaluationReport,
    accuracy_table,
    duration_class,
    example_question,
)
from assets.evaluation.score import ask_together, question_prompt, score_checkpoint
from assets.inference.session import Session
from assets.records.intervals import wilson
from tests.model.media import tricky

pytestmark = pytest.mark.slow


def silent(_: str) -> None:
    pass


@pytest.fixture
def session(export):
    return Session(export, "cpu")


def full_forward_scores(
    session: Session, question: EvaluationQuestion, media: Path, texts: list[str]
) -> list[float]:
    """Each whole conversation through the model by itself, without any cache or memory made before:
    the second opinion.
    """
    scores = []
    model = session.model.model
    prompt = question_prompt(session, question, media)[0].inputs
    for text in texts:
        ids = torch.tensor([*session.ids(text), session.end])
        sample = replace(
            prompt,
            input_ids=torch.cat([prompt.input_ids, ids]),
            labels=torch.cat([prompt.labels, ids]),
        )
        with torch.inference_mode():
            prepared = model.prepare([sample], forgetting="uniform")
            logits = model.llm.lm_head(model.run_llm(prepared))
        before = logits[-len(ids) - 1 : -1].float()
        scores.append(float(F.log_softmax(before, -1).gather(1, ids[:, None]).sum()))
    return scores


def test_scores_from_the_shared_cache_equal_those_of_full_forward_passes(session, media, questions):
    asked = [questions[0], questions[2], questions[4]]  # prompts of different length in one batch
    for question, answer in zip(asked, ask_together(session, asked, media), strict=True):
        expected = full_forward_scores(session, question, media, list(question.candidates))
        assert answer.scores == pytest.approx(expected, abs=2e-4)


def test_letters_are_scored_where_options_are_shown(session, media, questions):
    [answer] = ask_together(session, [questions[1]], media)
    assert answer.scores == pytest.approx(
        full_forward_scores(session, questions[1], media, ["A", "B"]), abs=2e-4
    )


def test_what_is_generated_equals_the_generation_of_transformers(session, media, questions):
    prompts = [question_prompt(session, questions[n], media)[0] for n in (0, 3)]
    expected = session.model.generate(samples=prompts[0].inputs, max_new_tokens=12)[0].tolist()
    expected = expected[: expected.index(session.end)] if session.end in expected else expected
    cached = session.read(prompts)
    assert cached.generate(12)[0] == expected
    assert cached.generate(12)[0] == expected  # the cache is as it was


def test_the_prompt_that_the_model_read_is_on_record(session, media, questions):
    [answer] = ask_together(session, [questions[0]], media)
    assert answer.prompt.count("<image>") == 1
    assert (
        "The video lasts for 18.00 seconds, and 18 frames are uniformly sampled from it."
        in answer.prompt
    )
    assert answer.prompt.endswith(
        "What colour is the background?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_batch_of_questions_reads_their_prompts_once(session, media, questions, monkeypatch):
    real, passes = session.model.model.llm.model.forward, []

    def spy(*arguments, **named):
        passes.append(named["inputs_embeds"] is not None)
        return real(*arguments, **named)

    monkeypatch.setattr(session.model.model.llm.model, "forward", spy)
    for group in (questions, questions[:1]):
        passes.clear()
        ask_together(session, group, media)
        assert passes.count(True) == 1


def test_without_visuals_the_media_make_no_difference(session, media, questions):
    other = replace(questions[0], path="other.mp4")
    shutil.copy(media / "short.mp4", media / "other.mp4")
    from pipeline.demo.drawing import invent_film, write_film

    write_film(media / "other.mp4", invent_film("quite another", 18, 10, 2))
    for visuals in (False, True):
        first, second = (
            ask_together(session, [question], media, visuals=visuals)[0].scores
            for question in (questions[0], other)
        )
        assert (first != second) == visuals


def test_answers_are_complete_ordered_and_on_disk(export, media, questions, tmp_path):
    report = score_checkpoint(
        export, questions, media, tmp_path / "answers.parquet", silent, device="cpu"
    )
    assert [answer.id for answer in report.answers] == [question.id for question in questions]
    rows = pq.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [answer.prompt for answer in report.answers]
    assert not list(tmp_path.glob("*.journal.jsonl"))
    by_hand = sum(answer.correct for answer in report.answers) / 5
    assert report.accuracy == by_hand
    assert report.chance == pytest.approx((1 / 6 + 1 / 2 + 1 / 6 + 0 + 1 / 6) / 5)
    assert {name: len(part.answers) for name, part in report.by_task().items()} == {
        "colour": 3,
        "picture": 1,
        "sum": 1,
    }
    assert set(report.by_duration()) == {"under 1 min", "1 to 10 min", "no video"}


def test_a_video_whose_duration_the_benchmark_leaves_out_counts_in_its_class(
    export, media, questions, tmp_path
):
    nameless = [replace(question, duration=None) for question in questions]
    report = score_checkpoint(
        export, nameless, media, tmp_path / "answers.parquet", silent, device="cpu"
    )
    assert [answer.duration for answer in report.answers] == [18.0, 70.0, None, None, 18.0]
    assert {name: len(part.answers) for name, part in report.by_duration().items()} == {
        "under 1 min": 2, "1 to 10 min": 1, "no video": 2,
    }  # fmt: skip


def test_an_interrupted_run_asks_only_what_is_left_and_ends_the_same(
    export, media, questions, tmp_path, monkeypatch
):
    whole = score_checkpoint(
        export, questions, media, tmp_path / "whole.parquet", silent, batch=2, device="cpu"
    )
    real, batches = score_module.ask_together, []

    def interrupted(session, group, media, **options):
        if batches:
            raise KeyboardInterrupt
        batches.append(group)
        return real(session, group, media, **options)

    monkeypatch.setattr(score_module, "ask_together", interrupted)
    file = tmp_path / "parts.parquet"
    assert answered([file]) == [(0, 0)]
    with pytest.raises(KeyboardInterrupt):
        score_checkpoint(export, questions, media, file, silent, batch=2, device="cpu")
    assert not file.exists()
    with open(file.with_suffix(".journal.jsonl"), "ab") as journal:
        journal.write(b'{"id": "torn')  # what a kill in the middle of a write leaves
    assert answered([file]) == [(0, 2)]
    asked = []
    monkeypatch.setattr(
        score_module,
        "ask_together",
        lambda session, group, media, **options: (
            asked.extend(group) or real(session, group, media, **options)
        ),
    )
    resumed = score_checkpoint(export, questions, media, file, silent, batch=2, device="cpu")
    assert answered([file]) == [(file.stat().st_mtime_ns, 0)]
    assert {q.id for q in asked} == {q.id for q in questions} - {q.id for q in batches[0]}
    assert [(a.id, a.chosen) for a in resumed.answers] == [(a.id, a.chosen) for a in whole.answers]


def test_finished_answers_are_read_back_and_other_questions_are_not_mistaken_for_them(
    export, media, questions, tmp_path, monkeypatch
):
    file = tmp_path / "answers.parquet"
    first = score_checkpoint(export, questions, media, file, silent, device="cpu")
    stamp = file.stat().st_mtime_ns
    monkeypatch.setattr(score_module, "ask_together", lambda *_, **__: pytest.fail("asked again"))
    again = score_checkpoint(export, questions, media, file, silent, device="cpu")
    assert (again.answers, again.version, file.stat().st_mtime_ns) == (
        first.answers,
        first.version,
        stamp,
    )
    other = [replace(questions[0], question="What else?"), *questions[1:]]
    with pytest.raises(pytest.fail.Exception):
        score_checkpoint(export, other, media, file, silent, device="cpu")


def test_a_medium_that_cannot_be_read_is_named_and_stops_nothing(
    export, media, questions, tmp_path
):
    (media / "broken.mp4").write_bytes(b"<html>not a video</html>")
    bad = [
        replace(questions[0], id="gone", path="nowhere.mp4"),
        replace(questions[0], id="broken", path="broken.mp4"),
    ]
    report = score_checkpoint(
        export, [*bad, *questions], media, tmp_path / "a.parquet", silent, device="cpu"
    )
    assert [bool(answer.problem) for answer in report.answers] == [True, True] + [False] * 5
    assert "nowhere.mp4" in report.answers[0].problem
    assert len(report.asked) == 5


@pytest.mark.parametrize("place", [0, 3], ids=["of a video", "of text alone"])
def test_a_question_that_is_too_long_for_the_model_stops_no_other(session, media, questions, place):
    long = replace(questions[place], id="long", question="so " * 12_000)
    asked = [questions[0], long, questions[3]]
    first, refused, last = ask_together(session, asked, media, write=False)
    assert re.search(r"tokens .* are more than the 4096 of tiny; drop or split", refused.problem)
    assert refused.problem.startswith(long.path or "sample 'long'")
    assert [first, last] == ask_together(session, [asked[0], asked[2]], media, write=False)
    assert ask_together(session, [long], media, write=False) == [refused]


def test_a_folder_that_is_no_checkpoint_is_a_clear_error(tmp_path, questions):
    with pytest.raises(ValueError, match="not a checkpoint"):
        score_checkpoint(tmp_path, questions, tmp_path, tmp_path / "a.parquet", silent)


def test_the_table_sets_checkpoints_side_by_side():
    def report(name: str, right: list[bool], visuals: bool = True) -> EvaluationReport:
        texts = {"prompt": "p", "expected": "x", "chosen": "x", "generated": "x"}
        rated = {"form": "candidates", "choices": ("x", "y"), "scores": (0.0, -1.0)}
        answers = [
            Answer(
                id=str(i),
                task=f"task{i % 2}",
                duration=30.0 * i,
                correct=ok,
                written_correct=ok,
                **texts,
                **rated,
            )
            for i, ok in enumerate(right)
        ]
        return EvaluationReport(name, visuals, answers, "")

    seen = [
        report("base_model", [True, False, False, False]),
        report("stage3", [True, True, True, False]),
    ]
    rows = accuracy_table(seen, report("stage3", [True, False, False, True], False))
    assert rows[0] == {
        "questions": "all", "asked": 4, "chance": 0.5, "base_model": 0.25, "stage3": 0.75,
        "nothing shown": 0.5, "written": 0.75, "gain": 0.5, "interval": "0.30 to 0.95",
    }  # fmt: skip
    by_name = {row["questions"]: row["stage3"] for row in rows}
    assert (by_name["task0"], by_name["task1"], by_name["under 1 min"]) == (1.0, 0.5, 1.0)
    assert {"what": "right answer", "text": "x"} in example_question(seen[1].answers)


def test_durations_fall_into_classes():
    assert [duration_class(s) for s in (None, 5, 60, 1799, 1800, 4000)] == [
        "no video", "under 1 min", "1 to 10 min", "10 to 30 min", "over 30 min", "over 30 min",
    ]  # fmt: skip


def test_the_journal_holds_json_lines(export, media, questions, tmp_path, monkeypatch):
    lines = []
    real = score_module.ask_together

    def spy(session, group, media, **options):
        lines.extend((tmp_path / "a.journal.jsonl").read_text().splitlines())
        return real(session, group, media, **options)

    monkeypatch.setattr(score_module, "ask_together", spy)
    score_checkpoint(
        export, questions, media, tmp_path / "a.parquet", silent, batch=1, device="cpu"
    )
    assert all(json.loads(line) for line in lines)


def test_rating_alone_gives_the_same_choices_and_leaves_open_questions_to_writing(
    export, media, questions, tmp_path
):
    both = score_checkpoint(
        export, questions, media, tmp_path / "both.parquet", silent, device="cpu"
    )
    rated = score_checkpoint(
        export, questions, media, tmp_path / "rated.parquet", silent, write=False, device="cpu"
    )
    assert [answer.chosen for answer in rated.answers] == [answer.chosen for answer in both.answers]
    assert [answer.generated == "" for answer in rated.answers if answer.form != "open"] == [
        True
    ] * 4


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_the_interval_of_a_score_is_wilsons(right, asked, low, high):
    """The last line is example 1 of Newcombe (1998), method 3."""
    assert wilson(right, asked) == pytest.approx((low, high), abs=1e-4)


def test_answers_about_damaged_videos_say_so_and_those_too_damaged_are_not_asked(session, tmp_path):
    names = ["flipped_bits.mp4", "zeroed_stretch.mp4", "h264.mp4"]
    questions = [
        EvaluationQuestion(
            tricky.by_name(name, tmp_path).name, "video", name, "What?", "a", ("a", "b")
        )
        for name in names
    ]
    hurt, useless, sound = ask_together(session, questions, tmp_path, write=False)
    assert "the decoder mended" in hurt.damage
    assert hurt.problem == ""
    assert "too_corrupt" in useless.problem
    assert (sound.damage, sound.problem) == ("", "")


def test_subtitles_stand_above_the_question_and_are_part_of_what_is_asked(
    session, media, questions, tmp_path
):
    (media / "short.srt").write_text("00:00:01,000 --> 00:00:02,000\nThe square is white\n")
    told = replace(questions[4], id="q5", subtitles="short.srt")
    alone, with_them = ask_together(session, [questions[4], told], media)
    assert alone.prompt in with_them.prompt.replace(
        "This video's subtitles are listed below:\nThe square is white\n", ""
    )
    assert with_them.scores != alone.scores
    [missing] = ask_together(session, [replace(told, subtitles="gone.srt")], media)
    assert "gone.srt: no such file" in missing.problem
