"""How often damage to a video goes by in silence: clips whose pictures carry their number are hurt
in many ways, and what is read of them is compared with what was drawn.

    python -m benchmarks.media_mutants --each 40

A mutant is *refused*, or *told* if anything says that it is damaged. If nothing does, it is
*unchanged* where every picture is there and looks as it should, else *short* (pictures are gone
and those that are left are right) or *wrong*.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from model.media.damage import damage_counts
from model.media.reader import read
from model.media.refusals import MediaError
from model.media.timeline import read_timeline
from tests.model.media import clips, tricky

SIZE = 64
SORTS = ("refused", "told", "unchanged", "short", "wrong")
VISIBLE = 24  # steps of 255 that a cell of the board may differ by
CLIPS: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": lambda path: clips.encode(path, 90, options=tricky.X264),
    "h264.ts": lambda path: clips.encode(path, 90, options=tricky.X264),
    "hevc.mp4": lambda path: clips.encode(path, 90, codec="libx265", options=tricky.QUIET_X265),
    "vp9.webm": lambda path: clips.encode(path, 90, codec="libvpx-vp9", options=tricky.FAST_VP9),
    "av1.mp4": tricky.av1,
    "mpeg4.avi": lambda path: clips.encode(path, 90, codec="mpeg4", options={"bf": "0"}),
    "mpeg2.mpg": lambda path: clips.encode(path, 90, codec="mpeg2video", rate=25),
}


def hurt(data: bytes, dice: random.Random, begin: int) -> bytes:
    """The file with one sort of damage behind its first bytes."""
    found = bytearray(data)
    sort = dice.choice(("bits", "bytes", "zeros", "cut", "lost"))
    at = dice.randrange(begin, len(found))
    if sort == "bits":
        for _ in range(dice.choice((1, 3, 10))):
            found[dice.randrange(begin, len(found))] ^= 1 << dice.randrange(8)
    elif sort == "bytes":
        found[at : at + 16] = dice.randbytes(len(found[at : at + 16]))
    elif sort == "zeros":
        found[at : at + 400] = bytes(len(found[at : at + 400]))
    elif sort == "cut":
        del found[at:]
    else:
        del found[at : at + 188]
    return bytes(found)


def outcome(path: Path, sound: np.ndarray, times: np.ndarray) -> str:
    """One of `SORTS`."""
    try:
        line = read_timeline(path)
        seen = read(line, np.arange(line.frames), size=SIZE)
    except MediaError:
        return "refused"
    told = any(damage_counts(line, seen.report).values())
    nearest = np.abs(times[None] - line.pts[:, None]).argmin(axis=1)
    apart = np.abs(seen.frames_THWC.astype(int) - sound[nearest]).reshape(line.frames, -1)
    if told:
        return "told"
    if (apart > VISIBLE).mean(axis=1).max() >= 0.01:
        return "wrong"
    return "unchanged" if line.frames == len(times) else "short"


def main() -> None:
    """Print a row for each kind of clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=40, help="mutants of each kind of clip")
    asked = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)
    total = Counter[str]()
    print(" | ".join(["clip", "mutants", *SORTS]))
    with tempfile.TemporaryDirectory() as folder:
        for name, build in CLIPS.items():
            path = build(Path(folder) / name)
            data, dice, counts = path.read_bytes(), random.Random(name), Counter[str]()
            line = read_timeline(path)
            sound = read(line, np.arange(line.frames), size=SIZE).frames_THWC.astype(int)
            with av.open(str(path)) as container:
                places = [packet.pos for packet in container.demux(video=0) if packet.pos]
            for _ in range(asked.each):
                path.write_bytes(hurt(data, dice, min(places)))
                counts[outcome(path, sound, line.pts)] += 1
            total += counts
            print(row(name, counts))
    print(row("all", total))


def row(name: str, counts: Counter[str]) -> str:
    """One line of the table."""
    return " | ".join([name, str(counts.total()), *(str(counts[sort]) for sort in SORTS)])


if __name__ == "__main__":
    main()
