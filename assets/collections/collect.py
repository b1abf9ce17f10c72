"""The two other collections: of each only the annotation files that the mixture names, and what
these need.

- LLaVA-OneVision: Parquet files with the images inside -> one annotation file a set, and image
  files with the hub's own bytes.
- LLaVA-Video-178K: short videos out of tar archives, looked into like the long ones, and annotation
  files.

A finished set is recorded with the hashes of the files it was made from, and made again only when
these change.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from assets.collections.mixtures import read_mixture
from assets.collections.onevision_rows import parquet_rows, plain_rows
from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, remove_scratch, scratch
from assets.fetching.errors import AnnotationError, TransferError
from assets.fetching.hub import Hub, HubFile, HubRepo
from assets.fetching.probe import InvalidVideo, ProbePool, check_video
from assets.fetching.table_files import read_rows
from assets.fetching.tar_members import stage_tar
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage
from training.progress import Progress

RECORD = "collected.json"
CONFIGS = Path(__file__).with_name(
    "onevision_configs.csv"
)  # annotation file -> configuration in the hub's dataset


@dataclass(slots=True)
class CollectionReport:
    """What was collected.

    Attributes:
        version: of the content: hashes of the files that every set was made from.
        origins: repository -> commit.
        table: one row for each annotation file of the mixture, with rows, images or videos, and
            what is wrong with it.
    """

    version: str
    origins: dict[str, str]
    counts: dict[str, int]
    table: list[dict[str, Any]] = field(default_factory=list)


def collect_onevision(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> CollectionReport:
    """Fetch the LLaVA-OneVision sets of the mixture into ``annotations/<name>`` and ``images/``.

    Raises:
        OperatorError: the hub refuses, the disk is full; AnnotationError: a set is missing and all
            are required.
    """
    chosen = settings.collections
    repo = Hub(settings.hub_endpoint, settings.download, log).repo(
        chosen.onevision_repo, chosen.onevision_revision
    )
    listed = repo.files()
    job = _Collecting(storage, settings, repo, layout.LLAVA_ONEVISION, log)
    plans = {name: _onevision_files(name, listed) for name in job.wanted}
    job.forget_all_but(plans)
    todo = {name: files for name, files in plans.items() if files and not job.finished(name, files)}
    shards = [
        (name, index, file) for name, files in todo.items() for index, file in enumerate(files)
    ]
    job.expect(len(shards), "files")
    with ThreadPoolExecutor(settings.download.workers) as pool:
        counts = list(pool.map(lambda shard: _convert(job, listed, *shard), shards))
    for name, files in todo.items():
        total = sum(
            (part for (owner, *_), part in zip(shards, counts, strict=True) if owner == name),
            Counter(),
        )
        with storage.writing(f"{layout.LLAVA_ONEVISION}/annotations/{name}") as temporary:
            _join([_fragment(job, name, file) for file in files], temporary, name)
        job.finish(name, files, dict(total))
        shutil.rmtree(job.folder / _slug(name), ignore_errors=True)
    return job.report(plans)


def collect_llava_video(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> CollectionReport:
    """Fetch the LLaVA-Video-178K sets of the mixture into ``annotations/<name>`` and
    ``videos/<folder>/``.

    Raises:
        OperatorError: as ``collect_onevision``.
    """
    chosen = settings.collections
    repo = Hub(settings.hub_endpoint, settings.download, log).repo(
        chosen.video_repo, chosen.video_revision
    )
    listed = repo.files(["*.json", "*.jsonl", "*.tar.gz", "*.tgz", "*.tar"])
    job = _Collecting(storage, settings, repo, layout.LLAVA_VIDEO, log)
    sources = {name: _video_annotation(name, listed) for name in job.wanted}
    archives: dict[str, list[HubFile]] = defaultdict(list)
    for file in listed:
        if not file.path.endswith((".json", ".jsonl")):
            archives[_folder(file)].append(file)
    plans = {
        name: [file, *archives[_folder(file)]] if file else [] for name, file in sources.items()
    }
    job.forget_all_but(plans)
    todo = {name: files for name, files in plans.items() if files and not job.finished(name, files)}
    names: dict[str, set[str]] = defaultdict(set)
    local = {}
    for name, (file, *_) in todo.items():
        local[name] = repo.download(file, job.folder / file.checksum)
        for row in read_rows(local[name], file.path):
            if isinstance(row.value, dict) and isinstance(row.value.get("video"), str):
                names[_folder(file)].add(row.value["video"])
    taken = {}
    with ProbePool() as prober:
        for folder, videos in sorted(names.items()):
            taken[folder] = _take_videos(job, prober, folder, archives[folder], videos)
    for name, (file, *rest) in todo.items():
        counts = _write_video_annotations(storage, name, local[name], file)
        job.finish(name, [file, *rest], counts, whole=taken[_folder(file)].whole)
    if all(what.whole for what in taken.values()):
        remove_scratch(job.folder)
    report = job.report(plans)
    report.counts["videos"] = len(storage.list(layout.LLAVA_VIDEO_FILES))
    for what in taken.values():
        for reason, count in what.left_out.items():
            report.counts[f"left out: {reason}"] = (
                report.counts.get(f"left out: {reason}", 0) + count
            )
    return report


class _Collecting:
    """Bookkeeping of one collection: which sets are wanted, which are finished, what to report."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        repo: HubRepo,
        collection: str,
        log: Callable[[str], None],
    ) -> None:
        self.storage, self.settings, self.repo, self.collection, self.log = (
            storage,
            settings,
            repo,
            collection,
            log,
        )
        entries = read_mixture(settings.collections.mixtures)
        self.wanted = sorted(
            {entry.annotation for entry in entries if entry.collection == collection}
        )
        self.folder = scratch(storage, collection)
        self.disk = DiskGuard(self.folder, settings.download.min_free_bytes)
        name = f"{collection}/{RECORD}"
        self.record: dict[str, Any] = storage.read_json(name) if storage.exists(name) else {}
        self.progress: Progress | None = None

    def expect(self, count: int, unit: str) -> None:
        self.progress = Progress(self.log, count, f"{unit} of {self.collection}")

    def finished(self, name: str, files: list[HubFile]) -> bool:
        known = self.record.get(name, {}).get("files")
        there = self.storage.exists(f"{self.collection}/annotations/{name}")
        return there and known == [file.checksum for file in files] and self.record[name]["whole"]

    def finish(
        self, name: str, files: list[HubFile], counts: dict[str, int], whole: bool = True
    ) -> None:
        """Record a set; one that is not whole, because an archive could not be read, is tried again
        by the next run.
        """
        self.record[name] = {
            "files": [file.checksum for file in files],
            "counts": counts,
            "whole": whole,
        }
        self.storage.write_json(f"{self.collection}/{RECORD}", self.record)
        self.log(f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")

    def forget_all_but(self, plans: dict[str, list[HubFile]]) -> None:
        """Check that the mixture can be served, and leave sets that it no longer names out of the
        record.
        """
        missing = [name for name, files in plans.items() if not files]
        if missing:
            text = f"{self.repo} has nothing for {len(missing)} of {len(plans)} annotation files: {', '.join(missing)}"
            if self.settings.collections.require_all:
                raise AnnotationError(
                    f"{text}; change collections.mixtures, or unset collections.require_all"
                )
            self.log(text)
        self.record = {name: entry for name, entry in self.record.items() if plans.get(name)}

    def report(self, plans: dict[str, list[HubFile]]) -> CollectionReport:
        table, counts = [], Counter[str]()
        for name, files in plans.items():
            found = self.record.get(name, {}).get("counts", {})
            counts.update(found)
            table.append(
                {
                    "annotation": name,
                    "state": "ready" if files else "not in the repository",
                    **found,
                }
            )
        counts["annotation files"] = sum(bool(files) for files in plans.values())
        counts["missing"] = sum(not files for files in plans.values())
        version = data_version(
            {name: (entry["files"], entry["counts"]) for name, entry in self.record.items()}
        )
        return CollectionReport(version, {self.repo.repo: self.repo.commit}, dict(counts), table)


def _onevision_files(name: str, listed: list[HubFile]) -> list[HubFile]:
    """The files that hold a set: the Parquet files of its configuration, or an annotation file as
    it is.
    """
    stem = name.rsplit(".", 1)[0]
    for config in (_configs().get(name), stem):
        found = [
            f
            for f in listed
            if config and f.path.startswith(f"{config}/train-") and f.path.endswith(".parquet")
        ]
        if found:
            return found
    plain = [f for f in listed if f.path == name] or [
        f for f in listed if f.path.endswith(f"/{name}")
    ]
    return plain if len(plain) == 1 else []


def _configs() -> dict[str, str]:
    with open(CONFIGS, newline="") as file:
        return {row["annotation"]: row["config"] for row in csv.DictReader(file)}


def _convert(
    job: _Collecting, listed: list[HubFile], name: str, index: int, file: HubFile
) -> Counter[str]:
    """One file of a set -> image files, and its rows as lines beside the unfinished work; once."""
    fragment = _fragment(job, name, file)
    record = fragment.with_suffix(".counts")
    if not record.exists():
        job.disk.check(2 * file.size)
        local = job.repo.download(file, fragment.with_suffix(".source"))
        counts: Counter[str] = Counter()
        folder = f"{_slug(name)}/{index:05d}"
        with (
            job.storage.writing_folder(f"{layout.ONEVISION_IMAGES}/{folder}") as images,
            open(fragment, "wb") as lines,
        ):
            if file.path.endswith(".parquet"):
                rows = parquet_rows(local, file.path, images, folder, counts)
            else:
                rows = plain_rows(job.repo, listed, file, local, images, folder, counts)
            for row in rows:
                counts["rows"] += 1
                lines.write(orjson.dumps(row) + b"\n")
        record.write_text(json.dumps(counts))
        local.unlink()
    if job.progress:
        job.progress.advance()
    return Counter(json.loads(record.read_text()))


def _fragment(job: _Collecting, name: str, file: HubFile) -> Path:
    folder = job.folder / _slug(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{file.checksum}.jsonl"


def _join(fragments: list[Path], target: Path, name: str) -> None:
    """Lines of several files, as one JSON list, or as lines where the name says so; a row a line
    either way.
    """
    first, between, last = (
        (b"", b"\n", b"\n") if name.endswith(".jsonl") else (b"[\n", b",\n", b"\n]\n")
    )
    with open(target, "wb") as out:
        out.write(first)
        before = b""
        for fragment in fragments:
            with open(fragment, "rb") as lines:
                for line in lines:
                    out.write(before + line.rstrip(b"\n"))
                    before = between
        out.write(last)


def _slug(name: str) -> str:
    """An annotation file's name as one folder name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name.rsplit(".", 1)[0])


def _video_annotation(name: str, listed: list[HubFile]) -> HubFile | None:
    """The repository's file for an annotation file of the mixture, whose names leave ``_processed``
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
class _Taken:
    """What became of the archives and videos of one folder. Not ``whole``: a further run may get
    more.
    """

    whole: bool = True
    left_out: Counter[str] = field(default_factory=Counter)


def _take_videos(
    job: _Collecting, prober: ProbePool, folder: str, archives: list[HubFile], videos: set[str]
) -> _Taken:
    """Videos of one folder out of its archives, looked into, published under the names that the
    rows use.
    """
    base = f"{layout.LLAVA_VIDEO_FILES}/{folder}"
    there = {name[len(base) + 1 :] for name in job.storage.list(base)}
    by_name: dict[str, list[str]] = defaultdict(list)
    for video in videos - there:
        by_name[PurePosixPath(video).name].append(video)

    def row_name(member: str) -> str | None:
        """Tar members may carry a folder more or less than the rows do."""
        same = [
            v for v in by_name.get(PurePosixPath(member).name, []) if f"/{member}".endswith(f"/{v}")
        ]
        same = same or [
            v for v in by_name.get(PurePosixPath(member).name, []) if v.endswith(f"/{member}")
        ]
        return same[0] if len(same) == 1 else None

    taken = _Taken()

    def publish(member: str, path: Path) -> None:
        video = row_name(member)
        if video is None or not path.exists():
            return
        try:
            check_video(prober.probe(path), job.settings.download, None)
        except InvalidVideo as error:
            taken.left_out[error.reason] += 1
            job.log(f"{folder}/{video}: set aside, {error.reason}: {error}")
            with job.storage.writing(
                f"{layout.LLAVA_VIDEO}/quarantine/{folder}/{video}"
            ) as temporary:
                shutil.move(path, temporary)
            return
        with job.storage.writing(f"{base}/{video}") as temporary:
            shutil.move(path, temporary)

    for archive in archives:
        if not by_name:
            break
        stage = job.folder / archive.checksum
        try:
            members = stage_tar(
                job.repo, archive, stage, lambda name: row_name(name) is not None, job.disk, job.log
            )
        except TransferError as error:
            taken.left_out[error.reason] += 1
            taken.whole &= error.status != "transient"
            job.log(f"{archive.path}: left out, {error.reason}: {error}")
            continue
        with ThreadPoolExecutor(job.settings.download.workers) as pool:
            list(pool.map(lambda item: publish(*item), members.items()))
    return taken


def _write_video_annotations(
    storage: Storage, name: str, path: Path, file: HubFile
) -> dict[str, int]:
    """Rows whose ``video`` is the path below ``videos/``."""
    folder, counts = _folder(file), Counter[str](rows=0)
    base = layout.LLAVA_VIDEO_FILES
    there = {entry[len(base) + 1 :] for entry in storage.list(f"{base}/{folder}")}
    used = set()
    with (
        storage.writing(f"{layout.LLAVA_VIDEO}/annotations/{name}") as temporary,
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
                counts["rows without their video"] += value["video"] not in there
            counts["rows"] += 1
            out.write(before + orjson.dumps(value))
            before = b",\n"
        out.write((b"[" if before == b"[\n" else b"") + b"\n]\n")
    counts["videos"] = len(used & there)
    return {what: count for what, count in counts.items() if count or what == "rows"}
