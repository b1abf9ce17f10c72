"""From shards to packs on the device.

In reading order:

    micro_batch     what a loader gives, and what training needs of one
    loader          the loader over shards: order, resumption, dropped rows
    shard_index     which shards there are, and whether they are whole
    held_out        which samples are never trained on
    survey          what cannot be used, known before the first step
    order           in which order rows are read, and by which rank
    rows            one row by its number
    sample_dataset  one row -> what the model takes
    worker_pool     processes that do this
    fork_server     what these are forked from
    packing         which samples share a forward pass
    prefetch        all of it in a thread, beside the computation
"""
