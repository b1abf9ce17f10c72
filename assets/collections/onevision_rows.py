"""LLaVA-OneVision's two forms of a set -> rows, and image files with the bytes that the hub serves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from assets.fetching.errors import AnnotationError
from assets.fetching.hub import HubFile, HubRepo
from assets.fetching.table_files import read_rows

BATCH_ROWS = 64  # images are large, and a batch of them is held in memory
IMAGE_KINDS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def parquet_rows(
    path: Path, label: str, images: Path, folder: str, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file that holds its images.

    Args:
        label: what the file is called in messages.
        images: where the image files are written; ``folder`` is the same place as the rows name it.
        counts: images are counted here.

    Raises:
        AnnotationError: there is no column of conversations.
    """
    with pq.ParquetFile(path) as source:
        names = source.schema_arrow.names
        if "conversations" not in names:
            raise AnnotationError(
                f"{label}: columns {', '.join(names)}; expected id, image, conversations, "
                "data_source"
            )
        wanted = [name for name in ("id", "image", "conversations", "data_source") if name in names]
        number = 0
        for batch in source.iter_batches(BATCH_ROWS, columns=wanted):
            for row in batch.to_pylist():
                given = row.pop("image", None)
                stored = []
                for place, image in enumerate(
                    given if isinstance(given, list) else [given] if given else []
                ):
                    data = image.get("bytes")
                    if not data:
                        counts["images without bytes"] += 1
                        stored.append(
                            f"{folder}/missing/{PurePosixPath(image.get('path') or 'unnamed').name}"
                        )
                        continue
                    step = f"{number:06d}{f'-{place}' if isinstance(given, list) else ''}{_image_suffix(data)}"
                    (images / step).write_bytes(data)
                    counts["images"] += 1
                    stored.append(f"{folder}/{step}")
                if stored:
                    row["image"] = stored if isinstance(given, list) else stored[0]
                number += 1
                yield row


def plain_rows(
    repo: HubRepo,
    listed: list[HubFile],
    file: HubFile,
    path: Path,
    images: Path,
    folder: str,
    counts: Counter[str],
) -> Iterator[dict[str, Any]]:
    """Rows of an annotation file whose images are files of the repository."""
    by_path = {entry.path: entry for entry in listed}
    base = PurePosixPath(file.path).parent
    taken: dict[str, str] = {}
    for row in read_rows(path, file.path):
        if not isinstance(row.value, dict):
            counts["rows that are not objects"] += 1
            continue
        value = dict(row.value)
        given = value.get("image")
        stored = []
        for image in given if isinstance(given, list) else [given] if given else []:
            places = (str(base / str(image)), str(image), f"images/{image}")
            found = next((by_path[place] for place in places if place in by_path), None)
            if found is None:
                counts["images not in the repository"] += 1
                stored.append(f"{folder}/missing/{PurePosixPath(str(image)).name}")
                continue
            if found.path not in taken:
                step = f"{len(taken):06d}{PurePosixPath(found.path).suffix.lower()}"
                repo.download(found, images / step)
                taken[found.path] = f"{folder}/{step}"
                counts["images"] += 1
            stored.append(taken[found.path])
        if stored:
            value["image"] = stored if isinstance(given, list) else stored[0]
        yield value


def _image_suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in IMAGE_KINDS if data.startswith(magic)), ".img")
