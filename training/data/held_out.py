"""Which samples are never trained on, so that their loss tells what the model has learned.

A video is held out with all of its samples, or not at all: by a hash of its name, so that new data
moves none from one side to the other. Samples without a video are held out by their place in their
shard.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from streaming.base.format.mds import MDSReader

from training.data.shard_index import ShardIndex
from training.formats.hashing import stable_hash
from training.formats.mds_columns import ShardColumns
from training.run_config import RunConfig

HELD_OUT = "held out"  # in place of a reason why a sample is dropped
OF_ONE_VIDEO = 2  # samples of a video that are measured


@dataclass(frozen=True, slots=True)
class HeldOutSplit:
    """A share of the videos, and of the samples without one.

    Attributes:
        share: from 0 (none) to 1.
        seed: of the run.
    """

    share: float
    seed: str

    def holds(self, video: str, shard: str, place: int) -> bool:
        """Whether a sample is held out.

        Args:
            video: of the sample, or empty.
            shard, place: where the sample stands.
        """
        if not self.share:
            return False
        names = (video,) if video else (shard, str(place))
        return stable_hash("held out", self.seed, *names) < self.share * 2**64


NOTHING_HELD_OUT = HeldOutSplit(0.0, "")


def held_out_rows(run: RunConfig, index: ShardIndex, split: HeldOutSplit) -> list[int]:
    """The rows that are measured: about `held_out_samples`, evenly of all streams, in an order of
    their own. Shards are looked through in a seeded order until there are enough.
    """
    if not split.share:
        return []
    wanted = -(-run.held_out_samples // len(index.streams))
    rows = []
    for stream in range(len(index.streams)):
        numbers = [n for n, shard in enumerate(index.shards) if shard.stream == stream]
        numbers.sort(key=lambda n: stable_hash("held out", split.seed, index.shards[n].rel))
        found: list[int] = []
        of_video: Counter[str] = Counter()
        for number in numbers:
            if len(found) >= wanted:
                break
            if number not in index.damaged:
                found += _rows_of_shard(index, number, split, of_video)
        rows += found[:wanted]
    return rows


def _rows_of_shard(
    index: ShardIndex, number: int, split: HeldOutSplit, of_video: Counter[str]
) -> list[int]:
    """Rows of one shard that are held out, at most a few of one video."""
    shard, reader = index.shards[number], index.readers[number]
    assert isinstance(reader, MDSReader)
    path = index.caches[shard.stream].path(shard.rel, shard.bytes, shard.xxh64)
    columns = ShardColumns(
        np.memmap(path, np.uint8, "r"), reader.column_names, reader.column_sizes, str(path)
    )
    if not any(columns.counts("video")):
        videos = [""] * shard.samples
    else:
        videos = columns.text("video")[: shard.samples]
    chosen = []
    for place, video in enumerate(videos):
        if of_video[video] < OF_ONE_VIDEO and split.holds(video, shard.rel, place):
            of_video[video] += bool(video)
            chosen.append(int(index.first_row[number]) + place)
    return chosen
