"""Child processes that look into strangers' files: locked up, killed when they hang, replaced when
they crash.

A child reads one JSON object a line and answers with one: `{"invalid": [reason, message]}` where
the file is no usable video, anything else where it is. Its first line says how it is locked up.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from assets.fetching.isolation import bare_environment

LOG = logging.getLogger(__name__)
PROJECT = Path(__file__).parents[2]
START_S = 120.0  # for a child to start

# Whether another download may give a sound file, for every reason of `check_video` and of
# `model.media.refusals`: what is cut off or damaged may have been so on its way. What is not here
# is a fact about the file as it is at its source.
MAY_BE_THE_WAY = frozenset(
    {"truncated", "damaged", "unreadable", "no_frames", "no_frame_decodes", "fragments_missing"}
)


class InvalidVideo(Exception):
    """The file is not a usable video; `reason` is one word, the text says what was seen."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def another_download_may_help(self) -> bool:
        """Whether what is wrong may have happened on the way here."""
        return self.reason in MAY_BE_THE_WAY


class LockedChildren:
    """Children of one sort. Many threads may ask: each has a child of its own while it does.

    Args:
        worker: the Python file that a child runs.
    """

    def __init__(self, worker: Path) -> None:
        self._worker = worker
        self._unused: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()

    def close(self) -> None:
        """End the children."""
        while not self._unused.empty():
            _kill(self._unused.get())

    def ask(self, request: Mapping[str, object], limit_s: float) -> dict[str, Any]:
        """The answer of a child.

        Raises:
            InvalidVideo: that is the answer; or the child hung or crashed over it.
        """
        with self._child() as child:
            answer = _request(child, request, limit_s)
        if "invalid" in answer:
            raise InvalidVideo(*answer["invalid"])
        return answer

    @contextmanager
    def _child(self) -> Iterator[subprocess.Popen[bytes]]:
        try:
            child = self._unused.get_nowait()
        except queue.Empty:
            child = _start(self._worker)
        try:
            yield child
        except BaseException:
            _kill(child)
            raise
        self._unused.put(child)


def _start(worker: Path) -> subprocess.Popen[bytes]:
    """A child that is ready.

    Raises:
        RuntimeError: none can be started here, whatever file it would look into.
    """
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-P", str(worker)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**bare_environment(), "PYTHONPATH": path},
    )
    assert child.stdout is not None
    try:
        first = _answer(child, START_S)
    except InvalidVideo as error:
        _kill(child)
        raise RuntimeError(f"no process that examines videos could be started: {error}") from error
    _tell_once(first["isolation"])
    return child


@cache
def _tell_once(isolation: str) -> None:
    LOG.log(logging.WARNING if "keep the network" in isolation else logging.DEBUG, isolation)


def _request(
    child: subprocess.Popen[bytes], request: Mapping[str, object], limit_s: float
) -> dict[str, Any]:
    assert child.stdin is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        raise InvalidVideo("decoder_crash", "the decoder ended before it was asked") from None
    return _answer(child, limit_s)


def _answer(child: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
    assert child.stdout is not None
    # poll and not select: select refuses descriptors above 1,023, which a process with many open
    # files has.
    answered = select.poll()
    answered.register(child.stdout, select.POLLIN)
    if not answered.poll(limit_s * 1000):
        raise InvalidVideo("decoder_hang", f"no answer within {limit_s:.0f} s")
    line = child.stdout.readline()
    if not line:
        raise InvalidVideo("decoder_crash", f"the decoder ended with status {child.wait()}")
    return json.loads(line)


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
    child.wait()
