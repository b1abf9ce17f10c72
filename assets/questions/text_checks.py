"""Checks of a row that cost nothing: they look at its words alone."""

from __future__ import annotations

import re

from assets.questions.rows import CHOICE, LETTERS, Row

IN_QUESTION = "answer_in_the_question"
NOT_EXCLUSIVE = "options_not_exclusive"
NOT_COMPLETE = "options_missing"
OUTSIDE = "times_outside_the_video"
EMPTY = "empty"
TOLERANCE_S = 1.0  # a time that is said in whole seconds
SHORTEST_WORD = 2  # characters
NO_CONTENT = frozenset(
    ("a", "an", "and", "are", "at", "be", "by", "do", "does", "in", "is", "it", "no", "of", "on")
) | {"or", "the", "to", "was", "yes"}
_WORD = re.compile(r"[^\W_]+")
_CATCH_ALL = re.compile(r"\b(all|none|both|neither|any) of (the|these|those)\b", re.IGNORECASE)
_CLOCK = re.compile(r"\b(?:(\d{1,2}):)?(\d{1,2}):(\d{2})\b")
_SECONDS = re.compile(
    r"\bseconds? (\d+(?:\.\d+)?)\b|\b(\d+(?:\.\d+)?) ?(?:s|sec|secs|seconds?)\b", re.IGNORECASE
)


def text_faults(row: Row) -> list[str]:
    """The checks that a row does not pass."""
    found = []
    if not row.question or not row.answer:
        return [EMPTY]
    if answer_in_question(row.question, row.answer):
        found.append(IN_QUESTION)
    if row.form == CHOICE:
        if len(row.distractors) != len(LETTERS) - 1 or not all(row.distractors):
            found.append(NOT_COMPLETE)
        elif not_exclusive([row.answer, *row.distractors]):
            found.append(NOT_EXCLUSIVE)
    if any(second > row.duration + TOLERANCE_S for second in times_in(row)):
        found.append(OUTSIDE)
    return found


def words(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return _WORD.findall(text.casefold())


def answer_in_question(question: str, answer: str) -> bool:
    """Whether the answer stands in the question, word by word, and says anything by itself."""
    said, within = words(answer), words(question)
    if not set(said) - NO_CONTENT or len("".join(said)) < SHORTEST_WORD:
        return False
    if all(word.isdigit() for word in said):  # "3" in "second 3" is another number
        return False
    places = range(len(within) - len(said) + 1)
    return any(within[place : place + len(said)] == said for place in places)


def not_exclusive(options: list[str]) -> bool:
    """Whether two options say the same, or one of them speaks of the others. More cannot be known
    from words alone; the second asking looks further.
    """
    plain = [tuple(w for w in words(text) if w not in NO_CONTENT) for text in options]
    same = any(one and plain.count(one) > 1 for one in plain)
    exact = len({" ".join(words(text)) for text in options}) < len(options)
    return same or exact or any(_CATCH_ALL.search(text) for text in options)


def times_in(row: Row) -> list[float]:
    """The seconds that a row's texts name."""
    text = "\n".join([row.question, row.answer, *row.distractors])
    clocks = [3600 * int(h or 0) + 60 * int(m) + int(s) for h, m, s in _CLOCK.findall(text)]
    return [*map(float, clocks), *(float(a or b) for a, b in _SECONDS.findall(text))]
