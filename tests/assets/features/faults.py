"""Decoders that misbehave on videos whose name says so, and decode the others; used inside decoding
processes.
"""

import ctypes
import os
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from assets.features.workers.backends import open_pyav


class Wrapped:
    """A video whose pictures come through a function that may do harm."""

    def __init__(self, video, harm):
        self._video, self._harm = video, harm

    def __getattr__(self, name):
        return getattr(self._video, name)

    def __iter__(self):
        for item in self._video:
            self._harm(item[0])
            yield item


@contextmanager
def open_faulty(path: str, **options):
    """After five pictures `hang`, `segfault`, `hog`, `exit` and `spin` do as they say; `late` hangs
    before the first one.
    """
    name = Path(path).stem
    if "late" in name:
        time.sleep(3600)
    with open_pyav(path, **options) as video:
        yield Wrapped(video, partial(harm, name))


def harm(name: str, k: int) -> None:
    """What a video of that name does with its picture `k`."""
    if k < 5:
        return
    if "hang" in name:
        time.sleep(3600)
    elif "segfault" in name:
        os.write(2, b"about to crash\n")
        ctypes.string_at(0)
    elif "hog" in name:
        held = []
        while True:
            held.append(bytearray(64 << 20))
    elif "exit" in name:
        os._exit(7)
    elif "spin" in name:
        while True:
            pass


@contextmanager
def open_slow(path: str, **options):
    """A decoder that takes its time."""
    with open_pyav(path, **options) as video:
        yield Wrapped(video, lambda k: time.sleep(0.03))


@contextmanager
def open_nosy(path: str, **options):
    """Looks for what a decoder must not have, and fails with what it found."""
    found = [name for name in os.environ if "SECRET" in name]
    try:
        import socket

        socket.create_connection(
            ("127.0.0.1", int(Path(path).stem.split("-")[-1])), timeout=2
        ).close()
        found.append("network")
    except OSError:
        pass
    if found:
        raise RuntimeError(f"found {found}")
    with open_pyav(path, **options) as video:
        yield video
