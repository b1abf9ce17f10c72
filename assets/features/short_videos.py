"""The short videos that the samples of one LLaVA part are about."""

from __future__ import annotations

from assets.annotations.catalogue import PresentVideo
from assets.records.product_files import LIST_SUFFIX, read_list
from assets.shards.mds import read_column
from training.formats import layout
from training.formats.kinds import SHORT_VIDEO_KIND
from training.formats.receipts import describe_files
from training.formats.storage import Storage


def short_videos(storage: Storage, part: str) -> list[PresentVideo]:
    """Each video of a part's samples once, by name; of one whose file is gone the hash is empty.

    How long they are is not known before they are read.

    Args:
        part: whose shards are written.
    """
    names = sorted(set(read_column(storage, layout.shards(SHORT_VIDEO_KIND, part), "video")))
    paths = {name: f"{layout.LLAVA_VIDEO_FILES}/{name}" for name in names}
    hashes = {
        entry.path: entry.hash
        for listed in storage.list(f"{layout.LLAVA_VIDEO}/files", LIST_SUFFIX)
        for entry in read_list(storage, listed)
    }
    unlisted = [path for path in paths.values() if path not in hashes and storage.exists(path)]
    hashes |= {entry.path: entry.hash for entry in describe_files(storage, unlisted)}
    return [
        PresentVideo(name, 0.0, hashes.get(path, ""), path, damaged=False)
        for name, path in paths.items()
    ]
