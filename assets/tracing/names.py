"""Which long video a person means: `source/id`, an id alone, with or without `.mp4`, or the path of
its video or feature file.
"""

from __future__ import annotations

import os

import pyarrow.compute as pc

from assets.annotations.catalogue import SCHEMA, read_catalogue, snapshot_name
from assets.deployment.settings import Settings
from assets.records.provenance import NotFoundError
from assets.records.withdrawals import Withdrawals, catalogued_parts
from assets.sources.base import VIDEO_SUFFIXES, VideoRow
from training.formats import layout
from training.formats.storage import Storage

_SUFFIXES = (*VIDEO_SUFFIXES, ".quarantine.json", ".safetensors", ".bin")


def plain_name(storage: Storage, text: str) -> str:
    """`source/id` or an id, of whatever a person may give."""
    if storage.is_local and os.path.isabs(text):
        inside = os.path.relpath(os.path.realpath(text), os.path.realpath(storage.root))
        text = text if inside.startswith("..") else inside
    text = text.removeprefix(f"{storage.root}/").strip("/")
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix)
    for folder in (layout.VIDEOS, layout.QUARANTINE):
        text = text.removeprefix(f"{folder}/")
    if text.startswith(f"{layout.FEATURES}/"):
        text = text.removeprefix(f"{layout.FEATURES}/").partition("/")[2]
    return text


def catalogued_rows(storage: Storage, settings: Settings, text: str) -> list[tuple[str, VideoRow]]:
    """(part, row of the catalogue) of every video that `text` may mean."""
    name = plain_name(storage, text)
    return [
        (part, row)
        for part in catalogued_parts(storage)
        for source in sorted(settings.sources)
        for row in _rows(storage, source, part, name)
    ]


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


def _rows(storage: Storage, source: str, part: str, name: str) -> list[VideoRow]:
    if not storage.exists(snapshot_name(source, part)):
        return []
    table = read_catalogue(storage, source, part)
    wanted = pc.or_(pc.equal(table["video"], name), pc.equal(table["id"], name))
    return [VideoRow(**raw) for raw in table.filter(wanted).select(SCHEMA.names).to_pylist()]
