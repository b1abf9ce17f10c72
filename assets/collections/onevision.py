"""LLaVA-OneVision: Parquet files with the images inside -> annotation files, and image files that
keep the hub's own bytes.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import orjson

from assets.collections.collection import Collection, CollectionReport
from assets.collections.onevision_rows import (
    ImageFolder,
    PackedImages,
    parquet_rows,
    plain_rows,
)
from assets.deployment.settings import Settings
from assets.fetching.archive_members import stage_archive
from assets.fetching.hub import Hub, HubFile
from assets.fetching.split_files import is_archive, joined
from training.formats import layout
from training.formats.hashing import hash_file_xxh64
from training.formats.receipts import FileEntry
from training.formats.storage import Storage
from training.progress import Progress

# Annotation file of the mixture -> configuration of the hub's dataset, where the names differ.
CONFIGS = Path(__file__).with_name("onevision_configs.csv")


def collect_onevision(
    storage: Storage,
    settings: Settings,
    log: Callable[[str], None],
    damaged: Container[str] = (),
) -> CollectionReport:
    """Fetch what the mixture names of LLaVA-OneVision into `annotations/<name>` and `images/`.

    Raises:
        OperatorError: the hub refuses, the disk is full.
        AnnotationError: an annotation file is missing and all are required.
    """
    chosen = settings.collections
    hub = Hub(settings.hub_endpoint, settings.download, log)
    repo = hub.repo(chosen.onevision_repo, chosen.onevision_revision)
    listed, incomplete = joined(repo.files())
    for _, problem in incomplete:
        log(f"{repo}: archive left out, {problem.reason}: {problem}")
    collection = Collection(storage, settings, repo, layout.LLAVA_ONEVISION, log, damaged)
    configs = read_configs()
    inputs = {name: _inputs(name, configs.get(name), listed) for name in collection.wanted}
    todo = collection.unfinished(inputs)
    pieces = [
        _Piece(name, index, file, tuple(files[1:]) if is_archive(files[-1].name) else ())
        for name, files in todo.items()
        for index, file in enumerate(files)
        if not is_archive(file.name)
    ]
    progress = Progress(log, len(pieces), f"files of {collection.name}")

    def convert(piece: _Piece) -> Counter[str]:
        counts = _convert(collection, listed, piece)
        progress.advance()
        return counts

    totals: dict[str, Counter[str]] = defaultdict(Counter)
    with ThreadPoolExecutor(settings.download.workers) as pool:
        for piece, counts in zip(pieces, pool.map(convert, pieces), strict=True):
            totals[piece.annotation] += counts
    for name, files in todo.items():
        fragments = [piece.fragment(collection) for piece in pieces if piece.annotation == name]
        with storage.writing(layout.collection_annotations(collection.name, name)) as temporary:
            _join(fragments, temporary, name)
        group = _folder_name(name)
        collection.write_media(group, _written_images(fragments))
        collection.finish(name, files, dict(totals[name]), group)
        shutil.rmtree(collection.scratch / _folder_name(name), ignore_errors=True)
    return collection.report(inputs)


def _inputs(name: str, config: str | None, listed: list[HubFile]) -> list[HubFile]:
    """The hub's files for an annotation file: the Parquet files of its configuration, or the
    annotation file as it is.
    """
    for folder in (config, name.rsplit(".", 1)[0]):
        found = [
            file
            for file in listed
            if folder
            and file.path.startswith(f"{folder}/train-")
            and file.path.endswith(".parquet")
        ]
        if found:
            return found
    plain = [file for file in listed if file.path == name]
    plain = plain or [file for file in listed if file.path.endswith(f"/{name}")]
    plain = plain or _raw_annotations(name, config, listed)
    if len(plain) != 1:
        return []
    folder = str(PurePosixPath(plain[0].path).parent)
    beside = (file for file in listed if str(PurePosixPath(file.path).parent) == folder)
    archives = [file for file in beside if is_archive(file.name)]
    if folder == ".":  # those of all sets lie there
        archives = [file for file in archives if file.name.startswith(_set_name(name))]
    return [*plain, *archives]


def _raw_annotations(name: str, config: str | None, listed: list[HubFile]) -> list[HubFile]:
    """The annotation file of a configuration that is no Parquet: by its name without the additions
    that differ between the mixture and the hub, or the only one of the configuration's folder.
    """
    files = [file for file in listed if file.path.endswith((".json", ".jsonl"))]
    same = [file for file in files if _set_name(file.name) == _set_name(name)]
    folders = {config, _set_name(name), name.rsplit(".", 1)[0]}
    return same or [file for file in files if str(PurePosixPath(file.path).parent) in folders]


def _set_name(name: str) -> str:
    """`ureader_kg` of `ureader_kg_sft.json` and of `ureader_kg_processed.json`."""
    return re.sub(r"(_(sft|processed|raw|annotations?|qa_processed))*\.jsonl?$", "", name)


def read_configs() -> dict[str, str]:
    """Annotation file -> configuration, of the table beside this file."""
    with open(CONFIGS, newline="") as file:
        return {row["annotation"]: row["config"] for row in csv.DictReader(file)}


@dataclass(frozen=True, slots=True)
class _Piece:
    """One of the hub's files, its place in the annotation file that it becomes part of, and the
    archives of its images.
    """

    annotation: str
    index: int
    file: HubFile
    archives: tuple[HubFile, ...] = ()

    @property
    def images(self) -> str:
        """The folder of its images, as rows name it."""
        return f"{_folder_name(self.annotation)}/{self.index:05d}"

    def fragment(self, collection: Collection) -> Path:
        """Where its rows wait, one a line, until all pieces are there."""
        folder = collection.scratch / _folder_name(self.annotation)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.file.checksum}.jsonl"


def _convert(collection: Collection, listed: list[HubFile], piece: _Piece) -> Counter[str]:
    """Write the piece's image files and its fragment; returns what was counted.

    The counts lie beside the fragment and are written last: a piece that has them is finished, and
    is not fetched again after a kill.
    """
    fragment, file = piece.fragment(collection), piece.file
    record = fragment.with_suffix(".counts")
    if not (record.exists() and fragment.with_suffix(".images").exists()):
        collection.disk.check(2 * file.size)
        local = collection.repo.download(file, fragment.with_suffix(".source"))
        counts: Counter[str] = Counter()
        images_name = f"{layout.ONEVISION_IMAGES}/{piece.images}"
        with (
            collection.storage.writing_folder(images_name) as folder,
            open(fragment, "wb") as lines,
        ):
            images = ImageFolder(folder, piece.images, counts)
            if file.path.endswith(".parquet"):
                rows = parquet_rows(local, file.path, images)
            else:
                packed = _packed_images(collection, piece, listed, local)
                rows = plain_rows(collection.repo, listed, file, local, images, packed)
            for row in rows:
                counts["rows"] += 1
                lines.write(orjson.dumps(row) + b"\n")
            _list_images(folder, images_name, fragment)
        record.write_text(json.dumps(counts))
        local.unlink()
    return Counter(json.loads(record.read_text()))


def _packed_images(
    collection: Collection, piece: _Piece, listed: list[HubFile], local: Path
) -> PackedImages:
    """The images of a plain annotation file that lie in archives beside it, staged on our disk.

    Raises:
        TransferError: an archive cannot be read.
    """
    packed = PackedImages(local, piece.file, listed)
    for archive in piece.archives:
        folder = collection.scratch / _folder_name(piece.annotation) / archive.checksum
        packed.members |= stage_archive(
            collection.repo, archive, folder, packed.is_wanted, collection.disk, collection.log
        )
    return packed


def _list_images(folder: Path, images_name: str, fragment: Path) -> None:
    """Write the names, sizes and hashes of a piece's images beside its fragment."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = [
        [
            f"{images_name}/{path.relative_to(folder).as_posix()}",
            path.stat().st_size,
            f"xxh64:{hash_file_xxh64(path)}",
        ]
        for path in found
    ]
    fragment.with_suffix(".images").write_bytes(orjson.dumps(entries))


def _written_images(fragments: list[Path]) -> Iterator[FileEntry]:
    """The images of several pieces, as they were when they were written."""
    for fragment in fragments:
        for entry in orjson.loads(fragment.with_suffix(".images").read_bytes()):
            yield FileEntry(*entry)


def _join(fragments: list[Path], target: Path, name: str) -> None:
    """Lines of several files, as one JSON list, or as lines where the name says so; a row a line
    either way.
    """
    first, between, last = b"[\n", b",\n", b"\n]\n"
    if name.endswith(".jsonl"):
        first, between, last = b"", b"\n", b"\n"
    with open(target, "wb") as out:
        out.write(first)
        before = b""
        for fragment in fragments:
            with open(fragment, "rb") as lines:
                for line in lines:
                    out.write(before + line.rstrip(b"\n"))
                    before = between
        out.write(last)


def _folder_name(annotation: str) -> str:
    """An annotation file's name as one folder name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", annotation.rsplit(".", 1)[0])
