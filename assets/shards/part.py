"""The folder of one part: shards, an index, a manifest, and what is told about the part.

An `index.json` is published together with all shards that it names, so it always describes a whole
part. The manifest holds the key of what the part was made from, and its report.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from assets.deployment.parts import part_name
from assets.shards.llava_rows import EXPECTED_DROPS
from assets.shards.mds import HASH, index_json
from assets.shards.tasks import PICTURE, TaskResult
from training.formats import layout
from training.formats.hashing import data_version
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
    drops, durations = Counter[str](), dict[str, float]()
    for result in results:
        drops.update(result.drops)
        durations.update(result.durations)
    counts = {
        "rows_in": sum(result.rows for result in results),
        "samples": sum(shard["samples"] for shard in shards),
        "shards": len(shards),
        "videos": len(durations),
        **{f"dropped: {reason}": number for reason, number in sorted(drops.items())},
    }
    return ShardReport(
        version=data_version(
            [(s["raw_data"]["basename"], s["samples"], s["raw_data"]["hashes"]) for s in shards]
        ),
        counts=counts,
        config=config,
        bytes=sum(shard["raw_data"]["bytes"] for shard in shards),
        hours=round(sum(durations.values()) / 3600, 3),
        tokens=sum(result.text_bytes for result in results) // BYTES_PER_TOKEN,
        drops=dict(sorted(drops.items())),
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
    }
    with storage.writing_folder(folder) as fresh:
        for name in [shard["raw_data"]["basename"] for shard in shards]:
            shutil.move(work / name, fresh / name)
        if report.picture:
            (fresh / PICTURE).write_bytes(report.picture)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        (fresh / INDEX).write_text(index_json(shards))


def finished_part(storage: Storage, folder: str, key: str) -> ShardReport | None:
    """The report of a part that needs no work: same key, every shard there in full, no row lost."""
    if not (storage.exists(f"{folder}/{INDEX}") and storage.exists(f"{folder}/{MANIFEST}")):
        return None
    manifest = storage.read_json(f"{folder}/{MANIFEST}")
    if manifest["key"] != key or not set(manifest["report"]["drops"]) <= EXPECTED_DROPS:
        return None
    for shard in storage.read_json(f"{folder}/{INDEX}")["shards"]:
        name = f"{folder}/{shard['raw_data']['basename']}"
        if not storage.exists(name) or storage.size(name) != shard["raw_data"]["bytes"]:
            return None
    picture = (
        storage.read_bytes(f"{folder}/{PICTURE}") if storage.exists(f"{folder}/{PICTURE}") else None
    )
    return ShardReport(**manifest["report"], picture=picture)
