"""A small picture of what went into the encoder: one row for each of a few videos, frames from
first to last.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from training.formats.hashing import stable_hash

ROWS, COLUMNS, THUMBNAIL = 3, 8, 72


class FrameStrip:
    """Collects thumbnails while frames pass by. Which videos are shown depends on their names only."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, dict[int, list[int]], list[Any]]] = {}

    def expect(self, job: int, video: str, frames: int) -> None:
        """A video of so many frames begins."""
        columns: dict[int, list[int]] = {}
        for column in range(COLUMNS):
            columns.setdefault((frames - 1) * column // max(1, COLUMNS - 1), []).append(column)
        self._rows[job] = (video, columns, [None] * COLUMNS)
        if len(self._rows) > ROWS:
            del self._rows[
                max(self._rows, key=lambda job: stable_hash("strip", self._rows[job][0]))
            ]

    def offer(self, job: int, k: int, picture: np.ndarray) -> None:
        """Frame ``k`` of a video passes by."""
        if job in self._rows:
            _, columns, row = self._rows[job]
            for column in columns.get(k, ()):
                row[column] = Image.fromarray(picture).resize(
                    (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR
                )

    def forget(self, job: int) -> None:
        self._rows.pop(job, None)

    def png(self) -> bytes:
        """The strip; empty when no video was decoded."""
        rows = [
            row for _, _, row in sorted(self._rows.values(), key=lambda item: item[0]) if any(row)
        ]
        if not rows:
            return b""
        sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, len(rows) * THUMBNAIL))
        for y, row in enumerate(rows):
            for x, thumbnail in enumerate(row):
                if thumbnail is not None:
                    sheet.paste(thumbnail, (x * THUMBNAIL, y * THUMBNAIL))
        out = io.BytesIO()
        sheet.quantize(128).save(out, "PNG", optimize=True)
        return out.getvalue()
