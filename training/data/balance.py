"""Which rank takes which samples of a step, so that all ranks have about as much to do.

Every rank waits for the slowest one at the end of a step, and often more often. An hour-long video
is a hundred times the work of a text, so equally many samples, dealt as they come, are far from
equally much work: the more so the fewer a rank has. What a sample costs is told by its kind and, of
a video, its length, both of which its shard holds; nothing has to be decoded for it.

Shapes: N steps, R ranks, S samples of a rank in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np

from model.config import HourLlavaConfig
from training.data.shard_index import Gather, ShardIndex
from training.flops import flops, typical_sizes
from training.formats.file_cache import DamagedFileError
from training.formats.machine_faults import wait_out
from training.run_config import RunConfig

THREADS = 16

Cost = Callable[[str, int], float]  # of a sample: its kind, the seconds of its video


def deal(
    rows_NC: np.ndarray,
    work_NC: np.ndarray,
    groups: Sequence[int],
    load_NR: np.ndarray,
) -> np.ndarray:
    """Deal the rows of each step to the ranks: int64 [N, R, S].

    The row with the most work goes first, each to whoever has the least so far and still has room.
    Rows of one group of a rank stay in the order in which they came.

    Args:
        rows_NC: int64 [N, R * S]; work_NC: of each.
        groups: samples of a rank that run after each other between two times at which ranks wait
            for each other; they add up to S. Groups are evened out as ranks are.
        load_NR: what each rank has to do besides, float64; raised by what it is given.
    """
    steps, ranks = np.arange(len(rows_NC)), load_NR.shape[1]
    room = np.tile(np.asarray(groups), (len(rows_NC), ranks))
    load = np.repeat(load_NR / len(groups), len(groups), axis=1)
    taker_NC = np.empty(rows_NC.shape, np.int64)
    for place in np.argsort(-work_NC, axis=1, kind="stable").T:
        taker = np.where(room > 0, load, np.inf).argmin(axis=1)
        taker_NC[steps, place] = taker
        room[steps, taker] -= 1
        load[steps, taker] += work_NC[steps, place]
    load_NR[:] = load.reshape(len(rows_NC), ranks, -1).sum(axis=2)
    by_taker_NC = np.argsort(taker_NC, axis=1, kind="stable")
    return np.take_along_axis(rows_NC, by_taker_NC, axis=1).reshape(len(rows_NC), ranks, -1)


def work_of_rows(
    run: RunConfig,
    index: ShardIndex,
    config: HourLlavaConfig,
    rank: int,
    world_size: int,
    gather: Gather | None,
) -> np.ndarray:
    """Operations of one forward and backward pass over each row of a run: float64 [rows], 0 in
    damaged shards. All ranks have to call it together, and get the same.

    Args:
        gather: collects from all ranks, which then share the shards; None where this rank looks at
            all of them.

    Raises:
        MachineFault: a disk or store did not answer for `machine_wait_s`.
    """

    @cache
    def cost(kind: str, seconds: int) -> float:
        kept = bool(run.short_video_features_root)
        return flops(typical_sizes(kind, config, seconds, kept=kept), config, run.modules)

    everything = range(len(index.shards))
    mine = everything[rank::world_size] if gather else everything

    def look() -> dict[int, np.ndarray | float]:
        with ThreadPoolExecutor(THREADS) as pool:
            works = pool.map(partial(_work_of_shard, run, index, cost), mine)
            return dict(zip(mine, works, strict=True))

    found = np.zeros(len(index))
    for part in gather(look) if gather else [look()]:
        for number, work in part.items():
            found[index.first_row[number] : index.first_row[number + 1]] = work
    return found


def _work_of_shard(
    run: RunConfig, index: ShardIndex, cost: Cost, number: int
) -> np.ndarray | float:
    """Of each of its rows, or the one number that holds for all of them."""
    shard = index.shards[number]
    if number in index.damaged:
        return 0.0
    if not shard.may_hold_videos:
        return cost(shard.kind, 0)

    def read() -> np.ndarray:
        columns = index.columns(number)
        seconds = np.nan_to_num(columns.fixed("duration", "<f8"), posinf=0.0, neginf=0.0)
        rows = zip(columns.text("kind"), seconds.astype(np.int64).tolist(), strict=True)
        return np.array([cost(kind, length) for kind, length in rows])[: shard.samples]

    try:
        return wait_out(read, run.machine_wait_s)
    except (FileNotFoundError, DamagedFileError, ValueError):  # told when the row is read
        return 0.0
