"""Balanced questions, and gates that pass where there is a difference and nowhere else."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from benchmarks.longvideo_corpus import Held
from benchmarks.longvideo_gates import (
    BRIEF,
    against,
    balanced,
    by_label,
    difference,
    gates,
    read_results,
)
from benchmarks.longvideo_world import about_long_film, invent_long_film
from pipeline.demo.drawing import COLOURS, FIGURES
from pipeline.instance_folder import REPOSITORY

RESULTS = REPOSITORY / "docs" / "results"
HELD = [
    Held(film, about_long_film(film))
    for film in (invent_long_film(f"gates/{number}", 180 + 7 * number) for number in range(150))
]


def test_every_answer_of_a_kind_is_right_equally_often():
    chosen = balanced(HELD)
    counts: dict[str, Counter[str]] = {}
    for one in HELD:
        for number, asked in enumerate(one.questions):
            if f"{one.film.name}/{number}" in chosen:
                counts.setdefault(asked.task, Counter())[asked.answer] += 1
    assert len(counts) == 22
    assert all(len(set(answers.values())) == 1 for answers in counts.values())
    assert balanced(HELD) == chosen


def test_no_question_names_a_choice_that_it_excludes():
    """A colour that the text names is never the answer, so it is no choice; but in "which of two"
    both are.
    """
    for one in HELD:
        for asked in one.questions:
            if asked.task == "time: order":
                continue
            named = {word.strip("?,.") for word in asked.text.split()} & set(COLOURS)
            assert not named & set(asked.choices), asked


def test_a_figure_is_in_the_film_as_often_as_not():
    answers = Counter(
        asked.answer for one in HELD for asked in one.questions if asked.task == "object: existence"
    )
    # Films that show every figure are asked about one that is there; half, give or take.
    both = sum(len({scene.figure for scene in one.film.scenes}) < len(FIGURES) for one in HELD)
    assert both > 30
    assert abs(answers["no"] - both / 2) < 3 * (both / 4) ** 0.5


def question(film, number, *, stage3, blind, few, brief=True):
    return {
        "id": f"{film}/{number}",
        "film": film,
        "labels": ["all", "length: 1 to 10 min", *([BRIEF] if brief else [])],
        "chance": 0.25,
        "right": {"stage3": stage3, "blind": blind, "64 frames": few},
    }


def drawn(stage3, few, films=60, seed=0):
    dice = random.Random(seed)
    return [
        question(
            f"film {film}",
            number,
            stage3=dice.random() < stage3,
            blind=dice.random() < 0.25,
            few=dice.random() < few,
        )
        for film in range(films)
        for number in range(4)
    ]


def test_the_error_of_one_question_a_film_is_that_of_a_mean():
    values = [1, 0, 1, 1, 0, 1]
    asked = [
        question(str(n), 0, stage3=bool(v), blind=False, few=False) for n, v in enumerate(values)
    ]
    found = difference(asked, against("stage3", "blind"))
    # Mean 2/3; variance 4/15; error sqrt(4 / 15 / 6).
    assert (found.asked, found.mean) == (6, pytest.approx(2 / 3))
    assert found.error == pytest.approx((4 / 15 / 6) ** 0.5)
    # The same answer to four questions of a film is no more than one.
    fourfold = [{**one, "id": f"{one['id']}/{n}"} for one in asked for n in range(4)]
    assert difference(fourfold, against("stage3", "blind")).error == pytest.approx(found.error)


def test_gates_pass_where_watching_helps_and_fail_where_it_does_not():
    assert [good for _, good, _ in gates(drawn(0.7, 0.3))] == [True, True, True]
    assert [good for _, good, _ in gates(drawn(0.25, 0.25))] == [True, False, False]
    assert [good for _, good, _ in gates(drawn(0.7, 0.7))] == [True, True, False]
    cheating = [{**one, "right": {**one["right"], "blind": True}} for one in drawn(0.7, 0.3)]
    assert [good for _, good, _ in gates(cheating)] == [False, False, True]
    rows = by_label(drawn(0.7, 0.3))
    assert any(line.startswith("| length: 1 to 10 min | 240 |") for line in rows)


def test_the_recorded_runs_are_what_the_page_says_of_them():
    """Three seeds each, and which gates they pass."""
    for name, passed in (("signs", [True, True, True]), ("first", [True, True, False])):
        questions = read_results([RESULTS / f"longvideo-{name}-{seed}.json" for seed in (1, 2, 3)])
        assert [good for _, good, _ in gates(questions)] == passed
        page = (RESULTS.parent / "results.md").read_text()
        for row in by_label(questions)[2:]:
            assert row.replace("**", "") in page.replace("**", "").replace(",", "")


def test_a_seed_counts_once(tmp_path):
    paths = []
    for number, seed in enumerate((1, 2, 2)):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({"seed": seed, "questions": drawn(0.5, 0.5, 2)}))
    assert len(read_results(paths[:2])) == 16
    with pytest.raises(ValueError, match=r"of the seeds \[1, 2, 2\]"):
        read_results(paths)
