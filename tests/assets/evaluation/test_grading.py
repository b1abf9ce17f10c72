"""Answers are read off whatever a model writes, and nothing is read into it."""

from __future__ import annotations

import time

import pytest

from assets.evaluation.grading import chosen_option, same_answer

OPTIONS = ("a red square", "blue", "the dog", "light blue")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (C). ", "C"),
        ("D)", "D"),
        ("**B**", "B"),
        ("B. blue", "B"),
        ("B: blue", "B"),
        ("(C) the dog", "C"),
        ("C the dog", "C"),
        ("A. a red square", "A"),
        ("A a red square", "A"),
        ("B\nBecause the sky is blue.", "B"),
        ("The answer is C.", "C"),
        ("Answer: (B)", "B"),
        ("The correct option is **D**", "D"),
        ("the final answer is: d", "D"),
        ("I would choose option B, because A is too early.", "B"),
        ("At first I thought the answer is A. But the answer is C", "C"),
        ("So we get \\boxed{B}", "B"),
        ("It shows (B), as the frames tell", "B"),
        ("It is the dog.", "C"),
        ("The colour is light blue", "D"),
        ("It was blue", "B"),
        ("Ｂ", "B"),
        ("The answer is not A; the answer is B", "B"),
        ("It is not blue, it is the dog", "C"),
        ('{"answer": "B"}', "B"),
        ("<answer>C</answer>", "C"),
        ("The answer:\n\nD", "D"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("Answer: B (not A)", "B"),
        ("<think>The answer is A? No.</think>B", "B"),
        ("<think>blue, or the dog</think> The answer is (D).", "D"),
        ("A. a red square\nB. blue\nC. the dog\nD. light blue\nAnswer: C", "C"),
        ("B. blue, for C. the dog is not there", "B"),
        ("\u202eB\u200b", "B"),
        ("B\n\nQuestion: And now?\nAnswer: C", "B"),
    ],
)
def test_a_choice_is_recognised(text, letter):
    assert chosen_option(text, OPTIONS) == "ABCD".index(letter)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "E",
        "Z. something",
        "A cat walks by",
        "I think so",
        "A and B",
        "A, C",
        "(A) or (B)",
        "blue and the dog",
        "The answer is A or B",
        "The answer is not B",
        "the answer is a mystery",
        "It is neither blue nor red",
        "None of them",
        "Because of A's colour",
        "bluebird",
        "As an AI, I cannot see the video.",
        "B or C",
        "light blue or blue",
        "The answer isn't (B)",
        "ABCD",
        "A/B",
        "Both A and B",
        "All of the above",
        "\N{CYRILLIC CAPITAL LETTER VE}",
        "<think>The answer is B.</think>",
        '{"answer": ""}',
        "The answer could be A, but it is C",
    ],
)
def test_what_is_no_clear_choice_is_none(text):
    assert chosen_option(text, OPTIONS) is None


def test_a_list_of_all_options_is_not_a_choice():
    assert (
        chosen_option("Options: A. a red square B. blue C. the dog D. light blue", OPTIONS) is None
    )


def test_letters_end_where_the_options_end():
    assert chosen_option("D", OPTIONS[:3]) is None
    assert chosen_option("D", OPTIONS) == 3


def test_reading_is_quick_on_hostile_text():
    started = time.process_time()
    for text in (
        "answer " * 20_000,
        "(" * 50_000,
        "not " * 30_000 + "B",
        "A" * 100_000,
        " blue" * 20_000,
        " " * 90_000,
    ):
        chosen_option(text, OPTIONS)
        same_answer(text, "blue")
    assert time.process_time() - started < 2


def test_of_a_long_text_the_beginning_and_the_end_count():
    reasoning = "Let me think about every frame. " * 1000
    assert chosen_option(f"{reasoning}So the answer is C.", OPTIONS) == 2
    assert chosen_option(f"B. {reasoning}", OPTIONS) == 1


@pytest.mark.parametrize(
    ("text", "answer", "same"),
    [
        ("Red.", "red", True),
        ("The  RED", "red", True),
        ("red green", "red", False),
        ("", "", False),
        ("reddish", "red", False),
        ("the", "a", False),
    ],
)
def test_open_answers_are_compared_without_case_articles_and_punctuation(text, answer, same):
    assert same_answer(text, answer) is same
