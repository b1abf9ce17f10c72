"""A few samples as a person wants to see them: a table row each, and one small picture of their
images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageOps

from training.formats.sample import Sample

PICTURES = 8  # images on a contact sheet
TILE = 144  # pixels; the sheet goes into the event log, so it has to stay small
TEXT = 600  # characters of a conversation


def example_row(sample: Sample) -> dict[str, Any]:
    """One sample as flat text and numbers."""
    text = "\n".join(f"{turn['from']}: {turn['value']}" for turn in sample.conversations)
    return {
        "id": sample.id,
        "modality": sample.modality,
        "shown": sample.video or f"{len(sample.images)} images",
        "turns": len(sample.conversations),
        "conversation": text if len(text) <= TEXT else f"{text[:TEXT]} ...",
    }


def contact_sheet(images: Sequence[bytes]) -> bytes:
    """PNG of encoded images side by side, each fitted into a square."""
    sheet = Image.new("RGB", (TILE * len(images), TILE), "white")
    for index, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (TILE, TILE))
            try:
                picture = ImageOps.exif_transpose(image).convert("RGB")
            except (OSError, SyntaxError, ValueError):
                continue  # kept as it came and not decodable: the sheet shows a white square
        picture.thumbnail((TILE, TILE))
        sheet.paste(
            picture, (TILE * index + (TILE - picture.width) // 2, (TILE - picture.height) // 2)
        )
    out = io.BytesIO()
    sheet.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()
