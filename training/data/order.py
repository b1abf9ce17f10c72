"""In which order the rows of an epoch are read, and by which rank.

Order and mixing are MosaicML Streaming's own: per-stream batching and block-wise shuffle. Which
rank takes which rows of a step is not: ranks are evened out, see `training.data.balance`. Its
reading side is not used either, see `training.data.shard_index`.
"""

from __future__ import annotations

import os

import numpy as np
from streaming.base.batching import generate_work
from streaming.base.world import World

from training.data.balance import deal
from training.data.packing import group_sizes
from training.data.shard_index import ShardIndex
from training.data.streaming_state import StreamingState
from training.formats.hashing import seed_of
from training.run_config import RunConfig


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
        self._state = StreamingState(run, index, self.share // self.stream_batches)

    @property
    def identity(self) -> str:
        """A hash of what is read and how it is ordered; a position is only valid within it."""
        run = self.run
        # Contents, not names: the same shards may be read under another path.
        rows = [(shard.stream, shard.samples, shard.xxh64) for shard in self.index.shards]
        settings = run.seed, run.recipe.global_batch, run.canonical_nodes, run.shuffle_block
        other = [run.stream_batch] if run.stream_batch else []
        return f"{seed_of(rows, *settings, *other):08x}"

    def rows(self, epoch: int) -> np.ndarray:
        """This rank's rows of an epoch: int64 [steps, share]. All rows of one step, on all ranks,
        are of one stream; or, with `stream_batch`, those of each of its equal parts.

        Incomplete global batches are left out. For one global batch size, the set of rows of each
        step is the same for every number of ranks.

        Raises:
            ValueError: a stream has fewer rows than one global batch.
        """
        whole = self.share * self.world_size // self.stream_batches
        for number, config in enumerate(self.run.streams):
            rows = self.index.rows_of_stream(number)
            if rows < whole:
                unit = "stream_batch" if self.run.stream_batch else "global batch"
                raise ValueError(
                    f"stream {config.name!r} has {rows} samples, fewer than the {unit} of {whole}; "
                    "set a smaller one or add data"
                )
        nodes, per_node = self._machines()
        world = World(nodes, per_node, 1, self.rank)
        drawn = generate_work("per_stream", self._state, world, epoch, 0)
        machine_RBS = drawn[world.node, :, 0]
        # A batch that the rows do not fill holds -1.
        machine_RBS = machine_RBS[:, (machine_RBS >= 0).all(axis=(0, 2))]
        steps = machine_RBS.shape[1] // self.stream_batches
        machine_RBS = machine_RBS[:, : steps * self.stream_batches]
        if self.work is not None and per_node > 1:
            machine_RBS = self._dealt(machine_RBS, self.work)
        own_BS = machine_RBS[world.rank_of_node]
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
