"""A small picture of what went into the encoder: one row for each of a few videos, with thumbnails
from its first picture to its last.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from training.formats.hashing import stable_hash

ROWS, COLUMNS, THUMBNAIL_SIDE = 3, 8, 72
CAPTION_HEIGHT = 12
LONGEST_NAME = 80  # characters
COLOURS = 128  # of the PNG, to keep it small


@dataclass(slots=True)
class StripRow:
    """The thumbnails of one video.

    Attributes:
        video: `<source>/<id>`.
        duration: in seconds.
        columns: by the number of a picture, where its thumbnail goes.
        thumbnails: from left to right; None while a picture has not come.
    """

    video: str
    duration: float
    columns: dict[int, list[int]]
    thumbnails: list[Image.Image | None] = field(default_factory=lambda: [None] * COLUMNS)


class FrameStrip:
    """Collects thumbnails while pictures pass by.

    Which videos are shown depends on their names only, so the same videos give the same strip.
    """

    def __init__(self) -> None:
        self._rows: dict[int, StripRow] = {}

    def begin(self, job: int, video: str, frames: int, duration: float) -> None:
        """A job begins whose video has so many pictures, and so many seconds."""
        columns: dict[int, list[int]] = {}
        for column in range(COLUMNS):
            columns.setdefault((frames - 1) * column // (COLUMNS - 1), []).append(column)
        self._rows[job] = StripRow(video, duration, columns)
        if len(self._rows) > ROWS:
            del self._rows[
                max(self._rows, key=lambda job: stable_hash("strip", self._rows[job].video))
            ]

    def add(self, job: int, k: int, picture: np.ndarray) -> None:
        """Picture `k` of a job's video, uint8 [S, S, 3]. Most of them are not shown."""
        if job in self._rows:
            row = self._rows[job]
            for column in row.columns.get(k, ()):
                row.thumbnails[column] = Image.fromarray(picture).resize(
                    (THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BILINEAR
                )

    def remove(self, job: int) -> None:
        """Do not show a job's video: it has failed."""
        self._rows.pop(job, None)

    def png(self) -> bytes:
        """The strip as a PNG, each video's name and the times of its first and last picture above
        its row; empty when no video was decoded.
        """
        rows = [
            row
            for row in sorted(self._rows.values(), key=lambda row: row.video)
            if any(row.thumbnails)
        ]
        if not rows:
            return b""
        height = CAPTION_HEIGHT + THUMBNAIL_SIDE
        sheet = Image.new("RGB", (COLUMNS * THUMBNAIL_SIDE, len(rows) * height), "white")
        pen = ImageDraw.Draw(sheet)
        for y, row in enumerate(rows):
            pen.text((1, y * height), _caption(row), fill="black")
            for x, thumbnail in enumerate(row.thumbnails):
                if thumbnail is not None:
                    place = (x * THUMBNAIL_SIDE, y * height + CAPTION_HEIGHT)
                    sheet.paste(thumbnail, place)
        out = io.BytesIO()
        sheet.quantize(COLOURS).save(out, "PNG", optimize=True)
        return out.getvalue()

    def table(self) -> list[dict[str, str]]:
        """The same in words: a row for each video, with the time of each picture."""
        return [
            {
                "video": row.video,
                "pictures at": ", ".join(
                    _clock(row.duration * column / (COLUMNS - 1)) for column in range(COLUMNS)
                ),
            }
            for row in sorted(self._rows.values(), key=lambda row: row.video)
            if any(row.thumbnails)
        ]


def _caption(row: StripRow) -> str:
    """The video, and when its first and its last picture are, in letters that every font has."""
    name = row.video.encode("ascii", "replace").decode()[:LONGEST_NAME]
    return f"{name}   {_clock(0)} to {_clock(row.duration)}"


def _clock(seconds: float) -> str:
    """`1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
