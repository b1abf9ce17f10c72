"""The two forms of LLaVA-OneVision's files -> rows, and image files with the hub's own bytes."""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from assets.fetching.errors import AnnotationError
from assets.fetching.hub import HubFile, HubRepo
from assets.fetching.table_files import read_rows

BATCH_ROWS = 64  # images are large, and a batch of them is held in memory
COLUMNS = ("id", "image", "conversations", "data_source")
# First bytes of a file -> its suffix; WebP has its mark further in.
IMAGE_KINDS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Where the images of one file go.

    Attributes:
        path: the folder that they are written to.
        name: the same folder as the rows name it.
        counts: images are counted here, and those that are not there.
    """

    path: Path
    name: str
    counts: Counter[str]

    def stored(self, file_name: str) -> str:
        """Count an image that was written; returns its name for the row."""
        self.counts["images"] += 1
        return f"{self.name}/{file_name}"

    def missing(self, image: str, why: str) -> str:
        """Count an image that is not there; returns a name that no file has."""
        self.counts[why] += 1
        return f"{self.name}/missing/{PurePosixPath(image).name}"


def parquet_rows(path: Path, label: str, images: ImageFolder) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file that holds its images.

    Args:
        label: what the file is called in messages.

    Raises:
        AnnotationError: there is no column of conversations.
    """
    with pq.ParquetFile(path) as source:
        names = source.schema_arrow.names
        if "conversations" not in names:
            raise AnnotationError(
                f"{label}: columns {', '.join(names)}; expected {', '.join(COLUMNS)}"
            )
        wanted = [name for name in COLUMNS if name in names]
        number = 0
        for batch in source.iter_batches(BATCH_ROWS, columns=wanted):
            for row in batch.to_pylist():
                write = partial(_write_image, images, number)
                if stored := _store(row.pop("image", None), write):
                    row["image"] = stored
                number += 1
                yield row


def _write_image(images: ImageFolder, row_number: int, place: str, image: dict[str, Any]) -> str:
    data = image.get("bytes")
    if not data:
        return images.missing(image.get("path") or "unnamed", "images without bytes")
    name = f"{row_number:06d}{place}{_image_suffix(data)}"
    (images.path / name).write_bytes(data)
    return images.stored(name)


class PackedImages:
    """The images that the rows of an annotation file name and the repository holds in archives.

    Attributes:
        members: name in an archive -> file on our disk.
    """

    def __init__(self, path: Path, file: HubFile, listed: list[HubFile]) -> None:
        """`path`: where `file`, the annotation file, lies on this machine."""
        self.members: dict[str, Path] = {}
        known, base = {entry.path for entry in listed}, PurePosixPath(file.path).parent
        self._wanted: dict[str, list[str]] = defaultdict(list)  # last step -> images
        for row in read_rows(path, file.path):
            value = row.value.get("image") if isinstance(row.value, dict) else None
            for image in value if isinstance(value, list) else [value]:
                if isinstance(image, str) and not known & set(_places(image, base)):
                    self._wanted[PurePosixPath(image).name].append(image)

    def is_wanted(self, member: str) -> bool:
        """Whether a member of an archive may be the image of a row."""
        namesakes = self._wanted.get(PurePosixPath(member).name, ())
        return any(_ends_alike(member, image) for image in namesakes)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = defaultdict(list)
        for member in self.members:
            names[PurePosixPath(member).name].append(member)
        return names

    def find(self, image: str) -> Path | None:
        """The file of an image, where one member alone can be it."""
        namesakes = self._by_name.get(PurePosixPath(image).name, [])
        found = [member for member in namesakes if f"/{member}".endswith(f"/{image}")]
        found = found or [member for member in namesakes if f"/{image}".endswith(f"/{member}")]
        return self.members[found[0]] if len(found) == 1 else None


def _ends_alike(member: str, image: str) -> bool:
    return f"/{member}".endswith(f"/{image}") or f"/{image}".endswith(f"/{member}")


def _places(image: str, base: PurePosixPath) -> tuple[str, ...]:
    """Where in the repository an image may lie."""
    return (str(base / image), image, f"images/{image}")


def plain_rows(
    repo: HubRepo,
    listed: list[HubFile],
    file: HubFile,
    path: Path,
    images: ImageFolder,
    packed: PackedImages,
) -> Iterator[dict[str, Any]]:
    """Rows of an annotation file whose images are files of the repository, or lie in archives.

    Args:
        listed: all files of the repository.
        path: where `file`, the annotation file, lies on this machine.
    """
    by_path = {entry.path: entry for entry in listed}
    base = PurePosixPath(file.path).parent
    fetched: dict[str, str] = {}

    def fetch(_: str, image: Any) -> str:
        places = _places(str(image), base)
        found = next((by_path[place] for place in places if place in by_path), None)
        if found is None and (member := packed.find(str(image))) is not None:
            if str(member) not in fetched:
                name = f"{len(fetched):06d}{member.suffix}"
                shutil.move(member, images.path / name)
                fetched[str(member)] = images.stored(name)
            return fetched[str(member)]
        if found is None:
            return images.missing(str(image), "images not in the repository")
        if found.path not in fetched:
            name = f"{len(fetched):06d}{PurePosixPath(found.path).suffix.lower()}"
            repo.download(found, images.path / name)
            fetched[found.path] = images.stored(name)
        return fetched[found.path]

    for row in read_rows(path, file.path):
        if not isinstance(row.value, dict):
            images.counts["rows that are not objects"] += 1
            continue
        value = dict(row.value)
        if stored := _store(value.get("image"), fetch):
            value["image"] = stored
        yield value


def _store(given: Any, store: Callable[[str, Any], str]) -> str | list[str] | None:
    """Store a row's image or list of images; returns names in the same form, None for no image.

    Args:
        store: takes what tells the images of a row apart ("-0", "-1", ...; "" for a single one) and
            the image; returns its name.
    """
    if isinstance(given, list):
        return [store(f"-{place}", image) for place, image in enumerate(given)] or None
    return store("", given) if given else None


def _image_suffix(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in IMAGE_KINDS if data.startswith(magic)), ".img")
