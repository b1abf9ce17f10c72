"""The texts that models are given: files that a person can read and change (`prompts/*.yaml`).

Their version is a hash of what they say, so that what was made with other words is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from assets.deployment.yaml_file import read_yaml
from model.configuration import Section, parse
from training.formats.hashing import data_version

T = TypeVar("T", bound=Section)
FOLDER = Path(__file__).with_name("prompts")
_PLACE = re.compile(r"\{(\w+)\}")
LONGEST_DATUM = 4000  # characters of one text of a model within a prompt


class CaptionTexts(Section):
    """`captions.yaml`: how a video is described."""

    version: int
    system: str
    clip: str
    events: str
    event: str
    whole: str


def read_texts(name: str, kind: type[T], folder: Path | None) -> T:
    """A file of texts: the person's copy where there is one, else the project's.

    Raises:
        ValueError: it does not have the form of `kind`; the sentence names the file and the key.
    """
    path = FOLDER / name
    if folder is not None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder (questions.prompts in the settings)")
        path = folder / name if (folder / name).is_file() else path
    values = read_yaml(path)
    try:
        return parse(kind, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def texts_version(texts: Section) -> str:
    """A hash of what the texts say."""
    return data_version(texts.model_dump())


def filled(template: str, values: Mapping[str, object]) -> str:
    """A text with its places filled in, each once: what is filled in is never read as a template.

    Raises:
        ValueError: the text has a place that nobody fills.
    """
    if unknown := sorted(set(_PLACE.findall(template)) - values.keys()):
        raise ValueError(
            f"a prompt has the places {', '.join(unknown)}; known here are {', '.join(values)}"
        )
    return _PLACE.sub(lambda match: str(values[match[1]]), template)


def datum(text: str) -> str:
    """What a model wrote, as data within a prompt: a JSON string that cannot end the data."""
    return json.dumps(text[:LONGEST_DATUM], ensure_ascii=False).replace("<", "\\u003c")
