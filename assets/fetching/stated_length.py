"""Whether a video file says by itself how long it is, so that a cut one can be told."""

from __future__ import annotations

from pathlib import Path

STREAMED = (".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob")  # packets, and nothing about the whole
HEAD_BYTES = 1 << 16
MATROSKA_DURATION = b"\x44\x89"


def states_its_length(path: Path, suffix: str) -> bool:
    """Whether the container states the duration of the whole.

    Transport and program streams do not. A fragmented MP4 does not either: what decoders give as
    its duration is that of the fragments that are there.

    Args:
        suffix: of the kind of container, by content.
    """
    if suffix in STREAMED:
        return False
    with open(path, "rb") as file:
        if suffix in (".mkv", ".webm"):
            return MATROSKA_DURATION in file.read(HEAD_BYTES)
        if suffix in (".mp4", ".mov", ".m4v", ".3gp"):
            while len(head := file.read(16)) >= 8:
                size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
                if kind == b"moof":
                    return False
                if size == 1:
                    size, header = int.from_bytes(head[8:], "big"), 16
                if size < header:  # to the end of the file, or damaged
                    break
                file.seek(size - len(head), 1)
    return True
