"""In which order the rows of an epoch are read, and by which rank.

The order is that of whole batches, before there are machines or ranks: MosaicML Streaming's
block-wise shuffle of each stream, and its mix of the streams' batches. Its partition over ranks is
not used: it repeats rows until the ranks divide them, so that the steps depended on their number.
Machines take their rows of each batch, and ranks are evened out, see `training.data.balance`.

Shapes: B batches, C rows of a batch, R ranks of a machine, S rows of a rank in a batch.
"""

from __future__ import annotations

import os

import numpy as np
from streaming.base.shuffle import get_shuffle

from training.data.balance import deal
from training.data.packing import group_sizes
from training.data.shard_index import ShardIndex
from training.formats.hashing import seed_of
from training.run_config import RunConfig

# Simulated with the block size: feature files are read 1.07 times an epoch, see
# docs/performance.md.
SHUFFLE = "py1e"
# Part of a position's identity: orders before it depended on the number of ranks.
ORDER = "whole batches"


class EpochOrder:
    """The rows of one rank, epoch by epoch.

    Attributes:
        world_size: number of ranks.
        share: rows of one rank in an optimizer step.
        work: of each row, by which ranks are evened out; None: rows go to ranks as they come.
    """

    def __init__(
        self,
        run: RunConfig,
        index: ShardIndex,
        rank: int,
        world_size: int,
        work: np.ndarray | None = None,
    ) -> None:
        self.run, self.index, self.rank, self.world_size = run, index, rank, world_size
        self.work = work
        self._micro, accumulation = run.batches(world_size)
        self.share = self._micro * accumulation
        # Steps are made of as many batches of one stream.
        self.stream_batches = run.recipe.global_batch // (
            run.stream_batch or run.recipe.global_batch
        )

    @property
    def identity(self) -> str:
        """A hash of what is read and how it is ordered; a position is only valid within it."""
        run = self.run
        # Contents, not names: the same shards may be read under another path.
        rows = [(shard.stream, shard.samples, shard.xxh64) for shard in self.index.shards]
        settings = run.seed, run.recipe.global_batch, run.canonical_nodes, run.shuffle_block
        other = [run.stream_batch] if run.stream_batch else []
        return f"{seed_of(ORDER, rows, *settings, *other):08x}"

    def rows(self, epoch: int) -> np.ndarray:
        """This rank's rows of an epoch: int64 [steps, share]. All rows of one step, on all ranks,
        are of one stream; or, with `stream_batch`, those of each of its equal parts.

        Incomplete global batches are left out, and no row is read twice. For one global batch size,
        the set of rows of each step is the same for every number of ranks and machines.

        Raises:
            ValueError: a stream has fewer rows than one global batch.
        """
        whole = self.share * self.world_size // self.stream_batches
        batches_BC = batches_of_epoch(self.run, self.index, whole, epoch)
        steps = len(batches_BC) // self.stream_batches
        batches_BC = batches_BC[: steps * self.stream_batches]
        nodes, per_node = self._machines()
        node, rank_of_node = divmod(self.rank, per_node)
        machine_BC = batches_BC[:, node::nodes]
        machine_RBS = machine_BC.reshape(len(machine_BC), -1, per_node).transpose(2, 0, 1)
        if self.work is not None and per_node > 1:
            machine_RBS = self._dealt(machine_RBS, self.work)
        own_BS = machine_RBS[rank_of_node]
        return np.ascontiguousarray(own_BS.reshape(steps, self.share), np.int64)

    def _dealt(self, machine_RBS: np.ndarray, work: np.ndarray) -> np.ndarray:
        """The rows of each batch dealt anew to the ranks of a machine, which are evened out over
        the batches of a step.
        """
        ranks, batches, samples = machine_RBS.shape
        groups = group_sizes(self.run.stage, samples, self._micro)
        rows_BC = machine_RBS.transpose(1, 0, 2).reshape(batches, -1)
        dealt_BRS = np.empty_like(machine_RBS.transpose(1, 0, 2))
        load_NR = np.zeros((batches // self.stream_batches, ranks))
        for number in range(self.stream_batches):
            of_step = slice(number, None, self.stream_batches)
            rows_NC = rows_BC[of_step]
            dealt_BRS[of_step] = deal(rows_NC, work[rows_NC], groups, load_NR)
        return dealt_BRS.transpose(1, 0, 2)

    def _machines(self) -> tuple[int, int]:
        """(machines, ranks on each) as the order sees them: rows of one video go to one machine
        where that divides.
        """
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        nodes = self.world_size // per_node if self.world_size % per_node == 0 else 1
        if nodes * per_node != self.world_size or self.run.canonical_nodes % nodes:
            return 1, self.world_size
        return nodes, per_node


def batches_of_epoch(run: RunConfig, index: ShardIndex, whole: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in the order of its batches, each of one stream: int64 [B, C].

    Canonical nodes give their rows in turn. So rows of one video go to one machine wherever the
    number of machines divides that of canonical nodes.

    Args:
        whole: C; what a stream's rows leave of it at the end is left out.

    Raises:
        ValueError: a stream has fewer rows than `whole`.
    """
    seed = seed_of(run.seed, "shuffle")
    of_stream = []
    first = 0
    for number, config in enumerate(run.streams):
        rows = index.rows_of_stream(number)
        if rows < whole:
            unit = "stream_batch" if run.stream_batch else "global batch"
            raise ValueError(
                f"stream {config.name!r} has {rows} samples, fewer than the {unit} of {whole}; "
                "set a smaller one or add data"
            )
        # A whole block for each stream: with its share of one, as the library has it, long videos
        # would mix the less, and feature files be read the nearer together, the more other samples
        # there are.
        sizes = np.array([shard.samples for shard in index.shards if shard.stream == number])
        nodes = run.canonical_nodes
        shuffled = get_shuffle(SHUFFLE, sizes, nodes, seed, epoch, run.shuffle_block)
        taken = shuffled[_in_turn(rows, nodes)[: rows // whole * whole]]
        of_stream.append(first + taken.reshape(-1, whole))
        first += rows
    streams_B = np.repeat(np.arange(len(of_stream)), [len(batches) for batches in of_stream])
    np.random.default_rng(seed + epoch).shuffle(streams_B)
    batches_BC = np.empty((len(streams_B), whole), np.int64)
    for number, batches in enumerate(of_stream):
        batches_BC[streams_B == number] = batches
    return batches_BC


def _in_turn(rows: int, nodes: int) -> np.ndarray:
    """Places of a stream's rows, one of each canonical node in turn, where they stand node after
    node.
    """
    ends = np.arange(nodes + 1) * rows // nodes
    place_in_node = np.arange(rows) - np.repeat(ends[:-1], np.diff(ends))
    return np.argsort(place_in_node, kind="stable")
