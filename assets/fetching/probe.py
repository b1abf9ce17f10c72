"""Whether a file is the video it should be.

All packets are demuxed, pictures are decoded at several places, and the duration is compared. A
header alone says nothing: an MP4 cut in half still states its full duration and number of frames.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.fetching.options import Download
from model.media.limits import MAX_VIDEO_PIXELS

WORKER = Path(__file__).with_name("probe_worker.py")
LEAST_TIME_S = 60.0
BYTES_PER_S = 4 << 20  # a file that is read more slowly than this is taken for a hang
TOLERANCE_SHARE = 0.02  # of a duration; `download.verify_tolerance_s` where that is more


class InvalidVideo(Exception):
    """The file is not a usable video; `reason` is one word, the text says what was seen."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a file holds.

    Attributes:
        suffix: by content (`.mp4`, `.webm`, ...), whatever the file is called.
        duration: seconds of picture, by its packets; `stated_duration` by the header.
        missing_s: how much earlier the packets end than the header says.
        bad_places: where, from 0 to 1, no intact picture could be decoded.
    """

    suffix: str
    duration: float
    stated_duration: float
    missing_s: float
    packets: int
    codec: str
    width: int
    height: int
    bad_places: tuple[float, ...]


class ProbePool:
    """Child processes (`probe_worker.py`) that probe files. One that hangs is killed, one that
    crashed is replaced.

    Use it as a context manager. Many threads may use it: each has a child of its own while it
    probes.

    Args:
        time_limit_s: after which a child counts as hung; by default longer for larger files.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        self.time_limit_s = time_limit_s
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
            answer = _request(child, {"path": str(path), "max_pixels": MAX_VIDEO_PIXELS}, limit)
        if "invalid" in answer:
            raise InvalidVideo(*answer["invalid"])
        facts = answer["facts"]
        return VideoFacts(**{**facts, "bad_places": tuple(facts["bad_places"])})

    @contextmanager
    def _child(self) -> Iterator[subprocess.Popen[bytes]]:
        try:
            child = self._unused.get_nowait()
        except queue.Empty:
            child = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        try:
            yield child
        except BaseException:
            _kill(child)
            raise
        self._unused.put(child)


def check_video(facts: VideoFacts, limits: Download, expected_s: float | None) -> None:
    """Compare a file with what was expected of it.

    Raises:
        InvalidVideo: `truncated`, `damaged`, `duration_differs` or `too_long`.
    """

    if facts.missing_s > _tolerance(facts.stated_duration, limits):
        raise InvalidVideo(
            "truncated", f"{facts.duration:.1f} s of {facts.stated_duration:.1f} s are there"
        )
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


def _request(
    child: subprocess.Popen[bytes], request: dict[str, object], limit_s: float
) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        raise InvalidVideo("decoder_crash", "the decoder ended before it was asked") from None
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
