"""What the pipeline writes and training reads: files, their names and their root.

In reading order:

    layout         where everything lies below the root
    kinds          the kinds of shards
    sample         one row of a shard
    feature_file   features of one video
    feature_store  feature files of many videos
    storage        the root: a local folder or any fsspec URL
    file_cache     local copies of remote files
    hashing        hashes and seeds
"""
