"""All kinds of video source, found by their files: a new kind is a new module of this folder."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union, get_args

from pydantic import Field

from assets.sources.base import Source


def find_kinds() -> dict[str, type[Source]]:
    """Name of a kind -> its section of settings, from every module beside this one.

    Raises:
        ValueError: two modules give a kind the same name.
    """
    found: dict[str, type[Source]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        name = f"{__package__}.{module.name}"
        if name == __name__:
            continue
        for _, section in inspect.getmembers(import_module(name), inspect.isclass):
            if (
                section.__module__ == name
                and issubclass(section, Source)
                and "kind" in section.model_fields
            ):
                (kind,) = get_args(section.model_fields["kind"].annotation)
                if kind in found:
                    raise ValueError(f"{name}: {found[kind].__module__} has the kind {kind!r} too")
                found[kind] = section
    return found


KINDS = find_kinds()

if TYPE_CHECKING:
    VideoSource = Source
else:  # a value's `kind` says which section it is
    VideoSource = Annotated[Union[tuple(KINDS.values())], Field(discriminator="kind")]  # noqa: UP007
