"""The one place that relies on the inside of MosaicML Streaming.

`generate_work` computes an epoch's order from the attributes of a `StreamingDataset`. They are set
here as that class's own constructor sets them. The constructor is not called: it registers names in
the machine's shared memory, which other jobs take when they start at the same time and a killed job
leaves behind, and it makes the ranks of all machines wait for each other. A test compares the order
with that of a plain `StreamingDataset`, so an update of the library that changes them is noticed.
"""

from __future__ import annotations

import numpy as np
from streaming import Stream, StreamingDataset

from training.data.shard_index import ShardIndex
from training.formats.hashing import seed_of
from training.run_config import RunConfig

# Simulated with the block size: feature files are read 1.07 times an epoch, see
# docs/performance.md.
SHUFFLE = "py1e"


class StreamingState(StreamingDataset):
    """A `StreamingDataset` that knows its shards and its order and reads nothing."""

    def __init__(self, run: RunConfig, index: ShardIndex, share: int) -> None:
        # A stream here is only a name and a weight: files are found through the index.
        self.streams = [Stream(local=f"stream-{number}") for number in range(len(index.streams))]
        self.num_streams = len(self.streams)
        self.batch_size = share
        self.batching_method = "per_stream"
        self.num_canonical_nodes = run.canonical_nodes
        self.partition_algo, self.initial_physical_nodes = "relaxed", None
        self.sampling_method, self.sampling_granularity = "balanced", 1
        self.shuffle, self.shuffle_algo = True, SHUFFLE
        self.shuffle_seed = seed_of(run.seed, "shuffle")
        self.shuffle_block_size = run.shuffle_block
        self.epoch_seed_change = True

        self.shards = index.readers
        stream_of_shard = [shard.stream for shard in index.shards]
        self.shards_per_stream = np.bincount(stream_of_shard, minlength=self.num_streams)
        self.shard_offset_per_stream = self.shards_per_stream.cumsum() - self.shards_per_stream
        self.samples_per_shard = np.array([shard.samples for shard in index.shards], np.int64)
        self.sample_offset_per_shard = self.samples_per_shard.cumsum() - self.samples_per_shard
        rows = [index.rows_of_stream(number) for number in range(self.num_streams)]
        Stream.apply_weights(self.streams, np.array(rows, np.int64), None, self.shuffle_seed)
        for stream in self.streams:
            # The library gives a stream only its share of the block; then long videos would mix the
            # less, and feature files be read the nearer together, the more other samples there are.
            stream.proportion = 1.0
