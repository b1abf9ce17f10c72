"""What the pipeline writes and training reads: files, their names and their root.

In reading order:

    layout         where everything lies below the root
    kinds          the kinds of shards
    sample         one row of a shard
    feature_file   features of one video
    feature_store  feature files of many videos
    mds_columns    single columns of a shard
    storage        the root: a local folder or any fsspec URL
    file_cache     local copies of remote files
    hashing        hashes and seeds
    receipts       whether files are still the bytes that were recorded
    machine_faults whose fault an error is, and waiting for the machine's to pass
"""
