"""The one way to open a video file: only local files, only a few container formats, pictures of a
bounded size, refusals that have a name.

A playlist that calls itself a video cannot make FFmpeg open anything else, and headers are not
believed. What is not caught here is a decoder that hangs or crashes: read strangers' files in a
process that can be killed.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from model.media.groups import PacketClassifier, PacketGroup, packet_groups
from model.media.limits import MAX_VIDEO_PIXELS
from model.media.refusals import MediaError

# The demuxers that FFmpeg may use, whatever the file claims to be, and the suffix of their files.
# None of them can be made to open another file.
FORMATS = {
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4",
    "matroska,webm": ".mkv",
    "avi": ".avi",
    "mpegts": ".ts",
    "flv": ".flv",
    "mpeg": ".mpg",
    "asf": ".wmv",
    "ogg": ".ogv",
}
# How other containers of moving pictures begin. They are refused by name: no other copy helps.
OTHER_FORMATS = {
    b"\x06\x0e\x2b\x34": "MXF",
    b".RMF": "RealMedia",
    b"\x00\x00\x01\xb3": "a bare MPEG video stream",
    b"\x00\x00\x00\x01": "a bare video stream",
    b"GIF8": "GIF",
    b"nut/multimedia": "NUT",
    b"\x1f\x07\x00": "DV",
    b"YUV4MPEG2": "YUV4MPEG",
    b"DKIF": "IVF",
}
# Seconds that decoding times may fall back: more than any reordering asks for.
CLOCK_BACK = Fraction(1, 2)
# Seconds that they may leap ahead in a recording that was not joined.
CLOCK_AHEAD = Fraction(10)
# Packets before a joint of which one may seem torn, because it was the last to be completed.
JOINT_PACKETS = 4
# FFmpeg counts the padding of rows as well; so much at most, up to 32,768 pixels a side.
PADDING = 64 * (1 << 15)

# What makes a decoder tell of damage that it otherwise mends in silence. The pictures that come out
# are the same. HEVC: errors within a slice, and pictures that differ from their checksum where the
# encoder wrote one.
STRICTNESS = {"hevc": {"err_detect": "crccheck+explode"}}


@contextmanager
def open_video(
    path: str, *, max_pixels: int = MAX_VIDEO_PIXELS, index: int | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its moving picture (see `choose_stream`; or stream `index`), ready to
    decode with one thread.

    Raises MediaError, and FileNotFoundError or PermissionError as they are: those are the caller's
    to mend.
    """
    head = _head(path)
    limits = {"max_pixels": str(max_pixels + PADDING)}
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file", **limits}
    # Before version 19, PyAV refuses a file for titles that are not UTF-8 unless it is told
    # otherwise.
    titles: dict[str, Any] = (
        {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    )

    def opened() -> InputContainer:
        return av.open(f"file:{path}", options=options, **titles)

    try:
        container = opened()
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(_why_unopened(head), path, f"FFmpeg cannot open it: {error}") from error
    with container:
        if index is None:
            stream = choose_stream(container, opened)
        else:
            stream = next((s for s in container.streams.video if s.index == index), None)
        if stream is None:
            kinds = sorted({stream.type for stream in container.streams})
            if not kinds:
                raise MediaError("unreadable", path, "a container with nothing in it")
            raise MediaError("no_video_stream", path, f"streams: {', '.join(kinds)}")
        codec = stream.codec_context
        if codec is None:
            raise MediaError(
                "unsupported_codec", path, "this FFmpeg has no decoder for its video stream"
            )
        if codec.width * codec.height > max_pixels:
            raise MediaError(
                "too_large",
                path,
                f"{codec.width}x{codec.height}, at most {max_pixels:,} pixels allowed",
            )
        # Skipping by packet needs a decoder that does one packet at a time.
        stream.thread_type = "NONE"
        codec.thread_count = 1
        codec.options = {**limits, **STRICTNESS.get(codec.name, {})}
        yield container, stream


def choose_stream(
    container: InputContainer, again: Callable[[], InputContainer]
) -> VideoStream | None:
    """The stream that is the video: one that moves before one that is a single picture (a cover
    that no flag tells of), the one that the file plays by default before others, then the largest;
    the first of several alike. None where every one is a cover.

    Args:
        again: opens the file once more, to count pictures where headers do not.
    """
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if len(moving) < 2:
        return moving[0] if moving else None
    single = _single_pictures(moving, again)

    def rank(stream: VideoStream) -> tuple[bool, bool, bool, int, int]:
        codec = stream.codec_context
        return (
            codec is not None,
            stream.index not in single,
            bool(stream.disposition & Disposition.default),
            codec.width * codec.height if codec is not None else 0,
            -stream.index,
        )

    return max(moving, key=rank)


def _single_pictures(streams: list[VideoStream], again: Callable[[], InputContainer]) -> set[int]:
    """Indices of the streams that hold one picture. Where headers do not count, packets do, up to
    the second one of each stream.
    """
    single = {stream.index for stream in streams if stream.frames == 1}
    seen = {stream.index: 0 for stream in streams if stream.frames == 0}
    if not seen:
        return single
    with again() as container, suppress(av.FFmpegError, IndexError):
        for packet in container.demux([container.streams[index] for index in seen]):
            seen[packet.stream_index] += packet.size > 0
            if min(seen.values()) >= 2:
                break
    return single | {index for index, count in seen.items() if count < 2}


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        head = file.read(512)
    if not head:
        raise MediaError("unreadable", path, "0 bytes")
    return head


def _why_unopened(head: bytes) -> str:
    """What a file that FFmpeg refused seems to be, from its first bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if (
        text.startswith((b"#extm3u", b"ffconcat", b"[playlist]", b"v=0"))
        or b"<mpd" in text
        or b"<smil" in text
    ):
        return "hostile_format"
    starts = (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"OggS", b"\x30\x26\xb2\x75")
    if (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
        or head.startswith(starts)
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or head[0:1] == head[188:189] == b"G"
        or head[4:5] == head[196:197] == b"G"  # of .m2ts, whose packets have four bytes more
    ):
        return "unreadable"
    return "unsupported_container" if head.startswith(tuple(OTHER_FORMATS)) else "not_media"


class PacketReader:
    """The packets of one stream, up to the first place where the container cannot be read on (then
    `broken`).

    Where the clock falls back, as where recordings were joined, what follows is put right behind
    what came before, so that no two frames have one time. Every pass over the file sees the same
    clock.

    Attributes:
        broken: the container could not be read to its end, or ends within a packet.
        torn: packets of which the container says that a part is missing, but not the last ones of
            recordings that were joined.
        others: seconds at which the streams of `beside` have packets, about one a second.
        others_end: seconds at which the last of these packets ends.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        beside: Sequence[Stream] = (),
    ) -> None:
        self.broken, self.torn = False, 0
        self.others, self.others_end = array("d"), 0.0
        self._container, self._stream, self._beside = container, stream, beside

    def __iter__(self) -> Iterator[av.Packet]:
        shift, newest, step = 0, None, 1
        assert self._stream.time_base is not None  # every stream of a file has one
        back = CLOCK_BACK / self._stream.time_base
        ahead = CLOCK_AHEAD / self._stream.time_base
        number = torn_at = -JOINT_PACKETS
        packets = self._container.demux([self._stream, *self._beside])
        while True:
            try:
                packet = next(packets)
            # IndexError: at the end PyAV stumbles over streams that the headers did not list.
            except (StopIteration, IndexError):
                return
            except av.FFmpegError:
                self.broken = True
                return
            if not packet.size:  # PyAV ends with an empty packet
                continue
            if packet.stream_index != self._stream.index:
                self._note(packet)
                continue
            self.broken = packet.is_corrupt  # the last one: cut off within it
            joint = False
            if packet.dts is not None:
                if newest is not None and packet.dts + shift < newest - back:
                    shift, joint = newest + step - packet.dts, True
                elif newest is not None and packet.dts + shift > newest + ahead:
                    joint = True
                newest, step = packet.dts + shift, max(1, packet.duration or step)
                if shift:
                    packet.dts += shift
                    packet.pts = None if packet.pts is None else packet.pts + shift
            number += 1
            if joint and torn_at > number - JOINT_PACKETS:
                self.torn -= 1
            if packet.is_corrupt:
                self.torn, torn_at = self.torn + 1, number
            yield packet

    def _note(self, packet: av.Packet) -> None:
        """Remember when another stream has something to show or to be heard."""
        if packet.pts is None or packet.time_base is None:
            return
        start = float(packet.pts * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        self.others_end = max(self.others_end, end)
        if not self.others or abs(start - self.others[-1]) >= 1:
            self.others.append(start)


class FrameDecoder:
    """The frames of a stream in the order in which they are shown, past the packets that the
    decoder refuses.

    With `skip_unless`, only frames whose packet's tick is among these are needed: packets that none
    of them can need are not decoded (see `model.media.groups`), and the frames that do come out are
    the same to the last bit. Damage is counted as far as it shows: `bad_packets` were refused or
    complained about, `concealed` frames came out mended by the decoder (which FFmpeg tells for
    H.264 and MPEG-4). Damage may also decode without a word, in VP9 more often than not: see
    docs/performance.md. `given`: packets that the decoder got.
    """

    def __init__(
        self, packets: Iterable[av.Packet], stream: VideoStream, skip_unless: set[int] | None = None
    ) -> None:
        self.bad_packets = self.concealed = self.given = 0
        self._packets, self._codec, self._skip_unless = packets, stream.codec_context, skip_unless

    def __iter__(self) -> Iterator[av.VideoFrame]:
        if self._skip_unless is None:
            for packet in self._packets:
                yield from self._decode(packet)
        else:
            classify = PacketClassifier(self._codec)
            for group in packet_groups(self._packets, classify):
                yield from self._decode_group(group, self._skip_unless, classify.decoder_skips)
        yield from self._decode(None)  # what the decoder still holds back for reordering

    def _decode_group(
        self, group: PacketGroup, wanted: set[int], decoder_skips: bool
    ) -> Iterator[av.VideoFrame]:
        last = group.last_needed(wanted)
        awaited = {packet.pts for packet in group.packets} & wanted
        for place, (packet, kind) in enumerate(zip(group.packets, group.kinds, strict=True)):
            # Not before the last wanted frame is out: the next group's start may discard what the
            # decoder holds back for reordering.
            if place > last and not awaited:
                return
            if packet.pts not in wanted and kind.unreferenced and not kind.parameters:
                continue
            if decoder_skips:
                self._codec.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            for frame in self._decode(packet):
                awaited.discard(frame.pts)
                yield frame

    def _decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        self.given += packet is not None
        try:
            frames = self._codec.decode(packet)
        except av.FFmpegError:
            self.bad_packets += 1
            return []
        self.concealed += sum(frame.is_corrupt for frame in frames)
        return frames
