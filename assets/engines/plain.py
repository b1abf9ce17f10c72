"""Values as JSON and back, between a step and its job: what functions of the graph take and return.

Not pickles: reading these builds records of this project and runs nothing. A value that is neither
plain nor such a record is written as `{"!": what it is, ...}`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from model.configuration import Section, parse
from training.formats.storage import Storage

MARK = "!"
ROOMS = ("assets", "training", "model", "tests")
Log = Callable[..., None]


def dumps(value: Any, log: Log) -> str:
    """JSON of a value; the same for equal ones.

    Args:
        log: written by name alone; `loads` puts another one in its place.

    Raises:
        TypeError: something in it is neither plain nor a record.
    """
    return json.dumps(_plain(value, log), sort_keys=True)


def loads(text: str, log: Log) -> Any:
    """The value that `dumps` wrote.

    Raises:
        ValueError: the text names something that is no record of this project.
    """
    return _value(json.loads(text), log)


def function_name(function: Callable[..., Any]) -> str:
    """Where a function of a module stands: `module:name`."""
    return f"{function.__module__}:{function.__qualname__}"


def named(name: str) -> Any:
    """A function or a class of one of this project's modules, by its name.

    Raises:
        ValueError: it is somebody else's.
    """
    module, _, inside = name.partition(":")
    if module.partition(".")[0] not in ROOMS or not inside.isidentifier():
        raise ValueError(f"{name} is no function or record of {', '.join(ROOMS)}")
    return getattr(import_module(module), inside)


def _plain(value: Any, log: Log) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list):
        return [_plain(item, log) for item in value]
    if isinstance(value, Mapping):
        return _plain_mapping(value, log)
    if isinstance(value, bytes):
        return {MARK: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, Path):
        return {MARK: "path", "path": str(value)}
    if isinstance(value, Storage):
        return {MARK: "storage", "root": value.root, "cache": str(value.cache)}
    if isinstance(value, Section):
        given = value.model_dump(mode="json", exclude_unset=True)
        return {MARK: "settings", "of": function_name(type(value)), "values": given}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = value._fields
        given = {name: _plain(item, log) for name, item in zip(names, value, strict=True)}
        return {MARK: "record", "of": function_name(type(value)), "fields": given}
    if isinstance(value, tuple):
        return {MARK: "tuple", "items": [_plain(item, log) for item in value]}
    if is_dataclass(value) and not isinstance(value, type):
        given = {item.name: _plain(getattr(value, item.name), log) for item in fields(value)}
        return {MARK: "record", "of": function_name(type(value)), "fields": given}
    if value == log:
        return {MARK: "log"}
    raise TypeError(f"{value!r} cannot be sent to a job or back: {type(value).__name__}")


def _plain_mapping(value: Mapping[Any, Any], log: Log) -> dict[str, Any]:
    """As pairs, because the order of a table's columns counts, and keys may be numbers."""
    pairs = [[_plain(key, log), _plain(item, log)] for key, item in value.items()]
    return {MARK: "dict", "items": pairs}


def _value(plain: Any, log: Log) -> Any:
    if isinstance(plain, list):
        return [_value(item, log) for item in plain]
    if not isinstance(plain, dict):
        return plain
    match plain[MARK]:
        case "dict":
            return {_value(key, log): _value(item, log) for key, item in plain["items"]}
        case "bytes":
            return base64.b64decode(plain["base64"])
        case "path":
            return Path(plain["path"])
        case "storage":
            return Storage(plain["root"], Path(plain["cache"]))
        case "settings":
            return parse(named(plain["of"]), plain["values"])
        case "record":
            return _record(plain["of"])(**{k: _value(v, log) for k, v in plain["fields"].items()})
        case "tuple":
            return tuple(_value(item, log) for item in plain["items"])
        case "log":
            return log
        case other:
            raise ValueError(f"a value of an unknown sort: {other!r}")


def _record(name: str) -> Any:
    found = named(name)
    if not isinstance(found, type) or not (is_dataclass(found) or hasattr(found, "_fields")):
        raise ValueError(f"{name} is no record")
    return found
