"""Which rows make up one part of a kind, and in which order: a matter of hashes, so that every run
plans the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assets.collections.mixtures import MixtureEntry
from assets.deployment.parts import part_of
from assets.shards.annotation_rows import mapped, parse_row, row_spans
from assets.shards.llava_rows import row_key
from assets.shards.tasks import LlavaRows
from training.formats.hashing import stable_hash
from training.formats.kinds import KINDS
from training.formats.storage import Storage

POOL_FROM_BYTES = 32 << 20  # less is read in this process: starting workers would take longer


@dataclass(slots=True)
class PartPlan:
    """The rows of one part, in the order in which they are written.

    Attributes:
        rows: their places.
        files: annotation files that were read -> rows of each that this kind uses, all parts
            together.
        missing: annotation files of the mixture that do not exist.
    """

    rows: LlavaRows
    files: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def plan_part(
    storage: Storage,
    entries: Sequence[MixtureEntry],
    part: int,
    parts: int,
    seed: str,
    pool: Executor | None,
) -> PartPlan:
    """Plan one part of the kind that `entries` describe. Rows about one video stand together."""
    present = [entry for entry in entries if storage.exists(entry.name)]
    missing = [entry.name for entry in entries if entry not in present]
    jobs = [(storage.local(entry.name), entry, part, parts, seed) for entry in present]
    large = sum(path.stat().st_size for path, *_ in jobs) > POOL_FROM_BYTES
    run: Callable = pool.map if pool and large else map
    found = list(run(_plan_file, *zip(*jobs, strict=True))) if jobs else []
    names = tuple(entry.name for entry in present)
    places = [
        np.column_stack([np.full(len(places), index, np.int64), places])
        for index, (_, places, _) in enumerate(found)
    ]
    keys = [keys for _, _, keys in found]
    all_places = np.concatenate(places) if places else np.zeros((0, 4), np.int64)
    all_keys = np.concatenate(keys) if keys else np.zeros((0, 2), np.uint64)
    order = np.lexsort((all_places[:, 1], all_places[:, 0], all_keys[:, 1], all_keys[:, 0]))
    files = {name: used for name, (used, _, _) in zip(names, found, strict=True)}
    return PartPlan(LlavaRows(names, all_places[order]), files, missing)


def _plan_file(
    path: Path, entry: MixtureEntry, part: int, parts: int, seed: str
) -> tuple[int, np.ndarray, np.ndarray]:
    """(rows used, int64 [n, 3] ordinal, begin, end of this part's rows, uint64 [n, 2] hashes that
    order them).
    """
    begins, ends = row_spans(path)
    used = entry.rows(len(begins))
    places, keys = [], []
    by_video = KINDS[entry.kind].rows == "short video"
    with mapped(path) as data:
        for ordinal, (begin, end) in enumerate(
            zip(begins[:used].tolist(), ends[:used].tolist(), strict=True)
        ):
            key = row_key(parse_row(data, begin, end), ordinal)
            if part_of(key, parts) != part:
                continue
            places.append((ordinal, begin, end))
            row = stable_hash("row order", seed, entry.annotation, str(ordinal))
            keys.append((stable_hash("video order", seed, key) if by_video else row, row))
    return (
        used,
        np.array(places, np.int64).reshape(-1, 3),
        np.array(keys, np.uint64).reshape(-1, 2),
    )
