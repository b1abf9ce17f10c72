"""What a decoding child does: open the video it is told to, and put one picture after the other
into its slots.

    coordinator -> child   ["job", job, path, options, cpu seconds]   ["slots", [slot, ...]]   ["quit"]
    child -> coordinator   ["start", job, facts]               the plan: frames, duration, decoder and why, codec
                           ["frames", job, [[k, slot, seconds], ...]]
                           ["end", job, stats, usage]   or   ["fail", job, reason, detail]

A child holds slots that it was granted and no others; with none left it waits, which is the only
back-pressure.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from assets.features.backends import TooLong
from assets.features.channel import Channel
from assets.features.ring import Ring
from model.media.container import MediaError

DETAIL = 2000  # characters of an error that are kept
FLUSH_S = 0.1  # pictures are announced together, but never later than this after the first


def serve(
    channel: Channel, ring: Ring, open_video: Callable[..., Any], limits: dict[str, Any]
) -> None:
    """Work off jobs until told to quit."""
    slots: list[int] = []
    while (message := channel.receive()) is not None and message[0] != "quit":
        if message[0] == "slots":
            slots += message[1]
        else:
            _, job, path, options, cpu_s = message
            _limit_cpu(cpu_s)
            try:
                _decode(channel, ring, slots, open_video, job, path, options)
            except MediaError as error:
                channel.send("fail", job, error.reason, error.detail[:DETAIL])
            except TooLong as error:
                channel.send("fail", job, "too_long", str(error))
            except FileNotFoundError:
                channel.send(
                    "fail", job, "missing", "the catalogue lists it, but the file is not there"
                )
            except MemoryError:
                channel.send(
                    "fail", job, "oom", f"more than {limits['memory_bytes'] / 2**30:.1f} GiB needed"
                )


def _decode(
    channel: Channel,
    ring: Ring,
    slots: list[int],
    open_video: Callable[..., Any],
    job: int,
    path: str,
    options: dict[str, Any],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF)
    started, waited, expected = time.monotonic(), 0.0, 0
    with open_video(path, **options) as video:
        channel.send("start", job, video.facts)
        ready: list[list[Any]] = []
        first = 0.0
        for k, seconds, picture in video:
            if not slots:
                if ready:
                    channel.send("frames", job, ready)
                    ready = []
                blocked = time.monotonic()
                while not slots:
                    message = channel.receive()
                    if message is None or message[0] == "quit":
                        raise SystemExit
                    slots += message[1]
                waited += time.monotonic() - blocked
            if k != expected:
                raise RuntimeError(f"picture {k} came where {expected} was due")
            expected += 1
            slot = slots.pop()
            np.copyto(ring.pictures[slot], picture)
            if not ready:
                first = time.monotonic()
            ready.append([k, slot, seconds])
            if len(ready) >= 16 or time.monotonic() - first > FLUSH_S:
                channel.send("frames", job, ready)
                ready = []
        if ready:
            channel.send("frames", job, ready)
        if expected != video.frames:
            raise RuntimeError(f"{expected} pictures of {video.frames} promised")
        after = resource.getrusage(resource.RUSAGE_SELF)
        usage = {
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "busy_s": time.monotonic() - started - waited,
            "memory_bytes": after.ru_maxrss * 1024,
        }
        if video.too_corrupt:
            channel.send("fail", job, "too_corrupt", said(video.stats))
        else:
            channel.send("end", job, video.stats, usage)


def said(stats: dict[str, float]) -> str:
    """What went wrong, for people."""
    return ", ".join(f"{name} {count:g}" for name, count in stats.items() if count)


def _limit_cpu(seconds: float) -> None:
    """CPU time that this process may still use before the kernel ends it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 1, hard)
    )
