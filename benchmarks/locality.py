"""How often feature files are read in an epoch, and how many videos a batch mixes. Used by
`benchmarks.shards`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = (4096, 8192, 16384, 32768)  # rows that are shuffled together
CACHES = (0.01, 0.02, 0.05, 0.1)  # of all feature files


def locality_ours(folder: Path, videos: int) -> dict[str, Any]:
    """Rows grouped by video, shards of 256 rows, blocks of several sizes."""
    return {
        f"block {block}": _reads(videos, grouped=True, rows_per_shard=256, block=block)
        for block in BLOCKS
    }


def locality_plain(folder: Path, videos: int) -> dict[str, Any]:
    """Rows in random order, shards of 4096 rows, the library's block."""
    return _reads(videos, grouped=False, rows_per_shard=4096, block=1 << 18)


def _reads(
    videos: int, grouped: bool, rows_per_shard: int, block: int, batch: int = 128
) -> dict[str, Any]:
    """Bytes of feature files read in one epoch by one machine, over the bytes there are, and videos
    in a batch.

    The library's own shuffle over synthetic shards: 23.6 rows a video, features of 3 minutes to an
    hour, caches of some shares of the data that forget what was used longest ago.
    """
    from streaming.base.shuffle import get_shuffle

    rng = np.random.default_rng(0)
    rows_of = rng.poisson(23.6, videos).clip(4)
    frames = np.exp(rng.normal(np.log(1050), 0.75, videos)).clip(180, 3600)
    size = frames * 64 * 1152 * 2
    video_of = np.repeat(rng.permutation(videos), rows_of)
    if not grouped:
        rng.shuffle(video_of)
    shards = np.full(-(-len(video_of) // rows_per_shard), rows_per_shard)
    shards[-1] -= shards.sum() - len(video_of)
    order = video_of[get_shuffle("py1e", shards, 1, 0, 0, block)]
    distinct = [
        len(set(order[start : start + batch])) for start in range(0, len(order) - batch, batch * 7)
    ]
    return {
        "rows": len(order),
        "data GB": round(size.sum() / 1e9),
        "reads / data by cache": {
            f"{share:.1%}": round(_read(order, size, share), 2) for share in CACHES
        },
        "videos in a batch of 128": round(float(np.mean(distinct)), 1),
    }


def _read(order: np.ndarray, size: np.ndarray, share: float) -> float:
    """Bytes read over bytes there are, with a cache of `share` of these."""
    capacity, held, read = size.sum() * share, 0.0, 0.0
    cache: dict[int, float] = {}
    for video in order.tolist():
        if video not in cache:
            read += size[video]
            held += size[video]
        cache[video] = cache.pop(video, size[video])
        while held > capacity:
            held -= cache.pop(next(iter(cache)))
    return float(read / size.sum())
