"""The one way in which typed settings are read: pydantic models that know all of their keys.

Deployment settings (YAML), a training run (JSON) and a model's configuration (config.json) are
classes derived from `Section`, or pydantic dataclasses. `parse` turns plain values into one of
them; what does not fit is a `ValueError` whose sentence names the key, and for an unknown key the
known ones and the nearest of them. No torch here: anything may import it.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping
from types import GenericAlias, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class Section(BaseModel):
    """A group of settings: unknown keys are refused, and a value never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parse(kind: type[T], values: Any, *, strict: bool = False) -> T:
    """Plain values, as JSON or YAML gives them, as a `kind`.

    Args:
        kind: a `Section` or a pydantic dataclass.
        values: nested dictionaries, lists, strings and numbers.
        strict: take each value only in its own type: `"5"` is no number and 1 is not true, though
            1 is a float. Values are then what JSON can hold.

    Raises:
        ValueError: one sentence for each value that does not fit.
    """
    adapter = TypeAdapter(kind)
    try:
        if strict:  # as JSON: strict Python values would have to be instances and tuples already
            return adapter.validate_json(json.dumps(values), strict=True)
        return adapter.validate_python(values)
    except ValidationError as error:
        sentences = [_sentence(kind, item) for item in error.errors()]
        raise ValueError("; ".join(sentences)) from None


def unknown_key(where: str, known: Iterable[str], last: str | None = None) -> str:
    """What is said of a key that nobody knows.

    Args:
        where: the key as a person writes it, with its sections.
        known: the keys that there are in its section.
        last: the key alone, where that is not all of `where`.
    """
    names = sorted(known)
    close = difflib.get_close_matches(last or where, names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown key {where!r}{hint} (known: {', '.join(names)})"


def _sentence(kind: Any, item: Any) -> str:
    where, value = _path(item["loc"]), item["input"]
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(where, _known_keys(kind, item["loc"][:-1]), str(item["loc"][-1]))
    if item["type"] == "missing":
        return f"missing {where!r}"
    if item["type"] == "value_error":  # raised by a validator of ours, which says it all
        said = str(item["ctx"]["error"])
        return f"{where}: {said}" if where else said
    if not where and item["type"] == "dataclass_type":
        return f"expected an object, found {type(value).__name__}"
    found = f", found {reprlib.repr(value)}" if isinstance(value, str | int | float) else ""
    return f"{where or 'the whole'}: {item['msg']}{found}"


def _path(steps: tuple[Any, ...]) -> str:
    """How a person writes the place of a value: `streams[0].name`."""
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return written.removeprefix(".")


def _known_keys(kind: Any, steps: tuple[Any, ...]) -> set[str]:
    """Names of the fields that the section at `steps` of a value of `kind` has."""
    for step in steps:
        kind = _inside(kind, step)
    return {name for member in _members(kind) for name in _fields(member)}


def _inside(kind: Any, step: Any) -> Any:
    """The type at one step of an error's path: a field, an item, or a member of a tagged union."""
    members = _members(kind)
    for member in members:
        if step in _fields(member):
            return _fields(member)[step].annotation
        tag = _fields(member).get("kind")
        if tag is not None and step in get_args(tag.annotation):
            return member
    return get_args(members[0])[-1]  # of a list or a dictionary


def _members(kind: Any) -> list[Any]:
    """The types that a value may have: those of a union, without None and annotations."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [
            one for member in get_args(kind) if member is not type(None) for one in _members(member)
        ]
    if get_origin(kind) is tuple:
        return [GenericAlias(list, get_args(kind)[:1])]
    return [kind]


def _fields(kind: Any) -> Mapping[str, Any]:
    return getattr(kind, "__pydantic_fields__", {})
