"""One video decoded in several places at once, each by a thread of its own: FFmpeg, the colour
conversion and the resizing leave Python's lock to the others.

For who waits for one long video. Each thread opens the file anew and takes a stretch of the
wanted pictures; groups of packets before it are passed over without decoding
(`model.media.groups`), so pictures are those of `reader.decode` to the last bit, as long as nothing
is damaged. Where something is, `Damaged` is raised: what stands in for a missing picture, and what
is counted, depends on the pictures before it, and only `reader.decode` sees all of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from model.media.reader import DecodeReport, decode
from model.media.timeline import Timeline

LEAST = 120  # pictures of one thread: opening a file and passing over the rest takes time, too
HELD = 256  # pictures that wait to be taken


class Damaged(Exception):
    """The video has to be decoded from its beginning, in one go."""


def parts_of(line: Timeline, wanted: int, threads: int) -> int:
    """In how many parts to decode so many pictures of a video. One where packets and frames do not
    correspond, since every frame is then counted from the first.
    """
    return max(1, min(threads, wanted // LEAST)) if line.skippable else 1


def decode_in_parts(
    line: Timeline, indices: Sequence[int] | np.ndarray, *, size: int, parts: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for each of `indices` its place among them and its picture, uint8 RGB [size, size, 3];
    in order within a part, in any order among them.

    Raises:
        Damaged: something does not decode; what was yielded before is no use.
        ValueError, MediaError: as `reader.decode`.
    """
    found: queue.Queue[Any] = queue.Queue(HELD)
    stopped = threading.Event()
    places = np.array_split(np.arange(len(indices)), parts)
    threads = [
        threading.Thread(
            target=_decode_part,
            args=(line, np.asarray(indices), own, size, found, stopped),
            name="decoder",
            daemon=True,
        )
        for own in places
    ]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            item = found.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def _decode_part(
    line: Timeline,
    indices: np.ndarray,
    places: np.ndarray,
    size: int,
    found: queue.Queue[Any],
    stopped: threading.Event,
) -> None:
    """Put the pictures of some places into `found`, then None, or what was raised."""
    import torch  # not with this module: its import takes longer than reading a timeline

    torch.set_num_threads(1)  # of the resizing, for threads that start now: these fill the cores
    report = DecodeReport()
    try:
        pictures = decode(line, indices[places], size=size, report=report)
        for place, picture in zip(places.tolist(), pictures, strict=True):
            if not _put(found, (place, picture), stopped):
                return
        if report.damaged:
            raise Damaged(line.path)
        _put(found, None, stopped)
    except BaseException as error:  # whatever it is, who takes the pictures raises it
        _put(found, error, stopped)


def _put(found: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    """Put an item once there is room; False where nobody wants it any more."""
    while not stopped.is_set():
        try:
            found.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
