"""The pages docs/settings.md and docs/commands.md, from the typed settings and the parser of
`hourllava`: what a key or an option means is said once, where it is declared.

python -m docs.reference            # prints both
python -m docs.reference --write    # puts them into the pages
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from assets.deployment.settings import Settings
from model.changes import ModelChanges
from pipeline.cli import build_parser
from training.recipes import STAGES, Lora, Recipe
from training.run_config import RECIPE_FIELDS, RunConfig, SavingsWanted

DOCS = Path(__file__).parent
BEGIN, END = "<!-- printed by docs/reference.py -->", "<!-- end -->"
# Of a run these are decided by the graph, so they do not stand in `training.overrides`.
SET_BY_THE_GRAPH = (
    "variant", "stage", "start", "out", "streams", "start_version", "features_root",
    "features_version", "videos_root", "short_video_features_root", "vision_start",
)  # fmt: skip
OF_A_RUN = [
    ("training.overrides.stageN", RunConfig),
    ("training.overrides.stageN.lora", Lora),
    ("training.overrides.stageN.model", ModelChanges),
    ("training.overrides.stageN.savings", SavingsWanted),
]
PLAIN_TYPES = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path",
    Any: "anything",
}  # fmt: skip
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def settings_page() -> str:
    """The settings file, section by section, then what a stage's overrides may hold."""
    titles: dict[Any, str] = {}
    for title, kind in [("The top level", Settings), *_sections("", Settings), *OF_A_RUN]:
        titles.setdefault(kind, title)  # what several keys hold stands once, under the first
    return "\n\n".join(
        f"## {title}\n\n{_said_of(kind)}\n\n{_table(kind, titles)}"
        for kind, title in titles.items()
    )


def commands_page() -> str:
    """Every command of `hourllava` with its arguments, by name."""
    parser = build_parser()
    (commands,) = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    said = {action.dest: action.help for action in commands._choices_actions}
    rows = [
        ["command", "for"],
        *([f"[`{name}`](#hourllava-{name})", said[name] or ""] for name in sorted(said)),
    ]
    parts = [_rows(rows)]
    for name in sorted(said):
        parts += list(_command(f"hourllava {name}", commands.choices[name], said[name] or ""))
    return "\n\n".join(parts)


PAGES = {"settings.md": settings_page, "commands.md": commands_page}


def _command(name: str, parser: argparse.ArgumentParser, says: str) -> Iterator[str]:
    yield f"## {name}\n\n{_sentence(says)}"
    rows = [["argument", "meaning"]]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        if not action.help:
            raise ValueError(f"{name}: {action.dest} has no help")
        written = ", ".join(f"`{_written(action, flag)}`" for flag in action.option_strings)
        meaning = action.help % {"default": action.default, "prog": name}
        if action.choices:
            meaning += f"; one of {', '.join(f'`{choice}`' for choice in action.choices)}"
        if action.required and action.option_strings:
            meaning += " (required)"
        rows.append([written or f"`{(action.metavar or action.dest)}`", _sentence(meaning)])
    if len(rows) > 1:
        yield _rows(rows)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            forms = {form.dest: form.help or "" for form in action._choices_actions}
            for form, meaning in forms.items():
                yield from _command(f"{name} {form}", action.choices[form], meaning)


def _written(action: argparse.Action, flag: str) -> str:
    if action.nargs == 0:
        return flag
    value = action.metavar or action.dest.upper()
    return f"{flag} {value if isinstance(value, str) else ' '.join(value)}"


def _sections(path: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """The sections inside of a section, each with the place where it stands in the file."""
    for name, field in _fields(kind).items():
        place = f"{path}.{name}".removeprefix(".")
        if get_origin(field.annotation) is dict:
            place += ".NAME"
        for member in _section_types(field.annotation):
            tag = _fields(member).get("kind")
            title = f"{place}, kind: {_only(tag)}" if tag else place
            yield title, member
            yield from _sections(title, member)


def _table(kind: Any, titles: Mapping[Any, str]) -> str:
    """The keys of a section; its own stand before those that it shares with other kinds."""
    attributes = _attributes(kind)
    if kind is RunConfig:  # it says of these that they stand in place of the recipe's
        attributes |= {name: _attributes(Recipe)[name] for name in RECIPE_FIELDS}
    own = getattr(kind, "__annotations__", {})
    rows = [["key", "value", "default", "meaning"]]
    for name in sorted(_fields(kind), key=lambda name: (name != "kind", name not in own)):
        if kind is RunConfig and name in SET_BY_THE_GRAPH:
            continue
        field = _fields(kind)[name]
        members = _section_types(field.annotation)
        meaning = field.description or attributes.get(name) or _said_of(*members[:1])
        if name == "kind":
            meaning = "what sort of section this is"
        if not meaning:
            raise ValueError(f"{kind.__name__}.{name} has no description")
        value = _value(field)
        if members:
            value += f": {', '.join(_link(titles[member]) for member in members)}"
        rows.append([f"`{name}`", value, _default(kind, name, field), _sentence(meaning)])
    return _rows(rows)


def _link(title: str) -> str:
    return f"[{title}](#{re.sub(r'[^a-z0-9 -]', '', title.lower()).replace(' ', '-')})"


def _only(tag: FieldInfo) -> str:
    """The one value of a `kind`."""
    (value,) = get_args(tag.annotation)
    return str(value)


def _fields(kind: Any) -> dict[str, FieldInfo]:
    return dict(getattr(kind, "__pydantic_fields__", {}))


def _said_of(*kinds: Any) -> str:
    """The first paragraphs of the docstrings of sections."""
    said = [inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0] for kind in kinds]
    return " ".join(" ".join(said).split())


def _attributes(kind: Any) -> dict[str, str]:
    """Descriptions of attributes in a docstring; one line may describe several."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    entries: list[str] = []
    for line in text.splitlines():
        if re.match(r" {4}\S", line):
            entries.append(line.strip())
        elif line.strip() and entries:
            entries[-1] += f" {line.strip()}"
    found: dict[str, str] = {}
    for entry in entries:
        names, _, meaning = entry.partition(": ")
        found |= dict.fromkeys(re.split(r",\s*", names), meaning)
    return found


def _section_types(annotation: Any) -> list[Any]:
    """The sections that a value of this type may be, or hold by name."""
    if get_origin(annotation) is not None:
        return [found for inner in get_args(annotation) for found in _section_types(inner)]
    return [annotation] if _fields(annotation) else []


def _value(field: FieldInfo) -> str:
    """What may be given, in words: its type and its bounds."""
    return _type(field.annotation) + _bounds(field.metadata)


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    found = []
    for item in metadata:
        inner = getattr(item, "metadata", [])  # a field inside of a field
        for one in (item, *inner):
            found += [
                f", {words} {getattr(one, name):g}"
                for name, words in BOUNDS.items()
                if getattr(one, name, None) is not None
            ]
    return "".join(found)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0]) + _bounds(inner[1:])
    if origin is Literal:
        return ", ".join(f"`{_yaml(choice)}`" for choice in inner)
    if origin in (Union, UnionType):
        members = [one for one in inner if one is not type(None)]
        return " or ".join(dict.fromkeys(map(_type, members)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping: name to {_type(inner[1])}"
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if annotation in PLAIN_TYPES:
        return PLAIN_TYPES[annotation]
    if _fields(annotation):
        return "section"
    raise TypeError(f"no words for the type {annotation}")


def _default(kind: Any, name: str, field: FieldInfo) -> str:
    if kind is RunConfig and name in RECIPE_FIELDS:
        of_stages = [_yaml(getattr(stage.recipe, name)) for stage in STAGES.values()]
        if len(set(of_stages)) == 1:
            return f"`{of_stages[0]}`"
        return "; ".join(
            f"stage {n}: `{value}`" for n, value in zip(STAGES, of_stages, strict=True)
        )
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "(required)"
    if _fields(type(value)):
        return ""
    if isinstance(value, int) and name.endswith("bytes") and value >= 1 << 20:
        size, unit = (value >> 30, "GiB") if value >= 1 << 30 else (value >> 20, "MiB")
        return f"`{value}` ({size} {unit})"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value as the settings file writes it on one line."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}"
    return json.dumps(value)


def _sentence(text: str) -> str:
    """On one line of a table. A settings file writes Python's None as null."""
    words = " ".join(text.split()).replace("|", "\\|").removesuffix(".")
    return re.sub(r"\bNone\b", "`null`", words)


def _rows(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def written(name: str) -> str:
    """The whole page with what the code says between its two marks."""
    text = (DOCS / name).read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{PAGES[name]()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put them into the pages")
    write = parser.parse_args().write
    for name in PAGES:
        if write:
            (DOCS / name).write_text(written(name))
        else:
            print(PAGES[name]())


if __name__ == "__main__":
    main()
