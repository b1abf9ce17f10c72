"""The folder of one part: shards, an index, a manifest, and what is told about the part.

An `index.json` is published together with all shards that it names, so it always describes a whole
part. The manifest holds the key of what the part was made from, and its report.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from assets.deployment.parts import part_name
from assets.records.lineage import is_recorded, mend, product
from assets.records.product_files import KnownFiles, find_file_damage, set_files_aside
from assets.shards.llava_rows import EXPECTED_DROPS
from assets.shards.mds import HASH, index_json
from assets.shards.tasks import PICTURE, TaskResult
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import FileEntry
from training.formats.sample import SCHEMA_VERSION
from training.formats.storage import Storage

INDEX = "index.json"
MANIFEST = "manifest.json"
BYTES_PER_TOKEN = 4  # of English text; an estimate for people, never used to pack a batch

Png = bytes  # `bytes` is also a field of the report


@dataclass(slots=True)
class ShardReport:
    """What became of a part's rows.

    Attributes:
        version: content hash: names, sizes and hashes of all shards.
        counts: `rows_in`, `samples`, `shards`, `videos`, missing annotation files, rows
            dropped by reason.
        config: the settings that decide the bytes.
        bytes: of all shards.
        hours: of distinct videos whose duration is known.
        tokens: text tokens, estimated.
        drops: dropped rows by reason.
        lost: question-answer pairs of the dropped rows: source -> reason -> pairs.
        named: some of the dropped rows, a line each.
        missing: annotation files of the mixture that are not there.
        examples: a few samples for a table.
        picture: PNG of a few images, where the part has any.
    """

    version: str
    counts: dict[str, int]
    config: dict[str, Any]
    bytes: int
    hours: float
    tokens: int
    drops: dict[str, int]
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    picture: Png | None = None


def part_folder(kind: str, part: int) -> str:
    """A part's folder, relative to the storage root."""
    return layout.shards(kind, part_name(part))


def part_report(results: Sequence[TaskResult], config: dict[str, Any]) -> ShardReport:
    """What the results of all tasks of a part add up to.

    Args:
        config: the settings that decided the bytes.
    """
    shards = [shard for result in results for shard in result.shards]
    drops, changed, durations = Counter[str](), Counter[str](), dict[str, float]()
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        drops.update(result.drops)
        for source, reasons in result.lost.items():
            lost[source].update(reasons)
        changed.update(result.changed)
        durations.update(result.durations)
    counts = {
        "rows_in": sum(result.rows for result in results),
        "samples": sum(shard["samples"] for shard in shards),
        "shards": len(shards),
        "videos": len(durations),
        **{f"dropped: {reason}": number for reason, number in sorted(drops.items())},
        **{f"changed: {what}": number for what, number in sorted(changed.items())},
    }
    return ShardReport(
        version=_version(shards),
        counts=counts,
        config=config,
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        hours=round(sum(durations.values()) / 3600, 3),
        tokens=sum(result.text_bytes for result in results) // BYTES_PER_TOKEN,
        drops=dict(sorted(drops.items())),
        lost={source: dict(sorted(reasons.items())) for source, reasons in sorted(lost.items())},
        named=[line for result in results for line in result.named][:20],
        examples=[row for result in results for row in result.examples][:5],
    )


def check_drops(kind: str, part: int, report: ShardReport, most: float) -> None:
    """Raise ValueError when more rows are lost than allowed; rows that are left out by design do
    not count.
    """
    expected = sum(number for reason, number in report.drops.items() if reason in EXPECTED_DROPS)
    lost, rows = sum(report.drops.values()) - expected, report.counts["rows_in"] - expected
    if lost > most * rows:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in report.drops.items())
        raise ValueError(
            f"{kind} {part_name(part)}: {lost:,} of {rows:,} rows cannot be used, more than "
            f"shards.max_drop_share ({most:g}) allows: {reasons}; for example "
            f"{'; '.join(report.named[:3])}"
        )


def publish_part(
    storage: Storage,
    folder: str,
    work: Path,
    results: Sequence[TaskResult],
    first_half: int,
    report: ShardReport,
    key: str,
) -> None:
    """Move the finished shards into a fresh folder with index and manifest, which then gets its
    final name.

    Args:
        folder: of the part, below the storage root.
        work: local folder that holds the shards.
        results: of all tasks, in order.
        first_half: how many tasks belong to the first half of the part.
        key: hash of inputs and settings; `finished_part` compares it.
    """
    shards = [shard for result in results for shard in result.shards]
    half = [shard for result in results[:first_half] for shard in result.shards]
    manifest = {
        "schema": SCHEMA_VERSION,
        "key": key,
        "report": {name: value for name, value in asdict(report).items() if name != "picture"},
        "first_half": {"shards": len(half), "samples": sum(shard["samples"] for shard in half)},
        "shards": {
            shard["raw_data"]["basename"]: shard["raw_data"]["hashes"][HASH] for shard in shards
        },
        "picture": xxhash.xxh64(report.picture).hexdigest() if report.picture else "",
    }
    with storage.writing_folder(folder) as fresh:
        for name in [shard["raw_data"]["basename"] for shard in shards]:
            shutil.move(work / name, fresh / name)
        if report.picture:
            (fresh / PICTURE).write_bytes(report.picture)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        (fresh / INDEX).write_text(index_json(shards))


def shard_entries(storage: Storage, folder: str) -> list[FileEntry]:
    """The shards of a part, as its index describes them."""
    return [
        FileEntry(f"{folder}/{raw['basename']}", raw["bytes"], f"{HASH}:{raw['hashes'][HASH]}")
        for raw in (shard["raw_data"] for shard in storage.read_json(f"{folder}/{INDEX}")["shards"])
    ]


def part_files(storage: Storage, kind: str, part: int) -> list[FileEntry]:
    """Every file of a finished part. Shards have been hashed by who wrote them."""
    folder = part_folder(kind, part)
    others = [f"{folder}/{name}" for name in (INDEX, MANIFEST, PICTURE)]
    known = KnownFiles(storage, product(kind, part_name(part)))
    return [
        *shard_entries(storage, folder),
        *known.describe(name for name in others if storage.exists(name)),
    ]


def set_aside_damaged_shards(
    storage: Storage, kind: str, part: int, log: Callable[[str], None]
) -> None:
    """Move what is damaged of a part out of the way. A part that was published and never recorded,
    because its run was ended in between, is compared with its own index.
    """
    name, folder = product(kind, part_name(part)), part_folder(kind, part)
    if is_recorded(storage, name):
        mend(storage, name, log)
    elif storage.exists(f"{folder}/{INDEX}"):
        damage = find_file_damage(storage, name, shard_entries(storage, folder))
        set_files_aside(storage, name, damage, log)


def finished_part(storage: Storage, folder: str, key: str) -> ShardReport | None:
    """The report of a part that needs no work: same key, every file there, no row lost.

    Call `set_aside_damaged_shards` before: what is there is whole then.
    """
    manifest = _manifest(storage, folder, key)
    if manifest is None or missing_files(storage, folder, manifest):
        return None
    picture = (
        storage.read_bytes(f"{folder}/{PICTURE}") if storage.exists(f"{folder}/{PICTURE}") else None
    )
    return ShardReport(**manifest["report"], picture=picture)


def missing_files(storage: Storage, folder: str, manifest: Mapping[str, Any]) -> list[str]:
    """Names of a part's shards that are not there, and of its picture."""
    there = {name.rpartition("/")[2] for name in storage.list(folder)}
    return sorted(set(_hashes(manifest)) - there)


def mendable_part(storage: Storage, folder: str, key: str) -> dict[str, str]:
    """Missing shards, or picture, of a part of which nothing else is missing: name -> xxh64.
    Writing them again makes it whole.
    """
    manifest = _manifest(storage, folder, key)
    if manifest is None:
        return {}
    hashes = _hashes(manifest)
    return {name: hashes[name] for name in missing_files(storage, folder, manifest)}


def _hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """xxh64 of what the tasks of a part wrote, by name."""
    picture = {PICTURE: manifest["picture"]} if manifest["picture"] else {}
    return {**manifest["shards"], **picture}


def _manifest(storage: Storage, folder: str, key: str) -> dict[str, Any] | None:
    """The manifest of a part that was made from what `key` stands for; None where there is none."""
    if not (storage.exists(f"{folder}/{INDEX}") and storage.exists(f"{folder}/{MANIFEST}")):
        return None
    manifest: dict[str, Any] = storage.read_json(f"{folder}/{MANIFEST}")
    if manifest["key"] != key or not set(manifest["report"]["drops"]) <= EXPECTED_DROPS:
        return None
    if manifest["report"]["version"] != _version(storage.read_json(f"{folder}/{INDEX}")["shards"]):
        return None
    return manifest


def _version(shards: Iterable[Mapping[str, Any]]) -> str:
    """Content hash of shards: their names, numbers of samples and hashes."""
    return data_version(
        [(s["raw_data"]["basename"], s["samples"], s["raw_data"]["hashes"]) for s in shards]
    )
