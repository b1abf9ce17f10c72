"""The files that captions are kept in: clips, events and videos of one source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.captions.describe import Described, Event, Seen
from assets.captions.forms import SIDES, ClipCaption, FoundEvent
from assets.captions.frames import Clip
from assets.captions.own_videos import Content
from training.formats import layout
from training.formats.storage import Storage

CLIPS, EVENTS, VIDEOS = FILES = "clips.parquet", "events.parquet", "videos.parquet"
_MADE_BY = [("model", pa.string()), ("texts", pa.string())]
CLIP_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("clip", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        *((side, pa.string()) for side in SIDES),
        ("reason", pa.string()),
        ("prompt_key", pa.string()),
        *_MADE_BY,
    ]
)
EVENT_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("event", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("first_clip", pa.int32()),
        ("last_clip", pa.int32()),
        ("title", pa.string()),
        ("summary", pa.string()),
        ("description", pa.string()),
        *_MADE_BY,
    ]
)
VIDEO_SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("file", pa.string()),
        ("size", pa.int64()),
        ("changed_ns", pa.int64()),
        ("sha256", pa.string()),
        ("duration", pa.float64()),
        ("clips", pa.int32()),
        ("captioned", pa.int32()),
        ("description", pa.string()),
        ("reason", pa.string()),
        *_MADE_BY,
    ]
)


def clip_row(video: str, seen: Seen, made_by: Mapping[str, str]) -> dict[str, Any]:
    """A clip as a row."""
    sides = seen.caption.model_dump() if seen.caption else dict.fromkeys(SIDES)
    clip = seen.clip
    place = {"video": video, "clip": clip.number, "start": clip.start, "end": clip.end}
    return {**place, **sides, "reason": seen.reason, "prompt_key": seen.key, **made_by}


def event_row(video: str, number: int, event: Event, made_by: Mapping[str, str]) -> dict[str, Any]:
    """An event as a row."""
    place = {"video": video, "event": number, "start": event.start, "end": event.end}
    return {**place, **event.found.model_dump(), "description": event.text, **made_by}


def write_table(storage: Storage, rel: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Publish rows as a Parquet file: the same rows give the same bytes."""
    with storage.writing(rel) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")


def known_contents(storage: Storage, source: str) -> dict[str, Content]:
    """`source/id` -> what was found in its file before; nothing where captions were never made."""
    rel = layout.captions(source, VIDEOS)
    if not storage.exists(rel):
        return {}
    table = pq.read_table(storage.local(rel))
    names = ["size", "changed_ns", "sha256", "duration"]
    return {
        row["video"]: Content(*(row[name] for name in names))
        for row in table.to_pylist()
        if row["sha256"]
    }


def read_described(storage: Storage, source: str) -> tuple[list[Described], dict[str, float]]:
    """What is known of a source's videos, and how long each is in seconds."""
    tables = {
        name: pq.read_table(storage.local(layout.captions(source, name))).to_pylist()
        for name in (CLIPS, EVENTS, VIDEOS)
    }
    found = {
        row["video"]: Described(row["video"], text=row["description"] or "")
        for row in tables[VIDEOS]
        if row["captioned"]
    }
    for row in tables[CLIPS]:
        if row["video"] in found:
            clip = Clip(row["clip"], row["start"], row["end"])
            sides = {side: row[side] for side in SIDES}
            caption = None if row["reason"] else ClipCaption(**sides)
            found[row["video"]].clips.append(Seen(clip, caption, row["reason"], row["prompt_key"]))
    for row in tables[EVENTS]:
        if row["video"] in found:
            names = ("first_clip", "last_clip", "title", "summary")
            one = FoundEvent(**{name: row[name] for name in names})
            found[row["video"]].events.append(
                Event(one, row["start"], row["end"], row["description"] or "")
            )
    durations = {row["video"]: row["duration"] for row in tables[VIDEOS] if row["captioned"]}
    return list(found.values()), durations
