"""A typed answer from what a model wrote: JSON alone, or JSON within prose and code fences.

Nothing of it is executed. What does not have the form is a fault in words, which a model can read.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from model.configuration import Section, parse

T = TypeVar("T", bound=Section)

LONGEST_ANSWER = 1 << 20  # characters
MOST_STARTS = 20  # places in the prose at which an object may begin
LONGEST_FAULT = 500


class MalformedAnswerError(ValueError):
    """The answer does not have the form that was asked for."""


def read_answer(text: str, kind: type[T]) -> T:
    """The answer as a `kind`.

    Raises:
        MalformedAnswerError: there is no JSON object in it, or none of that form.
    """
    fault = "there is no JSON object in it"
    for value in _objects(text[:LONGEST_ANSWER]):
        try:
            return parse(kind, value)
        except (ValueError, RecursionError) as error:
            fault = str(error)[:LONGEST_FAULT]
    raise MalformedAnswerError(fault)


def schema_of(kind: type[Section]) -> dict[str, Any]:
    """The JSON schema of a form: every field is demanded, and no other is allowed."""
    schema = kind.model_json_schema()
    for one in (schema, *schema.get("$defs", {}).values()):
        one["required"] = list(one.get("properties", {}))
        one.pop("description", None)
    return schema


def _objects(text: str) -> list[Any]:
    """The JSON objects that stand in a text, outermost ones alone."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    for _ in range(MOST_STARTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found
