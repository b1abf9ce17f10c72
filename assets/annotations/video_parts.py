"""Which part each video belongs to: decided when it is first seen, and kept for ever.

The first collection deals its videos by a stable hash to as many parts as the settings say, or as
their number is worth. Whatever is seen
later makes one new part each time. Rows may come, change and go: a video keeps its part, so that
what was made of the other parts stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from assets.annotations.record import AnnotationRecord
from assets.deployment.parts import part_of, parts_for
from training.formats import layout
from training.formats.storage import Storage

SCHEMA = pa.schema([("video", pa.string()), ("part", pa.int32())])
_KEPT = b"hourllava.kept"


@dataclass(slots=True)
class VideoParts:
    """The parts, and the part of each video that was ever seen.

    Attributes:
        names: of each part, the repository or file that its videos were first seen in.
        part_of: `source/id` -> number of its part.
        landed: landing files in the order in which they were first seen, also those that are gone.
    """

    names: list[str] = field(default_factory=list)
    part_of: dict[str, int] = field(default_factory=dict)
    landed: list[str] = field(default_factory=list)

    def add(self, seen: Sequence[tuple[str, Iterable[str]]], parts: int | None) -> bool:
        """Give videos that are seen for the first time their part; whether there were any.

        Args:
            seen: origin and its videos.
            parts: how many the very first videos are dealt to; None: as many as they are worth.
        """
        new: dict[str, str] = {}
        for origin, videos in seen:
            for video in videos:
                if video not in self.part_of:
                    new.setdefault(video, origin)
        if not new and (self.names or not seen):
            return False
        origins = sorted(set(new.values())) or [origin for origin, _ in seen]
        name = f"{origins[0]} and {len(origins) - 1} more" if len(origins) > 1 else origins[0]
        if not self.names:
            parts = parts or parts_for(len(new))
            self.names = [name] * parts
            self.part_of = {video: part_of(video, parts) for video in new}
        else:
            self.part_of |= dict.fromkeys(new, len(self.names))
            self.names.append(name)
        return True

    @staticmethod
    def read(storage: Storage) -> VideoParts:
        """What is recorded; where the record is lost, what the annotations say of it."""
        if storage.exists(layout.VIDEO_PARTS):
            table = pq.read_table(storage.local(layout.VIDEO_PARTS))
            kept = json.loads(table.schema.metadata[_KEPT])
        elif storage.exists(layout.ANNOTATIONS):
            table = pq.read_table(storage.local(layout.ANNOTATIONS), columns=["video", "part"])
            table = table.group_by("video").aggregate([("part", "min")])
            table = table.rename_columns(["video", "part"])
            kept = _recorded(storage)
        else:
            return VideoParts()
        videos, parts = table["video"].to_pylist(), table["part"].to_pylist()
        return VideoParts(**kept, part_of=dict(zip(videos, parts, strict=True)))

    def write(self, storage: Storage) -> None:
        """Record it, the same bytes for the same content."""
        columns = [list(self.part_of), list(self.part_of.values())]
        table = pa.table(columns, SCHEMA)
        table = table.take(pc.sort_indices(table, [("part", "ascending"), ("video", "ascending")]))
        kept = {"names": self.names, "landed": self.landed}
        schema = SCHEMA.with_metadata({_KEPT: json.dumps(kept)})
        with storage.writing(layout.VIDEO_PARTS) as temporary:
            pq.write_table(table.cast(schema), temporary, compression="zstd")


def _recorded(storage: Storage) -> dict[str, list[str]]:
    record = AnnotationRecord.read(storage)
    assert record is not None
    landed = [origin.file for origin in record.origins if origin.landed]
    return {"names": record.part_names, "landed": landed}
