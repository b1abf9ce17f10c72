"""JSON files of rows, in any of the forms in which people write them: one object a line, a list, a
list inside of an object, objects by their keys.

A row is cut out of the text by its brackets before it is parsed. So a broken one is set aside
alone, and no row is so deep or so long that it ends the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from assets.fetching.errors import AnnotationError
from assets.fetching.table_rows import (
    DEEPEST,
    KEY,
    LONGEST_ROW,
    NOT_AN_OBJECT,
    NOT_JSON,
    TOO_DEEP,
    TOO_LONG,
    Found,
    in_brief,
    unreadable,
)
from assets.fetching.table_text import open_text

READ_CHARS = 1 << 20
GLANCES = 2  # closing brackets that are tried before the brackets of a row are counted
LONGEST_TEXT = 4 * LONGEST_ROW  # within a row that is too long; then a quote must be missing
# Names under which an object holds the list of all rows.
WRAPPERS = frozenset({"data", "annotations", "samples", "rows"})
# Brackets and whole texts; a quote alone opens a text that is not closed in what was read.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[][{}"]', re.DOTALL)
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BETWEEN = re.compile(r"[\s,]*+")
_COLON = re.compile(r"\s*+:\s*+")
_BARE = re.compile(r'[^][{}"\s,]++')


class JsonFaultError(ValueError):
    """A text that is no JSON value, or one that nobody should parse; the text is the reason."""


def parse_json(text: str) -> Any:
    """The value of a JSON text from a stranger. NaN is a number, as most writers have it.

    Raises:
        JsonFaultError: `not_json`, or `too_deep`.
    """
    if text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
        raise JsonFaultError(TOO_DEEP)
    try:
        value = orjson.loads(text)
        if not isinstance(value, dict) or not any(map(_was_whole, value.values())):
            return value
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        pass  # it also refuses NaN, and half a surrogate pair
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also a number of five thousand digits
        raise JsonFaultError(NOT_JSON) from None


def _was_whole(value: Any) -> bool:
    """Whether it may have been a whole number beyond 64 bits: orjson makes a float of it, and two
    ids become one.
    """
    return type(value) is float and abs(value) >= 2**63


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        bracket = text[token.start()]
        if bracket != '"':
            depth += 1 if bracket in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def read_json_lines(path: Path, encoding: str) -> Iterator[Found]:
    """A row for each line of a file."""
    with open_text(path, encoding, newline="\n") as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            if len(line) > LONGEST_ROW:
                yield unreadable(line, number, TOO_LONG)
                while line and not line.endswith("\n"):
                    line = file.readline(LONGEST_ROW)
            elif not line.isspace():
                yield _row(line, number)


def read_json(path: Path, name: str, encoding: str) -> Iterator[Found]:
    """The rows of a JSON file: of a list, of an object of rows by their keys (each gets its key in
    the column `KEY`), of an object that holds a list of rows under one of `WRAPPERS`, or of objects
    and lists one after another.

    Args:
        name: of the file in messages.

    Raises:
        AnnotationError: something else stands there, or the file ends inside of a row.
    """
    with open_text(path, encoding, newline="") as file:
        wrapper = _container(_Text(file, name))
    with open_text(path, encoding, newline="") as file:
        text = _Text(file, name)
        while first := text.peek():
            if first == "{" and wrapper is not None:
                yield from _members(text, wrapper)
                wrapper = None
            elif first == "[":
                text.take()
                yield from _elements(text)
            elif first == "{":
                yield text.row()
            else:
                raise text.error(f"no row begins with {in_brief(text.value()[0], 40)!r}")


def starts_a_list(path: Path, encoding: str) -> bool:
    """Whether a file begins as a JSON list does."""
    with open_text(path, encoding, newline="") as file:
        return file.read(READ_CHARS).lstrip()[:1] == "["


def _row(text: str, line: int, key: str | None = None) -> Found:
    try:
        value = parse_json(text)
    except JsonFaultError as error:
        return unreadable(text, line, str(error))
    if not isinstance(value, dict):
        return unreadable(text, line, NOT_AN_OBJECT)
    return value if key is None else {KEY: key, **value}, line, ""


def _elements(text: _Text, key: str | None = None) -> Iterator[Found]:
    """The elements of a list whose bracket was taken; those that are no objects only where they are
    rows of no key.
    """
    while (first := text.peek()) != "]":
        if not first:
            raise text.error("the file ends inside of a list; it is cut short")
        if first == "{" or key is None:
            yield text.row(key)
        else:
            text.value()
    text.take()


def _container(text: _Text) -> str | None:
    """What the first object of a file is: the name of the list of rows in it; "" where it is one of
    rows by their keys; None where it is a row itself, or no object at all.
    """
    if text.peek() != "{":
        return None
    text.take()
    kinds = set()
    while (first := text.peek()) != "}":
        key = text.key() if first == '"' else None
        if key is None:
            return None  # whatever it is: read as rows, it is told with its line
        first = text.peek()
        if key in WRAPPERS and first == "[":
            return key
        kinds.add(first in ("{", "["))
        text.value(keep=False)
    return "" if kinds == {True} else None


def _members(text: _Text, wrapper: str) -> Iterator[Found]:
    """The rows of a container, as `_container` calls it."""
    text.take()
    while (first := text.peek()) != "}":
        key = text.key() if first == '"' else None
        if key is None:
            raise text.error("expected a name and a colon")
        first = text.peek()
        if wrapper and key == wrapper and first == "[":
            text.take()
            yield from _elements(text)
        elif not wrapper and first == "{":
            yield text.row(key)
        elif not wrapper and first == "[":
            text.take()
            yield from _elements(text, key)
        else:
            text.value(keep=False)
    text.take()


class _Text:
    """A long JSON text, of which a little more than one value is held at a time."""

    def __init__(self, file: IO[str], name: str) -> None:
        self._file, self._name = file, name
        self._buffer, self._at, self._ended = "", 0, False
        self.line = 1

    def error(self, says: str) -> AnnotationError:
        """What is wrong where the text is read now."""
        return AnnotationError(f"{self._name}, line {self.line}: {says}")

    def peek(self) -> str:
        """The first character of the next value or bracket, "" at the end of the file."""
        while True:
            self._advance(_match_end(_BETWEEN, self._buffer, self._at))
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._grow():
                return ""

    def take(self) -> None:
        """Go on behind one character."""
        self._advance(self._at + 1)

    def key(self) -> str | None:
        """Go on behind a name and its colon; None where they do not stand here."""
        while True:
            name = _TEXT.match(self._buffer, self._at)
            colon = _COLON.match(self._buffer, name.end()) if name else None
            if name and colon and colon.end() < len(self._buffer):
                self._advance(colon.end())
                try:
                    return str(parse_json(name[0]))
                except JsonFaultError:
                    return None
            if len(self._buffer) - self._at > LONGEST_ROW or not self._grow():
                return None

    def row(self, key: str | None = None) -> Found:
        """Go on behind a value, which is a row."""
        line = self.line
        if (end := self._end_of_flat_object()) is not None:
            text = self._buffer[self._at : end]
            self._advance(end)
            return _row(text, line, key)
        text, deepest, whole = self.value()
        if not whole:
            return unreadable(text, line, TOO_LONG)
        if deepest > DEEPEST:
            return unreadable(text, line, TOO_DEEP)
        return _row(text, line, key)

    def value(self, *, keep: bool = True) -> tuple[str, int, bool]:
        """Go on behind a value: (its text, how deep it is, whether that is all of its text).

        Args:
            keep: False where nobody needs the text: then it may be of any length.

        Raises:
            AnnotationError: the file ends inside of it.
        """
        bracket = self._buffer[self._at]
        if bracket not in "[{":
            return self._scalar(), 0, True
        depth = deepest = 0
        beginning, scanned = "", self._at  # `scanned`: everything before is whole tokens
        while True:
            for token in _TOKEN.finditer(self._buffer, scanned):
                scanned, sign = token.end(), self._buffer[token.start()]
                if token[0] == '"':
                    scanned = token.start()
                    break
                if sign == '"':
                    continue
                depth += 1 if sign in "[{" else -1
                deepest = max(deepest, depth)
                if depth == 0:
                    text = beginning or self._buffer[self._at : scanned]
                    self._advance(scanned)
                    return text, deepest, not beginning and len(text) <= LONGEST_ROW
            else:
                scanned = len(self._buffer)
            if scanned - self._at > LONGEST_ROW or not keep:
                beginning = beginning or self._buffer[self._at : self._at + LONGEST_ROW]
                self._advance(scanned)
            if len(self._buffer) - scanned > LONGEST_TEXT:
                raise self.error("a text goes on and on; a quote is missing")
            before = self._at
            if not self._grow():
                raise self.error("the file ends inside of a row; it is cut short")
            scanned += self._at - before

    def _end_of_flat_object(self) -> int | None:
        """Where the object ends that begins here, if that can be seen at a glance: most rows hold
        no others, and what parses up to a bracket is whole.
        """
        end = self._at
        for _ in range(GLANCES):
            end = self._buffer.find("}", end) + 1
            if not end or end - self._at > LONGEST_ROW:
                return None
            try:
                orjson.loads(self._buffer[self._at : end])
            except (orjson.JSONDecodeError, UnicodeEncodeError):
                continue
            return end
        return None

    def _scalar(self) -> str:
        pattern = _TEXT if self._buffer[self._at] == '"' else _BARE
        while True:
            found = pattern.match(self._buffer, self._at)
            if found and (pattern is _TEXT or found.end() < len(self._buffer)):
                break
            if len(self._buffer) - self._at > LONGEST_ROW or self._ended:
                break
            self._grow()
        # What opens nothing and closes nothing is passed over character by character.
        end = found.end() if found else self._at + 1
        text = self._buffer[self._at : end]
        self._advance(end)
        return text

    def _advance(self, place: int) -> None:
        self.line += self._buffer.count("\n", self._at, place)
        self._at = place

    def _grow(self) -> bool:
        """Read on; False at the end of the file. What was passed is forgotten."""
        if self._ended:
            return False
        more = self._file.read(max(READ_CHARS, len(self._buffer) - self._at))
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        self._ended = not more
        return bool(more)


def _match_end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where a pattern that matches everywhere ends."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()
