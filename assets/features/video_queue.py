"""The videos that wait for a decoder, and the fetching of their files from a remote root."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from assets.annotations.catalogue import PresentVideo
from training.formats.storage import Storage


class VideoQueue:
    """Videos, the longest first, so that none of the long ones is left over for the end.

    The files of the next videos are fetched while others are decoded. For a local root that costs
    nothing.

    Args:
        storage: where the files are.
        videos: all that will be taken.
    """

    def __init__(self, storage: Storage, videos: Iterable[PresentVideo]) -> None:
        self._storage = storage
        self._waiting = deque(sorted(videos, key=lambda video: (-video.duration, video.video)))
        self._fetched: deque[tuple[PresentVideo, Future[Path]]] = deque()
        self._threads = ThreadPoolExecutor(2, "fetch")

    def __len__(self) -> int:
        """Videos that nobody has taken yet."""
        return len(self._waiting) + len(self._fetched)

    def prefetch(self, decoders: int) -> None:
        """Begin to fetch the files that so many decoders will ask for next."""
        ahead = 1 if self._storage.is_local else 2 + decoders
        while self._waiting and len(self._fetched) < ahead:
            video = self._waiting.popleft()
            future: Future[Path] = Future()
            if self._storage.is_local:
                future.set_result(self._storage.local(video.rel))
            else:
                future = self._threads.submit(self._storage.local, video.rel)
            self._fetched.append((video, future))

    def take(self) -> tuple[PresentVideo, Future[Path]] | None:
        """The next video and its file, which is there or could not be fetched. None if there is no
        video, or its file is still on its way.
        """
        if not self._fetched or not self._fetched[0][1].done():
            return None
        return self._fetched.popleft()

    def put_back(self, video: PresentVideo) -> None:
        """Have a video taken again, whose decoder has died of something else."""
        self._waiting.appendleft(video)

    def close(self) -> None:
        """Fetch nothing more."""
        self._threads.shutdown(cancel_futures=True)
