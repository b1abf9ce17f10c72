"""The stage-3 mixture: two index files over shard parts that already exist. Nothing is copied and
nothing is linked.

A view is an MDS index whose file names count from the `sharding` folder
(`llavavideo_si_part1/shard.00000.mds`), so no name leaves that folder. A part that is added later
joins when the views are written again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from assets.deployment.parts import LLAVA_PARTS
from assets.shards.mds import HASH, index_json
from assets.shards.part import INDEX, MANIFEST
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.sample import is_relative_name
from training.formats.storage import Storage
from training.recipes import STAGES, ShardInput, stage_inputs

MIXED_STAGE = 3


@dataclass(slots=True)
class MixtureReport:
    """What a mixture holds.

    Attributes:
        version: content hash of the views.
        counts: `samples` and `shards` of each stream, and of all together.
        table: one row for each part, or half of a part, of a stream.
    """

    version: str
    counts: dict[str, int]
    table: list[dict[str, Any]] = field(default_factory=list)


def mixed_streams(long_videos_only: bool) -> tuple[str, ...]:
    """The streams of stage 3 that the mixture has, in the order of its views."""
    return tuple(
        name
        for name, groups in STAGES[MIXED_STAGE].streams.items()
        if not long_videos_only or "long videos" in groups
    )


def write_mixture(
    storage: Storage, long_parts: Sequence[int], *, long_videos_only: bool = False
) -> MixtureReport:
    """Write `hourllava_s3/{0,1}/index.json` over ten parts of the LLaVA kinds and `long_parts`
    of long videos, or `hourllava_s3/0/index.json` over the long videos alone.

    Raises:
        FileNotFoundError: a part is missing; all missing ones are named.
        ValueError: a part's index names a file outside of the part.
    """
    streams = stage_inputs(MIXED_STAGE, LLAVA_PARTS, long_parts)
    if not long_videos_only:
        return write_views(storage, streams)
    long = [[item for item in stream if item.kind == LONG_VIDEO_KIND] for stream in streams]
    return write_views(storage, [stream for stream in long if stream])


def read_views(storage: Storage) -> list[list[dict[str, Any]]]:
    """The shards of each stream of the mixture, as its index lists them."""
    names = sorted(storage.list(layout.STAGE3_MIXTURE, f"/{INDEX}"))
    return [list(storage.read_json(name)["shards"]) for name in names]


def write_views(
    storage: Storage, streams: Sequence[Sequence[ShardInput]], folder: str = layout.STAGE3_MIXTURE
) -> MixtureReport:
    """Write one view for each stream, and a manifest, as one folder."""
    missing = [
        entry.folder
        for stream in streams
        for entry in stream
        if not storage.exists(f"{layout.SHARDS}/{entry.folder}/{INDEX}")
    ]
    if missing:
        raise FileNotFoundError(
            f"{storage.path(layout.SHARDS)}: parts are missing: {', '.join(sorted(set(missing)))}; "
            "materialize them first"
        )
    views: list[list[dict[str, Any]]] = []
    table: list[dict[str, Any]] = []
    for number, stream in enumerate(streams):
        views.append([])
        for entry in stream:
            shards = _shards(storage, entry)
            views[-1] += shards
            table.append(
                {
                    "stream": number,
                    "part": entry.folder,
                    "half": "all" if entry.half is None else ("first", "second")[entry.half],
                    "shards": len(shards),
                    "samples": sum(shard["samples"] for shard in shards),
                }
            )
    counts = {
        "samples": sum(row["samples"] for row in table),
        "shards": sum(row["shards"] for row in table),
    }
    for number, view in enumerate(views):
        counts[f"stream {number}: samples"] = sum(shard["samples"] for shard in view)
        counts[f"stream {number}: shards"] = len(view)
    version = data_version(
        [[(s["raw_data"]["basename"], s["raw_data"]["hashes"][HASH]) for s in v] for v in views]
    )
    report = MixtureReport(version, counts, table)
    with storage.writing_folder(folder) as fresh:
        for number, view in enumerate(views):
            (fresh / str(number)).mkdir()
            (fresh / str(number) / INDEX).write_text(index_json(view))
        manifest = {"version": version, "counts": counts, "parts": table}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return report


def _shards(storage: Storage, entry: ShardInput) -> list[dict[str, Any]]:
    """Index entries of a part, or of one half of it, with names that count from the `sharding`
    folder.
    """
    shards = storage.read_json(f"{layout.SHARDS}/{entry.folder}/{INDEX}")["shards"]
    if entry.half is not None:
        manifest = storage.read_json(f"{layout.SHARDS}/{entry.folder}/{MANIFEST}")
        middle = manifest["first_half"]["shards"]
        shards = shards[middle:] if entry.half else shards[:middle]
    for shard in shards:
        name = shard["raw_data"]["basename"]
        if not is_relative_name(name) or "/" in name:
            raise ValueError(
                f"{storage.path(layout.SHARDS)}/{entry.folder}/{INDEX}: {name!r} is not a file of "
                "this part"
            )
        shard["raw_data"]["basename"] = f"{entry.folder}/{name}"
    return shards
