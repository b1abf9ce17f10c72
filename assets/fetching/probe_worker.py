"""Opens video files and says what they hold. A child process of `probe.py`.

Files of strangers are opened here and not in the parent: the parent kills this process when it
hangs, and goes on when it crashes. Nothing of ours is imported, so that a child starts quickly.

Reads one JSON object a line (`path`, `max_pixels`) and answers with one: `{"facts": {...}}`
or `{"invalid": [reason, message]}`.
"""

import json
import resource
import sys
from typing import Any

import av

MEMORY_BYTES = 6 << 30
CHECKED_PLACES = 5  # where pictures are decoded, spread over the whole video, its end included
MOST_PACKETS = 400  # sent to the decoder at one place
END_SLACK_S = 0.5  # the last pictures of a file may be cut off by its edit list
BACK_S = 10.0  # how much earlier a second seek begins; the third begins six times as early

# Types of the first box of an MP4 or QuickTime file.
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"moof", b"pnot")


class InvalidVideoError(Exception):
    """The file is not a usable video; `reason` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def container_of(head: bytes) -> tuple[str, str] | None:
    """Demuxer and suffix by a file's first bytes, whatever it is called; None if unknown.

    The demuxer is named when the file is opened. So FFmpeg never takes it for a playlist or another
    text, whose entries may point anywhere.
    """
    if head[4:8] in BOXES:
        return ("mov", ".mov") if head[8:12] == b"qt  " else ("mov", ".mp4")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska", ".webm" if b"webm" in head[:64] else ".mkv"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi", ".avi"
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return "mpegts", ".ts"
    if head[:3] == b"FLV":
        return "flv", ".flv"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg", ".mpg"
    if head[:4] == b"OggS":
        return "ogg", ".ogv"
    if head[:4] == b"\x30\x26\xb2\x75":
        return "asf", ".wmv"
    return None


def probe(path: str, max_pixels: int) -> dict[str, Any]:
    """What the file holds: the fields of `probe.VideoFacts`.

    Raises:
        InvalidVideoError: it is no readable video.
    """
    with open(path, "rb") as file:
        head = file.read(1024)
    container = container_of(head)
    if container is None:
        raise InvalidVideoError("not_a_video", f"begins with {head[:24]!r}")
    try:
        with av.open(path, format=container[0]) as file:
            facts = demux(file, max_pixels)
        with av.open(path, format=container[0]) as file:
            facts["bad_places"] = damaged_places(file, facts.pop("span"))
    except av.FFmpegError as error:
        raise InvalidVideoError("unreadable", str(error)[:300]) from error
    return {"suffix": container[1], **facts}


def video_stream(file: Any) -> Any:
    """The first video stream that is not a cover picture."""
    streams = [
        s for s in file.streams.video if not s.disposition & av.stream.Disposition.attached_pic
    ]
    if not len(file.streams):
        raise InvalidVideoError("unreadable", "nothing in it")
    if not streams:
        raise InvalidVideoError(
            "no_video_stream", "only " + ", ".join(sorted({s.type for s in file.streams}))
        )
    return streams[0]


def demux(file: Any, max_pixels: int) -> dict[str, Any]:
    """Every packet is counted: headers say what a file should hold, packets what it holds."""
    stream = video_stream(file)
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 16 or height < 16:
        raise InvalidVideoError("no_picture", f"{width}x{height}")
    if width * height > max_pixels:
        raise InvalidVideoError(
            "picture_too_large", f"{width}x{height}, allowed are {max_pixels:,} pixels"
        )
    packets = 0
    first, last, last_any = float("inf"), 0.0, 0.0
    span: list[Any] = [None, None]  # first and last time, in units of the stream
    for packet in file.demux():
        when = packet.pts if packet.pts is not None else packet.dts
        if when is None or packet.size == 0:
            continue
        start = float(when * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        last_any = max(last_any, end)
        if packet.stream_index != stream.index:
            continue
        packets += 1
        first = min(first, start)
        last = max(last, end)
        span = [
            when if span[0] is None else min(span[0], when),
            when if span[1] is None else max(span[1], when),
        ]
    if packets == 0:
        raise InvalidVideoError("empty", "no video packets")
    stated_start = (file.start_time or 0) / av.time_base
    stated = file.duration / av.time_base if file.duration else 0.0
    stated_video = float(stream.duration * stream.time_base) if stream.duration else 0.0
    missing = max(
        stated - (last_any - stated_start), stated_video - (last - first) if stated_video else 0.0
    )
    return {
        "duration": last - first,
        "stated_duration": stated_video or stated,
        "missing_s": max(missing, 0.0),
        "packets": packets,
        "codec": stream.codec_context.name,
        "width": width,
        "height": height,
        "span": span,
    }


def damaged_places(file: Any, span: list[int]) -> list[float]:
    """Places, as shares of the duration, at which no intact picture comes out of the decoder.

    Places are times, not keyframes: where the data is zeros, there are no keyframes either.
    """
    stream = video_stream(file)
    stream.thread_type = "NONE"
    first, last = span
    end_slack = int(END_SLACK_S / stream.time_base)
    bad = []
    for step in range(CHECKED_PLACES):
        place = step / (CHECKED_PLACES - 1)
        since = first + round((last - first) * place)
        if place == 1.0:
            since = max(first, last - end_slack)
        if not decodes_at(file, stream, first, since):
            bad.append(place)
    return bad


def decodes_at(file: Any, stream: Any, first: int, since: int) -> bool:
    """Whether an intact picture at or after `since` can be decoded.

    Some containers seek past the time they are asked for; then it is tried from earlier times.
    """
    back = int(BACK_S / stream.time_base)
    for start in dict.fromkeys((since, max(first, since - back), max(first, since - 6 * back))):
        verdict = decodes_from(file, stream, start, since)
        if verdict is not None:
            return verdict
    return False


def decodes_from(file: Any, stream: Any, start: int, since: int) -> bool | None:
    """Whether a seek to `start` gives an intact picture at or after `since`; None: no picture at
    all.
    """
    pictures = 0
    try:
        file.seek(start, stream=stream)
        for sent, packet in enumerate(file.demux(stream)):
            if packet.is_corrupt:
                return False
            for frame in packet.decode():
                if frame.is_corrupt:
                    return False
                pictures += 1
                if frame.pts is None or frame.pts >= since:
                    return True
            if sent >= MOST_PACKETS:
                return pictures > 0  # keyframes are far apart; so far nothing was damaged
    except av.FFmpegError:
        return False
    return None


def main() -> None:
    """Answer the requests on standard input, one a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    av.logging.set_level(av.logging.PANIC)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer: dict[str, Any] = {"facts": probe(request["path"], request["max_pixels"])}
        except InvalidVideoError as error:
            answer = {"invalid": [error.reason, str(error)]}
        except (MemoryError, ValueError, OverflowError) as error:
            answer = {"invalid": ["unreadable", f"{type(error).__name__}: {error}"[:300]]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
