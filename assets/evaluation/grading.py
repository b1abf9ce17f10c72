"""Whether a free text is the right answer, and which option it chose: strict enough not to be
fooled, lenient enough to follow how models answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from assets.evaluation.questions import LETTERS, EvaluationQuestion

END_LENGTH = 2000  # characters that are read from the start, and from the end, of a longer text
_ARTICLES = ("a", "an", "the")
DENIAL_REACH = 40  # characters before a sign in which a "not" turns it round

_OPEN = r"[\s\(\[\{\"'*`#>_$\\-]*"
_LEADING = re.compile(rf"^{_OPEN}(?P<letter>[A-Z])(?![A-Za-z'’])")
# Openings after which a letter is the answer rather than a word: "the answer is B", "Option: (C)",
# "I choose D", {"answer": "B"}, <answer>B</answer>.
_ANNOUNCED = re.compile(
    r"\b(?:answer|option|choice|i (?:would )?(?:choose|pick|select)|i'd (?:choose|pick|select))"
    r"(?: (?:is|would be|should be|must be|option|letter|choice|the|to))*"
    r"[\"'>*]{0,3}\s{0,2}[:=]?\s{0,3}"
    r"[\(\[\{\"'*`$]{0,3}(?P<letter>[A-Z])(?![A-Za-z'’])",
    re.IGNORECASE,
)
_MARKED = re.compile(
    r"[\(\[](?P<round>[A-Z])[\)\]]|\*\*(?P<bold>[A-Z])[.:)]?\*\*"
    r"|\\boxed\{(?:\\text\{)?(?P<boxed>[A-Z])\}"
)
_SEVERAL = re.compile(r"^\W{0,4}(?:and|or|nor|&|/|,)\W{0,4}(?P<letter>[A-Z])(?![A-Za-z'’])")
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|never|neither|nor|except|rather than|instead of|unlike)\b|n't\b)"
    r"[^.,;\n]{0,24}$"
)


def is_right(question: EvaluationQuestion, text: str) -> bool:
    """Whether a text that the model wrote is the right answer."""
    if question.form == "options":
        index = chosen_option(text, question.options)
        return index is not None and question.options[index] == question.answer
    return same_answer(text, question.answer)


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """The index of the option that `text` settles on, or None when it settles on none or on
    several.

    In this order: a letter that stands alone or opens the answer; the last letter that is announced
    as the answer; a single letter in brackets or bold; an option's own words. What follows "not"
    does not count, nor what stands before the end of a <think> block, nor the options where they
    are repeated, and an answer that names two options by the same kind of sign is no answer.
    """
    letters = LETTERS[: len(options)]
    text = " ".join(unicodedata.normalize("NFKC", _ends(text)).split(" ")).strip()
    # Without marks that have no look of their own (Cf): joiners, direction marks.
    text = "".join(sign for sign in text if unicodedata.category(sign) != "Cf")
    alone = text.strip(" \t\n.()[]{}*\"'`:").upper()
    if len(alone) == 1 and alone in letters:
        return letters.index(alone)
    for signs in (
        _opening(text, options, letters),
        _announced(text, letters),
        _marked(text, letters),
    ):
        if signs:
            return signs.pop() if len(signs) == 1 else None
    quoted = _quoted(text, options)
    return quoted.pop() if len(quoted) == 1 else None


def same_answer(text: str, answer: str) -> bool:
    """Whether an open answer equals the right one, apart from case, punctuation, articles and
    spacing.
    """
    return plain(_ends(text)) == plain(answer) != ""


def plain(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    text = re.sub(r"[^\w\s]", " ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(word for word in text.split() if word not in _ARTICLES)


def _ends(text: str) -> str:
    """The start and the end of a text, without the thoughts before it."""
    text = text.rpartition("</think>")[2]
    return text if len(text) <= 2 * END_LENGTH else f"{text[:END_LENGTH]}\n{text[-END_LENGTH:]}"


def _opening(text: str, options: Sequence[str], letters: str) -> set[int]:
    """The letter at the very start ("B. red", "(C) because"). "A dog" and "I think" open with
    words, not letters.
    """
    match = _LEADING.match(text)
    if match is None or match["letter"] not in letters:
        return set()
    index, rest = letters.index(match["letter"]), text[match.end() :]
    if index + 1 < len(letters):
        both = f"{options[index]} {letters[index + 1]} {options[index + 1]}"
        if plain(rest).startswith(plain(both)):
            return set()  # the options, repeated
    if several := _SEVERAL.match(rest):
        # "B and C" is no answer, nor is "B and X": the -1 keeps the set from being of one option.
        return {index, *(letters.index(x) for x in several["letter"] if x in letters)} | {-1}
    is_word = match["letter"] in "AI" and re.match(r" [a-z]", rest)
    if is_word and not plain(rest).startswith(plain(options[index])):
        return set()
    return {index}


def _announced(text: str, letters: str) -> set[int]:
    """The last announced letter that is not denied. A lower-case "a", and "A" before a word, are
    articles.
    """
    last: set[int] = set()
    for match in _ANNOUNCED.finditer(text):
        letter, rest = match["letter"], text[match.end() : match.end() + DENIAL_REACH]
        article = letter == "a" or (
            letter in "AI" and re.match(r" [a-z]", rest) and not _SEVERAL.match(rest)
        )
        if article or letter.upper() not in letters or _denied(text, match.start("letter")):
            continue
        last = {letters.index(letter.upper())}
        if several := _SEVERAL.match(rest):
            last |= {letters.index(x) for x in several["letter"] if x in letters}
    return last


def _marked(text: str, letters: str) -> set[int]:
    """Letters in brackets, in bold or in a box that are not denied."""
    found = set()
    for match in _MARKED.finditer(text):
        letter = match["round"] or match["bold"] or match["boxed"]
        if letter in letters and not _denied(text, match.start()):
            found.add(letters.index(letter))
    return found


def _quoted(text: str, options: Sequence[str]) -> set[int]:
    """Options whose words stand in the text, longest first: "light blue" is not also "blue"."""
    # Commas and full stops stay: they end the reach of a "not".
    words_and_stops = re.findall(r"\w+|[.,;]", text.casefold())
    padded = f" {' '.join(word for word in words_and_stops if word not in _ARTICLES)} "
    found = set()
    for index in sorted(range(len(options)), key=lambda i: -len(plain(options[i]))):
        words = f" {plain(options[index])} "
        start = padded.find(words) if words.strip() else -1
        while start >= 0:
            if not _denied(padded, start + 1):
                found.add(index)
            padded = f"{padded[:start]} \0 {padded[start + len(words) :]}"
            start = padded.find(words, start)
    return found


def _denied(text: str, start: int) -> bool:
    """Whether a "not" or the like stands shortly before a place in the text."""
    return _DENIED.search(text[max(0, start - DENIAL_REACH) : start].casefold()) is not None
