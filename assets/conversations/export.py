"""All samples of long videos as one JSON file in LLaVA format, for people and other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from assets.conversations.grouping import conversations_name
from assets.conversations.samples import read_samples
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.storage import Storage


def export_llava_json(
    storage: Storage, parts: Sequence[int], log: Callable[[str], None] = print
) -> int:
    """Write all samples of `parts` to `VideoMarathon/jsons/videomarathon.json`; returns how
    many.

    One sample a line inside one JSON array, so that it can be read both whole and line by line.
    Parts come in the order of their numbers.
    """
    written = 0
    with storage.writing(layout.CONVERSATIONS_JSON) as path, open(path, "wb") as file:
        file.write(b"[")
        for part in sorted(parts):
            for sample in read_samples(storage.local(conversations_name(part))):
                entry = {
                    "id": sample["id"],
                    "data_source": sample["source"],
                    "video": sample["video"],
                    "conversations": orjson.Fragment(sample["conversations"]),
                }
                file.write(b",\n" if written else b"\n")
                file.write(orjson.dumps(entry))
                written += 1
        file.write(b"\n]\n")
    log(f"jsons/videomarathon.json: {written:,} samples of {LONG_VIDEO_KIND}")
    return written
