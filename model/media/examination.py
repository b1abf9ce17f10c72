"""What a fresh file is: all of its packets are read, pictures are decoded at several places.

A header alone says nothing: an MP4 cut in half still states its full duration and number of frames.
The clock, the stream and the limits are those of everybody who uses the video later, because it is
`read_timeline` that reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from model.media.container import FORMATS, FrameDecoder, PacketReader, open_video
from model.media.limits import MAX_VIDEO_PIXELS
from model.media.timeline import Timeline, read_timeline

PLACES = 5  # where pictures are decoded, spread over the whole video, its end included
# Packets that are decoded from a key frame on to reach a place. Key frames may be further apart:
# then what comes of these decides.
MOST_PACKETS = 600


@dataclass(frozen=True, slots=True)
class Examination:
    """What a file holds.

    Attributes:
        timeline: when its pictures are shown, and what is missing by what the file itself says.
        suffix: by content (`.mp4`, `.webm`, ...), whatever the file is called.
        bad_places: where, from 0 to 1, no intact picture could be decoded.
    """

    timeline: Timeline
    suffix: str
    bad_places: tuple[float, ...]

    @property
    def missing_s(self) -> float:
        """Seconds of pictures that the file should hold and does not."""
        line = self.timeline
        cut_off = max(0.0, line.promised_s - line.duration) if line.truncated else 0.0
        return max(cut_off, line.missing_s)

    @property
    def damaged(self) -> bool:
        """Whether anything shows that the file is not as it was made."""
        return bool(self.bad_places) or any(self.timeline.losses.values())


def examine(path: str, *, max_pixels: int = MAX_VIDEO_PIXELS) -> Examination:
    """Look into a local file.

    Raises:
        MediaError: it cannot be used as a video.
    """
    line = read_timeline(path, max_pixels=max_pixels)
    return Examination(line, suffix_of(line), _bad_places(line, max_pixels))


def suffix_of(line: Timeline) -> str:
    """What a file of this content is usually called."""
    with Path(line.path).open("rb") as file:
        head = file.read(512)
    suffix = FORMATS[line.container]
    if suffix == ".mp4" and head[4:12] == b"ftypqt  ":
        return ".mov"
    if suffix == ".mkv" and b"webm" in head[:64]:
        return ".webm"
    if suffix == ".ts" and head[:1] != b"G" and head[4:5] == b"G":
        return ".m2ts"
    return suffix


def _bad_places(line: Timeline, max_pixels: int) -> tuple[float, ...]:
    """Places, as shares of the packets that are shown, from the first key frame on, at which no
    intact picture comes out of the decoder.

    Places are packets in the order of the file, not times: these may be wrong in the same file.
    """
    keys = line.key_packets if len(line.key_packets) else np.zeros(1, np.int64)
    shown = line.shown_packets[np.searchsorted(line.shown_packets, keys[0]) :]
    if not len(shown):
        return tuple(place / (PLACES - 1) for place in range(PLACES))
    targets = shown[np.linspace(0, len(shown) - 1, PLACES).astype(np.int64)]
    group_of = np.searchsorted(keys, targets, side="right")
    starts = keys[np.maximum(group_of, 1) - 1]
    next_starts = np.append(keys, shown[-1] + 1)[group_of]
    # The packet behind a place completes a picture that is stored in two.
    ends = np.minimum(np.minimum(targets + 2, next_starts), starts + MOST_PACKETS)
    bad = set(range(PLACES))
    with open_video(line.path, max_pixels=max_pixels, index=line.stream) as (container, stream):
        group: list[av.Packet] = []  # from the start on that was met last
        for number, packet in enumerate(PacketReader(container, stream), start=1):
            if number - 1 in starts:
                group = [packet]
            elif group and number <= ends[starts < number].max():
                group.append(packet)
            here = np.flatnonzero(ends == number)
            if len(here) and _decodes(group, stream):
                bad.difference_update(here.tolist())
    return tuple(place / (PLACES - 1) for place in sorted(bad))


def _decodes(packets: list[av.Packet], stream: VideoStream) -> bool:
    """Whether packets from a key frame on give pictures, and no damage shows."""
    frames = FrameDecoder(packets, stream)
    pictures = sum(1 for _ in frames)
    stream.codec_context.flush_buffers()
    return pictures > 0 and not frames.bad_packets and not frames.concealed
