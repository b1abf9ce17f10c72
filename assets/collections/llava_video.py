"""LLaVA-Video-178K: annotation files, and short videos out of tar archives, probed like long
ones.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import orjson

from assets.collections.collection import Collection, CollectionReport
from assets.deployment.settings import Settings
from assets.fetching.archive_members import stage_archive
from assets.fetching.disk import remove_scratch
from assets.fetching.errors import TransferError
from assets.fetching.hub import Hub, HubFile
from assets.fetching.probe import InvalidVideo, ProbePool, check_video
from assets.fetching.split_files import is_archive, joined
from assets.fetching.table_files import read_rows
from training.formats import layout
from training.formats.hashing import hash_file_xxh64
from training.formats.receipts import FileEntry, describe_files
from training.formats.storage import Storage


def collect_llava_video(
    storage: Storage,
    settings: Settings,
    log: Callable[[str], None],
    damaged: Container[str] = (),
) -> CollectionReport:
    """Fetch what the mixture names of LLaVA-Video-178K into `annotations/<name>` and
    `videos/<folder>/`.

    Raises:
        OperatorError: the hub refuses, the disk is full.
        AnnotationError: an annotation file is missing and all are required.
    """
    chosen = settings.collections
    hub = Hub(settings.hub_endpoint, settings.download, log)
    repo = hub.repo(chosen.video_repo, chosen.video_revision)
    listed, incomplete = joined(repo.files())
    for _, problem in incomplete:
        log(f"{repo}: archive left out, {problem.reason}: {problem}")
    collection = Collection(storage, settings, repo, layout.LLAVA_VIDEO, log, damaged)
    archives: dict[str, list[HubFile]] = defaultdict(list)
    for file in listed:
        if is_archive(file.name):
            archives[_folder(file)].append(file)
    inputs: dict[str, list[HubFile]] = {}
    for name in collection.wanted:
        source = _annotation_source(name, listed)
        inputs[name] = [source, *archives[_folder(source)]] if source else []
        if source and not archives[_folder(source)]:
            # Its rows would all be dropped, and with them every part of the kind would fail.
            collection.lacks[name] = f"no videos beside {source.path}"
            inputs[name] = []
    todo = collection.unfinished(inputs)
    local: dict[str, Path] = {}
    wanted: dict[str, set[str]] = defaultdict(set)
    for name, (file, *_) in todo.items():
        wanted[_folder(file)] |= set()  # a folder of which no row names a video is there, too
        local[name] = repo.download(file, collection.scratch / file.checksum)
        for row in read_rows(local[name], file.path):
            if isinstance(row.value, dict) and isinstance(row.value.get("video"), str):
                wanted[_folder(file)].add(row.value["video"])
    with ProbePool() as probes:
        unpacked = {
            folder: _FolderVideos(collection, probes, folder, videos).unpack(archives[folder])
            for folder, videos in sorted(wanted.items())
        }
    for folder in sorted({_folder(files[0]) for files in todo.values()}):
        collection.write_media(_group(folder), _folder_entries(collection, folder, unpacked))
    for name, files in todo.items():
        counts, folder = _write_annotations(storage, name, local[name], files[0]), _folder(files[0])
        whole = unpacked[folder].whole if folder in unpacked else True
        collection.finish(name, files, counts, _group(folder), whole=whole)
    if all(result.whole for result in unpacked.values()):
        remove_scratch(collection.scratch)
    report = collection.report(inputs)
    report.counts["videos"] = len(storage.list(layout.LLAVA_VIDEO_FILES))
    left_out = sum((result.left_out for result in unpacked.values()), Counter[str]())
    report.counts |= {f"left out: {reason}": count for reason, count in left_out.items()}
    return report


def _annotation_source(name: str, listed: list[HubFile]) -> HubFile | None:
    """The repository's file for an annotation file of the mixture, whose names leave `_processed`
    out.
    """
    stem, suffix = name.rsplit(".", 1)
    for wanted in (f"{stem}_processed.{suffix}", name):
        found = [file for file in listed if file.name == wanted]
        if len(found) == 1:
            return found[0]
    return None


def _folder(file: HubFile) -> str:
    return str(PurePosixPath(file.path).parent)


@dataclass(slots=True)
class _Unpacked:
    """What became of the archives of one folder.

    Attributes:
        whole: every archive was read, or will never be readable. Otherwise a further run may get
            more.
        left_out: reason -> archives and videos that are not used.
        hashes: file below the root -> xxh64, of the videos that were published.
    """

    whole: bool = True
    left_out: Counter[str] = field(default_factory=Counter)
    hashes: dict[str, str] = field(default_factory=dict)


def _group(folder: str) -> str:
    """The name of the list of a folder's videos."""
    return folder.replace("/", "--")


def _folder_entries(
    collection: Collection, folder: str, unpacked: Mapping[str, _Unpacked]
) -> list[FileEntry]:
    """The videos of a folder that are there. Those of this run were hashed when they were
    published, those of a run that was ended are hashed here.
    """
    storage = collection.storage
    hashes = {entry.path: entry.hash for entry in collection.media(_group(folder))}
    if folder in unpacked:
        new = unpacked[folder].hashes
        hashes |= {path: f"xxh64:{digest}" for path, digest in new.items()}
    names = storage.list(f"{layout.LLAVA_VIDEO_FILES}/{folder}")
    known = [FileEntry(name, storage.size(name), hashes[name]) for name in names if name in hashes]
    return [*known, *describe_files(storage, [name for name in names if name not in hashes])]


class _FolderVideos:
    """The videos of one folder: unpacked from its archives, and published under the names that
    the rows use.
    """

    def __init__(
        self, collection: Collection, probes: ProbePool, folder: str, videos: Iterable[str]
    ) -> None:
        """`videos`: as the rows name them. Those that are published already are left alone."""
        self.collection, self.probes, self.folder = collection, probes, folder
        self.base = f"{layout.LLAVA_VIDEO_FILES}/{folder}"
        published = {name[len(self.base) + 1 :] for name in collection.storage.list(self.base)}
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for video in videos:
            if video not in published:
                self.by_name[PurePosixPath(video).name].append(video)
        self.result = _Unpacked()

    def unpack(self, archives: list[HubFile]) -> _Unpacked:
        """Read the archives one after another, where any video is missing at all."""
        collection = self.collection
        for archive in archives if self.by_name else ():
            stage = collection.scratch / archive.checksum
            try:
                members = stage_archive(
                    collection.repo,
                    archive,
                    stage,
                    lambda member: self._row_name(member) is not None,
                    collection.disk,
                    collection.log,
                )
            except TransferError as error:
                self.result.left_out[error.reason] += 1
                self.result.whole &= error.status != "transient"
                collection.log(f"{archive.path}: left out, {error.reason}: {error}")
                continue
            with ThreadPoolExecutor(collection.settings.download.workers) as pool:
                list(pool.map(self._publish, members.keys(), members.values()))
        return self.result

    def _row_name(self, member: str) -> str | None:
        """The video that a member of an archive is; the member's path may have a folder more or
        less than the rows say.
        """
        namesakes = self.by_name.get(PurePosixPath(member).name, [])
        same = [video for video in namesakes if f"/{member}".endswith(f"/{video}")]
        same = same or [video for video in namesakes if video.endswith(f"/{member}")]
        return same[0] if len(same) == 1 else None

    def _publish(self, member: str, path: Path) -> None:
        video = self._row_name(member)
        if video is None or not path.exists():
            return
        target = f"{self.base}/{video}"
        try:
            check_video(self.probes.probe(path), self.collection.settings.download, None)
        except InvalidVideo as error:
            self.result.left_out[error.reason] += 1
            self.collection.log(f"{self.folder}/{video}: set aside, {error.reason}: {error}")
            target = f"{layout.LLAVA_VIDEO_QUARANTINE}/{self.folder}/{video}"
        else:
            self.result.hashes[target] = hash_file_xxh64(path)
        with self.collection.storage.writing(target) as temporary:
            shutil.move(path, temporary)


def _write_annotations(storage: Storage, name: str, path: Path, file: HubFile) -> dict[str, int]:
    """Rows whose `video` is the path below `videos/`; returns what was counted."""
    folder, counts = _folder(file), Counter[str](rows=0)
    base = layout.LLAVA_VIDEO_FILES
    published = {entry[len(base) + 1 :] for entry in storage.list(f"{base}/{folder}")}
    used = set()
    with (
        storage.writing(layout.collection_annotations(layout.LLAVA_VIDEO, name)) as temporary,
        open(temporary, "wb") as out,
    ):
        before = b"[\n"
        for row in read_rows(path, file.path):
            if not isinstance(row.value, dict):
                counts["rows that are not objects"] += 1
                continue
            value = dict(row.value)
            if isinstance(value.get("video"), str):
                value["video"] = f"{folder}/{value['video']}"
                used.add(value["video"])
                counts["rows without their video"] += value["video"] not in published
            counts["rows"] += 1
            out.write(before + orjson.dumps(value))
            before = b",\n"
        out.write((b"[" if before == b"[\n" else b"") + b"\n]\n")
    counts["videos"] = len(used & published)
    return {what: count for what, count in counts.items() if count or what == "rows"}
