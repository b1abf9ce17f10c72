"""Which long video a person means: `source/id`, an id alone, with or without the ending of a video,
or the path of its video or feature file.
"""

from __future__ import annotations

import os
import re

import pyarrow as pa
import pyarrow.compute as pc

from assets.annotations.catalogue import SCHEMA, read_catalogue, snapshot_name
from assets.deployment.settings import Settings
from assets.records.provenance import NotFoundError
from assets.records.withdrawals import Withdrawals, catalogued_parts
from assets.sources.base import VIDEO_SUFFIXES, VideoRow, composed
from training.formats import layout
from training.formats.storage import Storage

_SUFFIXES = (*VIDEO_SUFFIXES, ".quarantine.json", ".safetensors", ".bin")


def plain_name(storage: Storage, text: str) -> str:
    """`source/id` or an id, of whatever a person may give."""
    if storage.is_local and os.path.isabs(text):
        inside = os.path.relpath(os.path.realpath(text), os.path.realpath(storage.root))
        text = text if inside.startswith("..") else inside
    text = composed(text).removeprefix(f"{storage.root}/").strip("/")
    for suffix in _SUFFIXES:
        if text.lower().endswith(suffix):
            text = text[: -len(suffix)]
    for folder in (layout.VIDEOS, layout.QUARANTINE):
        text = text.removeprefix(f"{folder}/")
    if text.startswith(f"{layout.FEATURES}/"):
        text = text.removeprefix(f"{layout.FEATURES}/").partition("/")[2]
    return text


def catalogued_rows(
    storage: Storage, settings: Settings, text: str, *, alike: bool = False
) -> list[tuple[str, VideoRow]]:
    """(part, row of the catalogue) of every video that `text` may mean.

    Args:
        alike: where there is no video of that name, take those of the same name in other letters;
            where there is none of these either, those called like the file, whatever its folder.
            For questions only: what removes something asks for the name itself.
    """
    name = plain_name(storage, text)
    tables = [
        (part, read_catalogue(storage, source, part))
        for part in catalogued_parts(storage)
        for source in sorted(settings.sources)
        if storage.exists(snapshot_name(source, part))
    ]
    file = re.split(r"[\\/]", name)[-1]
    ways = ((name, False), (name, True), (file, False), (file, True)) if alike else ((name, False),)
    for wanted, any_letters in ways:
        if found := [(p, row) for p, table in tables for row in _rows(table, wanted, any_letters)]:
            return found
    return []


def find_video(storage: Storage, settings: Settings, text: str) -> str:
    """The one video, `source/id`, that is catalogued or was withdrawn.

    Raises:
        NotFoundError: there is none.
        ValueError: there are several; they are named.
    """
    name = plain_name(storage, text)
    withdrawn = [v for v in Withdrawals.read(storage).videos if name in (v, v.partition("/")[2])]
    found = {row.video for _, row in catalogued_rows(storage, settings, text)} | set(withdrawn)
    if not found:
        raise NotFoundError(f"{text}: no such video is catalogued under {storage.root}")
    if len(found) > 1:
        raise ValueError(f"{text} may be {', '.join(sorted(found))}: give the source as well")
    return found.pop()


def _rows(table: pa.Table, name: str, in_any_letters: bool) -> list[VideoRow]:
    """Rows of a table whose video or id is `name`."""
    columns = [table["video"], table["id"]]
    if in_any_letters:
        name, columns = name.lower(), [pc.utf8_lower(column) for column in columns]
    wanted = pc.or_(*(pc.equal(column, name) for column in columns))
    return [VideoRow(**raw) for raw in table.filter(wanted).select(SCHEMA.names).to_pylist()]
