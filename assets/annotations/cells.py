"""Values of annotation rows as people and table programs write them: texts, durations, options.

What cannot be read is said, never guessed: an answer by letter without its options teaches nothing.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from string import ascii_uppercase
from typing import Any

from pydantic import TypeAdapter, ValidationError

from assets.annotations.video_names import RejectedRow
from assets.fetching.table_json import JsonFaultError, parse_json

LONGEST_DURATION_S = 1e6
LONGEST_NUMBER = 4000  # digits; Python refuses to write longer ones
PLACEHOLDER = re.compile(r"<(?:image|video)>\s*")
_LISTED = re.compile(r"(?:^|\n)\s*\(?A[).:]")  # options that stand in the question already
_LABELLED = re.compile(r"\s*\(?([A-Za-z])[).:]\s*(?=\S)")  # "A. red", "(b) blue"
# A Python list of texts and numbers, as pandas writes it into a CSV; nothing else is evaluated.
_ITEM = r"(?:'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"|-?\d{1,30}(?:\.\d{1,30})?)"
_PYTHON_LIST = re.compile(rf"\[\s*{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?\s*\]", re.DOTALL)
_LONGEST_LIST = 1 << 16

_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,3}):(\d{1,2}(?:[.,]\d+)?)")
_NUMBER = r"\d+(?:[.,]\d+)?"
_UNITS = re.compile(
    rf"(?:({_NUMBER})\s*(?:h|hrs?|hours?))?\s*(?:({_NUMBER})\s*(?:m|mins?|minutes?))?\s*"
    rf"(?:({_NUMBER})\s*(?:s|secs?|seconds?))?\s*(?:({_NUMBER})\s*(?:ms|milliseconds?))?",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ISO = TypeAdapter(timedelta)


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing: it is empty, or NaN, which table programs write for that. In a
    CSV it is a text.
    """
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or (isinstance(value, str) and value in ("", "NaN", "nan"))


def text_of(value: Any) -> str | None:
    """A value as a stripped text; None where there is none.

    Raises:
        RejectedRow: it is a list or an object, which is no text.
    """
    if value is None:
        return None
    if isinstance(value, dict | list | tuple):
        raise RejectedRow("not_a_text")
    if isinstance(value, bytes):
        value = value.decode(errors="surrogateescape")
    if isinstance(value, int) and value.bit_length() > 3 * LONGEST_NUMBER:
        raise RejectedRow("not_a_text")
    return str(value).strip() or None


def spoken(value: Any) -> str:
    """A question or an answer, without the placeholders that stand for visual input; the grouping
    step sets its own.

    Raises:
        RejectedRow: it is no text, nor a list of parts with texts.
    """
    if isinstance(value, list):  # content as a list of parts
        parts = (text_of(p.get("text") if isinstance(p, dict) else p) for p in value)
        value = "".join(part or "" for part in parts)
    return PLACEHOLDER.sub("", text_of(value) or "").strip()


def seconds_of(value: Any) -> float | None:
    """A duration in seconds: a number, `1:02:03`, `02:03`, `1,5`, `90 s`, `1h 5m`, `PT5M`; None
    where it is nothing of that, or no duration that a video can have.
    """
    if isinstance(value, timedelta):
        return _possible(value.total_seconds())
    if isinstance(value, str):
        return _possible(_written_seconds(value.strip()[:100]))
    try:
        return _possible(float(value))
    except (TypeError, ValueError, OverflowError):
        return None


def _written_seconds(text: str) -> float:
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (_decimal(part) for part in clock.groups())
        return 3600 * hours + 60 * minutes + seconds
    if _THOUSANDS.fullmatch(text):
        return float(text.replace(",", ""))
    if text and (units := _UNITS.fullmatch(text)):
        hours, minutes, seconds, thousandths = (_decimal(part) for part in units.groups())
        return 3600 * hours + 60 * minutes + seconds + thousandths / 1000
    if text[:1] in ("P", "p"):
        try:
            return _ISO.validate_python(text.upper()).total_seconds()
        except (ValidationError, OverflowError):
            return 0.0
    return _decimal(text)


def _decimal(text: str | None) -> float:
    try:
        return float((text or "0").replace(",", "."))
    except ValueError:
        return 0.0


def _possible(seconds: float) -> float | None:
    return seconds if 0 < seconds < LONGEST_DURATION_S else None


def with_options(question: str, options: Any) -> str:
    """The question with its options as lines, unless they stand in it already.

    Args:
        options: a list, a mapping of letters, or a text of them: JSON, a list as Python prints it,
            joined by `|`, or one on a line.

    Raises:
        RejectedRow: they cannot be read, or are more than there are letters.
    """
    if options is None or _LISTED.search(question):
        return question
    labels, texts = _labelled(_parsed(options))
    if not texts:  # an open question of a set that has both kinds
        return question
    if len(texts) > len(ascii_uppercase):
        raise RejectedRow("too_many_options")
    lines = (f"{label}. {text}" for label, text in zip(labels, texts, strict=False))
    return "\n".join([question, *lines])


def _parsed(options: Any) -> list[Any] | Mapping[Any, Any]:
    if isinstance(options, str):
        text = options.strip()
        if text[:1] in ("[", "{"):
            options = _from_text(text)
        elif "|" in text:
            options = text.split("|")
        elif "\n" in text:
            options = text.split("\n")
    if isinstance(options, tuple):
        options = list(options)
    if not isinstance(options, list | Mapping):
        raise RejectedRow("options_not_read")
    return options


def _from_text(text: str) -> Any:
    try:
        return parse_json(text)
    except JsonFaultError:
        if len(text) > _LONGEST_LIST or not _PYTHON_LIST.fullmatch(text):
            raise RejectedRow("options_not_read") from None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise RejectedRow("options_not_read") from None


def _labelled(options: list[Any] | Mapping[Any, Any]) -> tuple[list[str], list[str]]:
    """Labels and texts of options. Those of a mapping keep their labels; those that bring the
    letters A, B, ... along are not lettered twice.
    """
    if isinstance(options, Mapping):
        given = {str(label).strip(): spoken(text) for label, text in options.items()}
        there = {label: text for label, text in given.items() if text}
        ordered = sorted(there, key=lambda label: (len(label), label))
        return [label.upper() if len(label) == 1 else label for label in ordered], [
            there[label] for label in ordered
        ]
    texts = [spoken(option) for option in options]
    while texts and not texts[-1]:  # a table has as many cells as the longest list
        texts.pop()
    if not all(texts):
        raise RejectedRow("options_not_read")
    labels = list(ascii_uppercase)
    opened = [_LABELLED.match(text) for text in texts]
    if all(match and match[1].upper() == labels[n] for n, match in enumerate(opened[:26])):
        texts = [t[m.end() :] if m else t for t, m in zip(texts, opened, strict=True)]
    return labels, texts
