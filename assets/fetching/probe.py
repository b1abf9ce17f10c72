"""Whether a file is the video it should be.

`model.media.examination` looks into it, in child processes that are locked up. It finds what
everybody finds who uses the video later: the same stream, the same clock, the same limits.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from assets.fetching.isolation import bare_environment
from assets.fetching.options import Download
from model.media.limits import MAX_VIDEO_PIXELS

LOG = logging.getLogger(__name__)
PROJECT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("probe_worker.py")
LEAST_TIME_S = 60.0
# A file that is looked into more slowly than this is taken for a hang. Where the packets do not say
# when their pictures are shown, all of them are decoded.
BYTES_PER_S = 1 << 20
START_S = 120.0  # for a child to start
TOLERANCE_SHARE = 0.02  # of a duration; `download.verify_tolerance_s` where that is more


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


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a file holds.

    Attributes:
        suffix: by content (`.mp4`, `.webm`, ...), whatever the file is called.
        duration: seconds of picture, and `frames` how many, by the timeline that everybody uses.
        missing_s: seconds that the file itself says it should hold beside these.
        losses: what is missing by what the file itself says, by name; see
            `model.media.timeline.Timeline`.
        bad_places: where, from 0 to 1, no intact picture could be decoded.
    """

    suffix: str
    duration: float
    frames: int
    missing_s: float
    losses: dict[str, float]
    codec: str
    width: int
    height: int
    bad_places: tuple[float, ...]

    @property
    def damaged(self) -> bool:
        """Whether anything shows that the file is not as it was made."""
        return bool(self.bad_places) or any(self.losses.values())


class ProbePool:
    """Child processes (`probe_worker.py`) that probe files. One that hangs is killed, one that
    crashed is replaced.

    Use it as a context manager. Many threads may use it: each has a child of its own while it
    probes.

    Args:
        time_limit_s: after which a child counts as hung; by default longer for larger files.
        max_pixels: most width x height of a picture; the features' limit where the videos are for
            these.
    """

    def __init__(
        self, time_limit_s: float | None = None, max_pixels: int = MAX_VIDEO_PIXELS
    ) -> None:
        self.time_limit_s, self.max_pixels = time_limit_s, max_pixels
        self._unused: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()

    def __enter__(self) -> ProbePool:
        return self

    def __exit__(self, *_: object) -> None:
        while not self._unused.empty():
            _kill(self._unused.get())

    def probe(self, path: Path) -> VideoFacts:
        """What `path` holds.

        Raises:
            InvalidVideo: it is no readable video, or it hung or crashed the decoder.
        """
        limit = self.time_limit_s or max(LEAST_TIME_S, path.stat().st_size / BYTES_PER_S)
        with self._child() as child:
            answer = _request(child, {"path": str(path), "max_pixels": self.max_pixels}, limit)
        if "invalid" in answer:
            raise InvalidVideo(*answer["invalid"])
        facts = answer["facts"]
        return VideoFacts(**{**facts, "bad_places": tuple(facts["bad_places"])})

    @contextmanager
    def _child(self) -> Iterator[subprocess.Popen[bytes]]:
        try:
            child = self._unused.get_nowait()
        except queue.Empty:
            child = _start()
        try:
            yield child
        except BaseException:
            _kill(child)
            raise
        self._unused.put(child)


def check_video(facts: VideoFacts, limits: Download, expected_s: float | None) -> None:
    """Compare a file with what was expected of it.

    Raises:
        InvalidVideo: `truncated`, `fragments_missing`, `damaged`, `duration_differs` or `too_long`.
    """

    stated = facts.duration + facts.missing_s
    if facts.missing_s > _tolerance(stated, limits):
        if number := facts.losses["missing_fragments"]:
            raise InvalidVideo(
                "fragments_missing", f"{number:g} fragments, {facts.missing_s:.1f} s, were left out"
            )
        raise InvalidVideo("truncated", f"{facts.duration:.1f} s of {stated:.1f} s are there")
    broken = facts.bad_places
    if 0.0 in broken or 1.0 in broken or len(broken) > 1:
        places = ", ".join(f"{place:.0%}" for place in broken)
        raise InvalidVideo("damaged", f"no picture could be decoded at {places} of the video")
    if expected_s and duration_differs(facts.duration, expected_s, limits):
        raise InvalidVideo(
            "duration_differs", f"{facts.duration:.1f} s, expected {expected_s:.1f} s"
        )
    if facts.duration > limits.max_duration_s:
        raise InvalidVideo(
            "too_long", f"{facts.duration:.0f} s, allowed are {limits.max_duration_s:.0f} s"
        )


def duration_differs(duration: float, expected_s: float, limits: Download) -> bool:
    """Whether a video is not as long as was stated; both in seconds."""
    return abs(expected_s - duration) > _tolerance(expected_s, limits)


def _tolerance(duration: float, limits: Download) -> float:
    return max(limits.verify_tolerance_s, TOLERANCE_SHARE * duration)


def _start() -> subprocess.Popen[bytes]:
    """A child that is ready.

    Raises:
        RuntimeError: none can be started here, whatever file it would look into.
    """
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    child = subprocess.Popen(
        [sys.executable, "-P", str(WORKER)],
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
    child: subprocess.Popen[bytes], request: dict[str, object], limit_s: float
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
