"""The bill of materials of a checkpoint: which rows, videos and sources it was trained on, at which
revisions and under which licences, as far as the settings state them.

It is taken from the shards that the run reads, before the first step, and lies in the run's folder:
`bill.json`, and `bill.videos.txt` with every video by name. The same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.deployment.settings import Settings
from assets.records.coverage import Coverage
from assets.records.lineage import Lineage
from assets.records.provenance import Register
from assets.records.withdrawals import Withdrawals
from assets.shards.mds import HASH, shard_videos
from model.atomic import writing_file
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.kinds import KINDS
from training.formats.storage import Storage
from training.run_config import RunConfig, StreamConfig

BILL, VIDEOS = "bill.json", "bill.videos.txt"


@dataclass(slots=True)
class _Shards:
    """The shards of one kind and part that one stream reads."""

    kind: str
    part: str
    samples: int = 0
    hashes: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Source:
    """Where rows of one kind come from."""

    samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def write_bill(
    storage: Storage, settings: Settings, run: RunConfig, name: str, inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Write the bill of a run into its folder, `run.out`, and return it.

    Args:
        name: the product that the run makes, `stage3[tiny]`.
        inputs: versions of the products that it is made from.

    Raises:
        FileNotFoundError: an index is not there.
    """
    register = Register(storage)
    shards: dict[tuple[str, str, str], _Shards] = {}
    sources: dict[tuple[str, str], _Source] = {}
    unread: list[str] = []
    for stream, entries in zip(run.streams, _read_rows(run), strict=True):
        for kind, folder, entry in entries:
            key = (stream.name, kind, folder.rpartition("_")[2])
            found = shards.setdefault(key, _Shards(*key[1:]))
            found.samples += entry["samples"]
            found.hashes.append((entry["raw_data"]["basename"], entry["raw_data"]["hashes"][HASH]))
            try:
                _count(sources, Storage(stream.root), kind, folder, entry)
            except (OSError, ValueError, IndexError):
                # The run leaves it out, or refuses it, by rules of its own.
                unread.append(f"{folder}/{entry['raw_data']['basename']}")
    videos = sorted({video for source in sources.values() for video in source.seconds})
    text = "".join(f"{video}\n" for video in videos)
    seconds = {v: s for source in sources.values() for v, s in source.seconds.items()}
    bill = {
        "product": name,
        "inputs": dict(sorted(inputs.items())),
        "rows": sum(found.samples for found in shards.values()),
        "videos": len(videos),
        "hours": round(sum(seconds.values()) / 3600, 3),
        "sources": [_source(settings, kind, of, sources[kind, of]) for kind, of in sorted(sources)],
        "shards": [
            {
                "stream": stream,
                "kind": found.kind,
                "part": found.part,
                "rows": found.samples,
                "version": data_version(found.hashes),
            }
            for (stream, _, _), found in sorted(shards.items())
        ],
        "unread shards": unread,
        "revisions": _revisions(register, inputs),
        "video list": {"file": VIDEOS, "sha256": hashlib.sha256(text.encode()).hexdigest()},
        "withdrawn before": sorted(Withdrawals.read(storage).videos),
        "started from": _earlier(register, inputs),
    }
    out = Path(run.out)
    out.mkdir(parents=True, exist_ok=True)
    with writing_file(out / VIDEOS) as temporary:
        temporary.write_text(text)
    with writing_file(out / BILL) as temporary:
        temporary.write_text(json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return bill


def read_bill(storage: Storage, record: Lineage) -> dict[str, Any] | None:
    """The bill of a checkpoint; None where it has none."""
    name = f"{record.folder}/{BILL}"
    return dict(storage.read_json(name)) if record.folder and storage.exists(name) else None


def bill_lines(storage: Storage, record: Lineage) -> Iterator[str]:
    """The bill of a checkpoint for a person, with those of the checkpoints that it started from.

    Raises:
        FileNotFoundError: it has none.
    """
    bill = read_bill(storage, record)
    if bill is None:
        raise FileNotFoundError(
            f"{record.product} has no bill of materials: only the training stages have one, and "
            "those that were made before there were bills get it when they are materialized again"
        )
    since = Withdrawals.read(storage).videos
    for video in sorted((trained_videos(storage, record.folder) or set()) & since.keys()):
        yield f"! trained on {video}, which was withdrawn {since[video].at}: {since[video].reason}"
    if share := Coverage.read(record.coverage).sentence:
        yield f"trained on {share}"
    yield f"videos by name: {record.folder}/{VIDEOS}"
    while bill is not None:
        yield (
            f"{bill['product']}: {bill['rows']:,} rows, {bill['videos']:,} videos, "
            f"{bill['hours']:,} h"
        )
        for source in bill["sources"]:
            yield (
                f"  {source['kind']} from {source['source']}: {source['rows']:,} rows, "
                f"{source['videos']:,} videos, {source['hours']:,} h; licence: {source['licence']}"
            )
        yield from (f"  {name} @ {version}" for name, version in bill["revisions"].items())
        yield from (f"  without {video}: withdrawn before" for video in bill["withdrawn before"])
        if started := bill["started from"]:
            nothing = "" if started["bill"] else ", which has no bill of materials"
            yield f"started from {started['product']} {started['version'][:12]}{nothing}"
        bill = started and started["bill"]


def trained_videos(storage: Storage, folder: str) -> set[str] | None:
    """Every video that the run in a checkpoint's folder was trained on; None where it has no bill,
    or where a shard could not be read for it.

    Raises:
        ValueError: the list is not the one that the bill was made with.
    """
    if not (storage.exists(f"{folder}/{BILL}") and storage.exists(f"{folder}/{VIDEOS}")):
        return None
    text = storage.read_bytes(f"{folder}/{VIDEOS}")
    bill = storage.read_json(f"{folder}/{BILL}")
    if bill["unread shards"]:
        return None
    if hashlib.sha256(text).hexdigest() != bill["video list"]["sha256"]:
        raise ValueError(
            f"{storage.path(folder)}/{VIDEOS}: has other content than {BILL} says; restore it "
            "from a backup"
        )
    return set(text.decode().splitlines())


def _read_rows(run: RunConfig) -> list[list[tuple[str, str, dict[str, Any]]]]:
    """The entries of each stream, with the samples that the run reads of them."""
    streams = [list(_entries(stream)) for stream in run.streams]
    if run.rows is None:
        return streams
    from training.data.shard_index import Shard, first_rows

    entries = [entry for stream in streams for entry in stream]
    shards = [Shard(0, f"{folder}/x", entry["samples"], 0, "") for _, folder, entry in entries]
    counts = iter(first_rows(shards, run.rows))
    return [
        [(kind, folder, {**entry, "samples": next(counts)}) for kind, folder, entry in stream]
        for stream in streams
    ]


def _entries(stream: StreamConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(kind, folder of the part, index entry) of every shard of a stream."""
    storage = Storage(stream.root)
    for index in stream.indexes:
        for entry in storage.read_json(index)["shards"]:
            # Names in an index of the mixture count from the folder that holds all parts.
            inside, _, name = entry["raw_data"]["basename"].rpartition("/")
            folder = inside or index.rpartition("/")[0]
            raw = {**entry["raw_data"], "basename": name}
            yield folder.rpartition("_")[0], folder, {**entry, "raw_data": raw}


def _count(
    sources: dict[tuple[str, str], _Source],
    storage: Storage,
    kind: str,
    folder: str,
    entry: Mapping[str, Any],
) -> None:
    """Count the rows of one shard for the sources that they come from."""
    row = KINDS[kind]
    if row.rows not in ("short video", "long video"):  # its rows name no source of their own
        sources.setdefault((kind, row.collection), _Source()).samples += entry["samples"]
        return
    videos = list(shard_videos(storage, folder, entry))  # all of it, or nothing
    for video, seconds in videos[: entry["samples"]]:
        name = video if row.rows == "long video" else f"{layout.LLAVA_VIDEO}/{video}"
        of = name.split("/", 1)[0] if row.rows == "long video" else row.collection
        source = sources.setdefault((kind, of), _Source())
        source.samples += 1
        source.seconds[name] = max(seconds, source.seconds.get(name, 0.0))


def _source(settings: Settings, kind: str, of: str, source: _Source) -> dict[str, Any]:
    return {
        "kind": kind,
        "source": of,
        "rows": source.samples,
        "videos": len(source.seconds),
        "hours": round(sum(source.seconds.values()) / 3600, 3),
        "licence": licence_of(settings, of) or "not stated in the settings",
    }


def licence_of(settings: Settings, source: str) -> str | None:
    """The licence that the settings state for a source of long videos or for a collection."""
    if source in settings.sources:
        return settings.sources[source].licence
    return {
        "llava_onevision": settings.collections.onevision_licence,
        "llava_video": settings.collections.video_licence,
    }.get(source)


def _revisions(register: Register, inputs: Mapping[str, str]) -> dict[str, str]:
    """Every repository and file from outside that the inputs were made from -> its revision."""
    above = set(inputs).union(*(register.ancestors(name) for name in inputs))
    return {
        name: version
        for product in sorted(above & register.records.keys())
        for name, version in sorted(register.records[product].inputs.items())
        if name not in register.records
    }


def _earlier(register: Register, inputs: Mapping[str, str]) -> dict[str, Any] | None:
    """The checkpoint that the run starts from, with its own bill: what that was trained on counts
    as well.
    """
    for name in inputs:
        record = register.records.get(name)
        if record and name.startswith(("base_model", "stage")):
            bill = read_bill(register.storage, record)
            return {"product": name, "version": record.version, "bill": bill}
    return None
