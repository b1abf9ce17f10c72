"""What a decoding process does: open the video that it is told to, put its pictures into slots of
the frame buffer, and say which picture is in which slot.

    coordinator -> decoder   ["job", job, path, options, CPU seconds]
                             ["slots", [slot, ...]]     it may write to these, once each
                             ["quit"]
    decoder -> coordinator   ["start", job, facts]      frames, duration, codec, decoder and why
                             ["frames", job, [[k, slot, seconds], ...]]
                             ["end", job, stats, usage]
                             ["corrupt", job, stats]    too much of it is missing
                             ["fail", job, reason, detail]

A decoder without slots waits for more. That is all that keeps decoders from running ahead of the
encoders.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from assets.features.workers.backends import Backend, TooLong
from assets.features.workers.connection import Connection
from assets.features.workers.frame_buffer import FrameBuffer
from model.media.refusals import MediaError

MAX_DETAIL = 2000  # characters of an error that are kept

# Pictures are announced in groups, to send fewer messages. A group is sent once it has so many
# pictures, or its first picture is so many seconds old when another one comes.
GROUP_PICTURES = 16
GROUP_S = 0.1


def decode_videos(
    connection: Connection, buffer: FrameBuffer, open_video: Backend, limits: dict[str, Any]
) -> None:
    """Decode one video after the other until told to quit.

    Args:
        connection: to the coordinator.
        buffer: where pictures go.
        open_video: the backend that decodes.
        limits: `memory_bytes`, for the error message only.
    """
    slots = FreeSlots(connection)
    while (message := connection.receive()) is not None and message[0] != "quit":
        if message[0] == "slots":
            slots.add(message[1])
            continue
        _, job, path, options, cpu_s = message
        _limit_cpu(cpu_s)
        try:
            _decode_video(connection, buffer, slots, open_video, job, path, options)
        except MediaError as error:
            connection.send("fail", job, error.reason, error.detail[:MAX_DETAIL])
        except TooLong as error:
            connection.send("fail", job, "too_long", str(error))
        except FileNotFoundError:
            detail = "the catalogue lists it, but the file is not there"
            connection.send("fail", job, "missing", detail)
        except MemoryError:
            detail = f"more than {limits['memory_bytes'] / 2**30:.1f} GiB needed"
            connection.send("fail", job, "oom", detail)


class FreeSlots:
    """The slots that this decoder may write to.

    Attributes:
        waited_s: seconds spent waiting for slots so far.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: list[int] = []
        self.waited_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, slots: list[int]) -> None:
        """Slots that the coordinator has given."""
        self._slots += slots

    def take(self) -> int:
        """One slot, waiting for it if there is none.

        Raises:
            SystemExit: the coordinator said to quit, or is gone.
        """
        if not self._slots:
            started = time.monotonic()
            while not self._slots:
                message = self._connection.receive()
                if message is None or message[0] == "quit":
                    raise SystemExit
                self.add(message[1])
            self.waited_s += time.monotonic() - started
        return self._slots.pop()


def _decode_video(
    connection: Connection,
    buffer: FrameBuffer,
    slots: FreeSlots,
    open_video: Backend,
    job: int,
    path: str,
    options: dict[str, Any],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    started, waited_s = time.monotonic(), slots.waited_s
    with open_video(path, **options) as video:
        connection.send("start", job, video.facts)
        _send_pictures(connection, buffer, slots, job, iter(video), video.frames)
        if video.too_corrupt:
            connection.send("corrupt", job, video.stats)
            return
        after = resource.getrusage(resource.RUSAGE_SELF)
        usage = {
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "busy_s": time.monotonic() - started - (slots.waited_s - waited_s),
            "memory_bytes": after.ru_maxrss * 1024,
            "on_gpu": video.on_gpu,
            "gave_up": video.gave_up[:MAX_DETAIL],
        }
        connection.send("end", job, video.stats, usage)


def _send_pictures(
    connection: Connection,
    buffer: FrameBuffer,
    slots: FreeSlots,
    job: int,
    pictures: Iterator[tuple[int, float, np.ndarray]],
    frames: int,
) -> None:
    """Put every picture into a slot, and announce it.

    Raises:
        RuntimeError: the backend gave other pictures than the `frames` that it promised.
    """
    group: list[tuple[int, int, float]] = []  # pictures not announced yet: k, slot, seconds
    group_started = 0.0
    expected = 0
    for k, seconds, picture in pictures:
        if group and not slots:  # the wait for a slot may be long
            connection.send("frames", job, group)
            group = []
        slot = slots.take()
        if k != expected:
            raise RuntimeError(f"picture {k} came where {expected} was due")
        expected += 1
        np.copyto(buffer.pictures[slot], picture)
        if not group:
            group_started = time.monotonic()
        group.append((k, slot, seconds))
        if len(group) >= GROUP_PICTURES or time.monotonic() - group_started > GROUP_S:
            connection.send("frames", job, group)
            group = []
    if group:
        connection.send("frames", job, group)
    if expected != frames:
        raise RuntimeError(f"{expected} pictures of {frames} promised")


def _limit_cpu(seconds: float) -> None:
    """CPU time that this process may still use before the kernel ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    limit = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
