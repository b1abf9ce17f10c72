"""The long-video set asks 22 kinds of questions, and what it calls their answers can be seen in its
pictures.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.longvideo import few_frames
from benchmarks.longvideo_corpus import Held, Sizes, write_corpus
from benchmarks.longvideo_table import FEW, answered, labels_of, markdown, rows_of
from benchmarks.longvideo_world import (
    FLASH_S,
    GREY,
    PATTERNS,
    SIGN_S,
    about_long_film,
    draw,
    invent_long_film,
    tasks,
    with_signs,
)
from pipeline.demo.drawing import COLOURS, FILM_WIDTH
from training.formats.feature_file import FeatureFile, write_features

FILMS = [invent_long_film(f"test/{number}", 180 + 31 * number) for number in range(16)]


def colour_of(pixel: tuple[int, ...]) -> str:
    return next(name for name, value in COLOURS.items() if value == pixel)


def seen(film, second: int) -> dict[str, str]:
    """What a picture shows, found in its pixels: the background in a corner, the figure in its
    column, or a flash.
    """
    picture = np.asarray(draw(film, second))
    background = colour_of(tuple(picture[0, 0]))
    for side, x in (("left", 0.27), ("right", 0.73)):
        column = picture[:, round(FILM_WIDTH * x)]
        if (other := (column != picture[0, 0]).any(-1)).any():
            return {
                "background": background,
                "side": side,
                "colour": colour_of(tuple(column[other][0])),
            }
    return {"flash": background}


def one(film, task):
    return next((question for question in about_long_film(film) if question.task == task), None)


def test_there_are_22_kinds_of_questions_in_six_groups():
    assert len(tasks()) == 22
    assert {task.partition(":")[0] for task in tasks()} == {
        "scene",
        "object",
        "space",
        "action",
        "event",
        "time",
    }


def test_every_answer_is_one_of_its_distinct_choices():
    for film in FILMS:
        for question in about_long_film(film):
            assert question.answer in question.choices
            assert len(set(question.choices)) == len(question.choices) > 1


def test_what_a_question_about_a_moment_answers_is_in_the_picture_of_that_moment():
    for film in FILMS:
        for task, what in (("scene: at a second", "background"), ("space: at a second", "side")):
            question = one(film, task)
            assert seen(film, int(question.evidence[0]))[what] == question.answer


def test_what_a_question_about_a_stretch_answers_is_in_all_of_its_pictures_but_flashes():
    for film in FILMS:
        for task, what in (
            ("scene: first", "background"),
            ("scene: last", "background"),
            ("object: colour", "colour"),
        ):
            question = one(film, task)
            start, end = map(int, question.evidence)
            shown = [seen(film, second) for second in range(start, end, 7)]
            assert {picture[what] for picture in shown if "flash" not in picture} == {
                question.answer
            }


def test_a_flash_fills_the_picture_for_its_seconds_and_for_no_other():
    asked = 0
    for film in FILMS:
        flashing = [second for second in range(film.duration) if "flash" in seen(film, second)]
        assert len(flashing) == FLASH_S * len(film.flashes)
        if question := one(film, "event: colour"):
            asked += 1
            start, end = map(int, question.evidence)
            assert flashing == list(range(start, end))
            assert {seen(film, second)["flash"] for second in flashing} == {question.answer}
    assert asked >= 3


def sign_seen(film, second: int) -> tuple[str, str] | None:
    """Pattern and colour of a sign, found in a picture's pixels; None where there is none."""
    picture = np.asarray(draw(film, second))
    grey_HW = (picture == GREY).all(-1)
    if not grey_HW.any():
        return None
    (colour,) = {colour_of(tuple(pixel)) for pixel in np.unique(picture[~grey_HW], axis=0)}
    across, down = (grey_HW != grey_HW[0]).any(), (grey_HW != grey_HW[:, :1]).any()
    pattern = {(False, True): "stripes", (True, False): "bars", (True, True): "checks"}
    return pattern[bool(across), bool(down)], colour


def test_signs_stand_in_the_pictures_of_their_seconds_and_of_no_other():
    answers = set()
    for film in map(with_signs, FILMS):
        shown = [sign_seen(film, second) for second in range(film.duration)]
        questions = about_long_film(film)
        assert [question.task for question in questions] == [f"sign: {name}" for name in PATTERNS]
        assert len([one for one in shown if one]) == len(PATTERNS) * SIGN_S
        for question, pattern in zip(questions, PATTERNS, strict=True):
            assert pattern in question.text
            assert question.evidence is not None
            start, end = map(int, question.evidence)
            assert shown[start:end] == [(pattern, question.answer)] * SIGN_S
            answers.add(question.answer)
    assert answers == set(COLOURS)


def test_a_piece_of_a_sign_as_large_as_a_patch_tells_pattern_and_colour():
    """A patch of the tiny encoder sees 20 x 15 pixels."""
    film = with_signs(FILMS[0])
    for sign in film.signs:
        picture = np.asarray(draw(film, sign.second))
        pieces = [
            picture[y : y + 15, x : x + 20] for y in range(0, 120, 15) for x in range(0, 160, 20)
        ]
        for piece in pieces:
            grey_HW = (piece == GREY).all(-1)
            assert 0.3 < grey_HW.mean() < 0.7
            assert {colour_of(tuple(pixel)) for pixel in piece[~grey_HW]} == {sign.colour}
            assert (grey_HW != grey_HW[0]).any() == (sign.pattern != "stripes")
            assert (grey_HW != grey_HW[:, :1]).any() == (sign.pattern != "bars")


def test_counts_and_orders_are_those_of_the_pictures():
    for film in FILMS:
        shown = [seen(film, second).get("background") for second in range(film.duration)]
        order = list(dict.fromkeys(background for background in shown if background))
        number = {"three": 3, "four": 4, "five": 5}[one(film, "scene: count").answer]
        assert number == len(order)
        question = one(film, "time: order")
        assert question.answer == min(question.choices, key=order.index)


def test_evidence_is_sorted_by_where_it_is_and_by_who_could_see_it():
    for film in FILMS[:10]:
        held = Held(film, about_long_film(film))
        kept = set(
            np.linspace(0, film.duration - 1, min(512, film.duration // 4)).astype(int).tolist()
        )
        few = set(np.linspace(0, film.duration - 1, FEW).astype(int).tolist())
        for number, question in enumerate(held.questions):
            labels = labels_of(held, number)
            assert f"task: {question.task}" in labels
            if question.evidence is None:
                assert "evidence: the whole film" in labels
            elif question.evidence[1] - question.evidence[0] <= 10:
                seconds = set(range(*map(int, question.evidence)))
                assert ("brief evidence: not in the frames that forgetting keeps" in labels) == (
                    not seconds & kept
                )
                assert (f"brief evidence: not in the {FEW} frames" in labels) == (not seconds & few)


def test_rows_add_up_to_the_shares_of_right_answers():
    held = [Held(film, about_long_film(film)) for film in FILMS[:3]]
    names = [f"{one.film.name}/{number}" for one in held for number in range(len(one.questions))]
    right = {
        "some": {name: index % 2 == 0 for index, name in enumerate(names)},
        "none": dict.fromkeys(names, False),
    }
    rows = rows_of(answered(held, right))
    assert rows[0]["asked"] == len(names)
    assert rows[0]["some"] == pytest.approx(0.5, abs=0.02)
    for kind in ("length", "group", "task"):
        assert sum(row["asked"] for row in rows if row["questions"].startswith(f"{kind}:")) == len(
            names
        )
    assert all(row["none"] == 0 for row in rows)
    assert len(markdown(rows).splitlines()) == len(rows) + 2


def test_few_frames_are_spread_over_the_whole_film_and_keep_its_duration(tmp_path):
    features = torch.arange(300.0).view(300, 1, 1).expand(300, 16, 64)
    write_features(
        tmp_path / "a.safetensors", features, np.arange(300, dtype=np.float32), {"duration": "300"}
    )
    few_frames(tmp_path / "a.safetensors", tmp_path / "few" / "a.safetensors")
    few = FeatureFile(tmp_path / "few" / "a.safetensors")
    assert (few.frames, few.duration) == (FEW, 300.0)
    assert (few.pts[0], few.pts[-1]) == (0.0, 299.0)
    assert (np.diff(few.pts) > 0).all()


def test_a_corpus_of_signs_shows_them_in_films_clips_and_every_second_still(tmp_path):
    sizes = Sizes(((1, 180, 185),), ((1, 180, 185),), pictures=8, clips=2, texts=2, signs=True)
    (held,) = write_corpus(tmp_path, sizes, lambda _: None)
    assert len(held.film.signs) == len(held.questions) == len(PATTERNS)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["question_type"] for row in rows] == [f"sign/{name}/oe" for name in PATTERNS]
    collections = tmp_path / "root"
    clips = json.loads((collections / "LLaVA-Video-178K/annotations/clips.json").read_text())
    for clip in clips:
        asked = [turn["value"] for turn in clip["conversations"][::2]]
        assert len(asked) == 4
        assert all(name in text for name, text in zip(PATTERNS, asked, strict=False))
    stills = json.loads((collections / "LLaVA-OneVision/annotations/pictures.json").read_text())
    assert [len(still["conversations"]) for still in stills] == [2, 6] * 4


def test_no_held_out_film_is_among_those_of_training_and_another_size_is_refused(tmp_path):
    sizes = Sizes(train=((2, 180, 185),), held_out=((2, 180, 185),), pictures=2, clips=1, texts=2)
    held = write_corpus(tmp_path, sizes, lambda _: None)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {one.film.name for one in held}.isdisjoint(
        row["video"].removesuffix(".mp4") for row in rows
    )
    assert len(list((tmp_path / "drop").glob("*.mp4"))) == 2
    assert [one.film for one in write_corpus(tmp_path, sizes, lambda _: None)] == [
        one.film for one in held
    ]
    with pytest.raises(ValueError, match="corpus of other sizes"):
        write_corpus(tmp_path, Sizes(sizes.train, sizes.held_out, 3, 1, 2), lambda _: None)
