"""Fragments that a fragmented MP4 file should have and has not.

Downloaders put such files together from many small ones and may leave out what they could not get.
The file then plays, with a hole where nothing is shown. FFmpeg does not tell; the boxes do: each
fragment has a number, and says when its first picture comes and how long each lasts.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

MOST_BOXES = 1 << 20  # of one file that are looked at
MOST_BYTES = 8 << 20  # of one `moof` or `moov`
SLACK_S = 0.5  # by which the clock of a sound file may jump between two fragments


@dataclass(frozen=True, slots=True)
class MissingFragments:
    """How many fragments are missing by their numbers, and how many seconds by their clocks."""

    fragments: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Track:
    """What one track's headers say: ticks a second, default ticks of a picture, and the tick at
    which its newest fragment ends.
    """

    timescale: int = 1
    lasting: int = 0
    end: int | None = None


def missing_fragments(path: str) -> MissingFragments:
    """What is missing of an MP4 file; nothing of one without fragments.

    Numbers count where they grow by the same step nearly always, as the standard asks. Some
    programs write zeros: then clocks alone decide.
    """
    numbers: list[int] = []
    tracks: dict[int, _Track] = {}
    seconds = 0.0
    with Path(path).open("rb") as file:
        for kind, body in _top_boxes(file):
            if kind == b"moov":
                tracks = _tracks(body)
            elif kind == b"moof":
                seconds += _read_fragment(body, numbers, tracks)
    fragments = _left_out(numbers)
    if fragments and not seconds:  # no clock in it: by the mean of those that are there
        shown = max((t.end / t.timescale for t in tracks.values() if t.end), default=0.0)
        seconds = fragments * shown / len(numbers)
    return MissingFragments(fragments, seconds)


def _left_out(numbers: list[int]) -> int:
    """How many numbers are left out of a list that should count up."""
    steps = [after - before for before, after in pairwise(numbers)]
    if not steps or min(steps) <= 0:
        return 0
    step, times = Counter(steps).most_common(1)[0]
    if times * 2 <= len(steps) and len(steps) > 2:
        return 0
    return sum(gap // step - 1 for gap in steps if gap > step and gap % step == 0)


def _top_boxes(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes that tell of fragments; everything else is skipped."""
    place = 0
    for _ in range(MOST_BOXES):
        file.seek(place)
        start = file.read(16)
        if len(start) < 8:
            return
        size, kind = struct.unpack_from(">I4s", start)
        room = 8
        if size == 1 and len(start) == 16:
            size, room = struct.unpack_from(">Q", start, 8)[0], 16
        if size < room:
            return
        if kind in (b"moov", b"moof") and size <= MOST_BYTES:
            file.seek(place + room)
            yield kind, file.read(size - room)
        place += size


def _boxes(body: bytes, kind: bytes) -> Iterator[bytes]:
    """Contents of the boxes of one type directly inside another."""
    place = 0
    while place + 8 <= len(body):
        size, found = struct.unpack_from(">I4s", body, place)
        if size < 8:
            return
        if found == kind:
            yield body[place + 8 : place + size]
        place += size


def _tracks(moov: bytes) -> dict[int, _Track]:
    """The video tracks of a file by their number."""
    tracks: dict[int, _Track] = {}
    try:
        for trak in _boxes(moov, b"trak"):
            [head] = _boxes(trak, b"tkhd")
            [media] = _boxes(trak, b"mdia")
            [clock], [handler] = _boxes(media, b"mdhd"), _boxes(media, b"hdlr")
            if handler[8:12] == b"vide":
                number = struct.unpack_from(">I", head, 20 if head[0] else 12)[0]
                scale = struct.unpack_from(">I", clock, 20 if clock[0] else 12)[0]
                tracks[number] = _Track(max(1, scale))
        for extends in _boxes(moov, b"mvex"):
            for defaults in _boxes(extends, b"trex"):
                number, _, lasting = struct.unpack_from(">III", defaults, 4)
                if number in tracks:
                    tracks[number].lasting = lasting
    except (ValueError, struct.error, IndexError):  # a broken header: FFmpeg tells of that
        return {}
    return tracks


def _read_fragment(moof: bytes, numbers: list[int], tracks: dict[int, _Track]) -> float:
    """Note a fragment's number and where its tracks end; returns the seconds that are missing
    before it.
    """
    missing = 0.0
    try:
        numbers += [struct.unpack_from(">I", box, 4)[0] for box in _boxes(moof, b"mfhd")]
        for part in _boxes(moof, b"traf"):
            [head] = _boxes(part, b"tfhd")
            flags, number = struct.unpack_from(">II", head)
            track = tracks.get(number)
            if track is None:
                continue
            place = 8 + 8 * bool(flags & 1) + 4 * bool(flags & 2)
            lasting = struct.unpack_from(">I", head, place)[0] if flags & 8 else track.lasting
            begin = next((_clock(box) for box in _boxes(part, b"tfdt")), track.end or 0)
            if track.end is not None and begin - track.end > SLACK_S * track.timescale:
                missing += (begin - track.end) / track.timescale
            track.end = begin + sum(_lasting(run, lasting) for run in _boxes(part, b"trun"))
    except (ValueError, struct.error, IndexError):  # a broken fragment: FFmpeg tells of that
        return missing
    return missing


def _clock(tfdt: bytes) -> int:
    return int(struct.unpack_from(">Q" if tfdt[0] else ">I", tfdt, 4)[0])


def _lasting(trun: bytes, default: int) -> int:
    """Ticks that a run of pictures lasts."""
    flags, count = struct.unpack_from(">II", trun)
    flags &= 0xFFFFFF
    if not flags & 0x100:
        return int(count * default)
    place = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
    stride = 4 * sum(bool(flags & bit) for bit in (0x100, 0x200, 0x400, 0x800))
    count = min(count, (len(trun) - place) // stride)
    return sum(struct.unpack_from(">I", trun, place + stride * i)[0] for i in range(count))
