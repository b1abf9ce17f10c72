"""Which long video a person means: `source/id`, an id alone, with or without the ending of a video,
or the path of its video or feature file, below the root or in the folder of a drop source.
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
from assets.sources.drop import DropSource
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


def dropped_names(settings: Settings, text: str) -> list[str]:
    """`source/id` of the videos that a file of a drop source's folder may be; none of any other
    text.
    """
    return [
        f"{name}/{identifier}"
        for name, source in sorted(settings.sources.items())
        if isinstance(source, DropSource)
        for identifier in source.ids_of(text)
    ]


def catalogued_rows(
    storage: Storage, settings: Settings, text: str, *, alike: bool = False
) -> list[tuple[str, VideoRow]]:
    """(part, row of the catalogue) of every video that `text` may mean.

    Args:
        alike: where there is no video of that name, take those of the same name in other letters;
            where there is none of these either, those called like the file, whatever its folder;
            a file of a drop source is one of that source. For questions only: what removes
            something asks for the name itself.
    """
    name, dropped = plain_name(storage, text), dropped_names(settings, text)
    own = {video.partition("/")[0] for video in dropped}
    tables = [
        (part, read_catalogue(storage, source, part), not own or source in own)
        for part in catalogued_parts(storage)
        for source in sorted(settings.sources)
        if storage.exists(snapshot_name(source, part))
    ]
    file = re.split(r"[\\/]", name)[-1]
    names = [name, *dropped]
    ways = [(names, False, False)]
    if alike:
        ways += [(names, True, False), ([file], False, True), ([file], True, True)]
    for wanted, any_letters, only_near in ways:
        found = [
            (part, row)
            for part, table, is_near in tables
            if is_near or not only_near
            for row in _rows(table, wanted, any_letters)
        ]
        if found:
            return found
    return []


def find_video(storage: Storage, settings: Settings, text: str) -> str:
    """The one video, `source/id`, that is catalogued or was withdrawn.

    Raises:
        NotFoundError: there is none.
        ValueError: there are several; they are named.
    """
    name, dropped = plain_name(storage, text), dropped_names(settings, text)
    withdrawn = [v for v in Withdrawals.read(storage).videos if is_named(v, name, dropped)]
    found = {row.video for _, row in catalogued_rows(storage, settings, text)} | set(withdrawn)
    if not found and dropped:
        source = dropped[0].partition("/")[0]
        raise NotFoundError(
            f"{text} is below the folder of the source {source}; no video that is catalogued under "
            f"{storage.root} is this file, which rows would call {' or '.join(dropped)}"
        )
    if not found:
        raise NotFoundError(f"{text}: no such video is catalogued under {storage.root}")
    if len(found) > 1:
        raise ValueError(f"{text} may be {', '.join(sorted(found))}: give the source as well")
    return found.pop()


def is_named(video: str, name: str, dropped: list[str]) -> bool:
    """Whether `source/id` is what a text means.

    Args:
        name: the text's plain name; dropped: what a file of a drop source may be.
    """
    return name in (video, video.partition("/")[2]) or video in dropped


def _rows(table: pa.Table, names: list[str], in_any_letters: bool) -> list[VideoRow]:
    """Rows of a table whose video is one of `names`, or whose id is the first of them."""
    videos, ids = table["video"], table["id"]
    if in_any_letters:
        names = [name.lower() for name in names]
        videos, ids = pc.utf8_lower(videos), pc.utf8_lower(ids)
    wanted = pc.or_(pc.is_in(videos, pa.array(names)), pc.equal(ids, names[0]))
    return [VideoRow(**raw) for raw in table.filter(wanted).select(SCHEMA.names).to_pylist()]
