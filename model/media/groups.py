"""Which packets of a stream a wanted picture can need, told from their first bytes.

Two things are looked for. A packet that *starts a closed group* refers to nothing before it, and
nothing after it refers to anything before it: H.264 and HEVC say so with an IDR picture (a recovery
point or an open group's random access picture is none), VP8, VP9 and AV1 with a shown key frame.
A packet is *unreferenced* if no other picture can refer to it. Where the bytes are not what they
should be, neither is claimed, and the decoder gets the packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import av
from av.video.codeccontext import VideoCodecContext

# Packets of one group that are held back until its end is known; a longer group is handed on in
# parts of this size, and nothing behind its last wanted picture is left out of any but the last.
MAX_GROUP_PACKETS = 1024
MAX_GROUP_BYTES = 32 << 20

H264_IDR, H264_SLICES = 5, range(1, 6)
H264_PARAMETERS = {7, 8, 13, 15}
HEVC_IDR, HEVC_SLICES = (19, 20), range(32)
HEVC_PARAMETERS = {32, 33, 34}
HEVC_UNREFERENCED = frozenset(range(0, 16, 2))  # "sub-layer non-reference pictures"


@dataclass(frozen=True, slots=True)
class PacketKind:
    """What a packet's bytes tell: whether it starts a closed group, whether nothing refers to it,
    and whether it carries parameters that later packets may need.
    """

    starts_closed: bool = False
    unreferenced: bool = False
    parameters: bool = False


UNKNOWN = PacketKind()


class PacketClassifier:
    """Tells the `PacketKind` of the packets of one stream.

    `decoder_skips`: whether it is left to the decoder to skip frames that nothing refers to, since
    `unreferenced` is never told for this codec. Not with dav1d, which is told once, when it is
    opened, what it may skip.
    """

    def __init__(self, codec: VideoCodecContext) -> None:
        extradata = bytes(codec.extradata or b"")
        self.decoder_skips = codec.name not in ("h264", "hevc", "libdav1d")
        self._classify: Callable[[bytes], PacketKind] = {
            "h264": self._h264,
            "hevc": self._hevc,
            "vp8": self._vp8,
            "vp9": self._vp9,
            "libvpx-vp9": self._vp9,
            "av1": self._av1,
            "libdav1d": self._av1,
        }.get(codec.name, lambda _: UNKNOWN)
        # ISO containers store NAL units behind their length, everything else behind a start code.
        self._length_bytes = 0
        self._temporal_layers = 0  # of HEVC; 0 while no sequence parameters were seen
        if codec.name == "h264" and extradata[:1] == b"\x01" and len(extradata) > 4:
            self._length_bytes = (extradata[4] & 3) + 1
        if codec.name == "hevc":
            if extradata[:1] == b"\x01" and len(extradata) > 22:
                self._length_bytes = (extradata[21] & 3) + 1
                self._temporal_layers = extradata[21] >> 3 & 7
            else:
                self._hevc(extradata)

    def __call__(self, packet: av.Packet) -> PacketKind:
        return self.of_bytes(bytes(packet))

    def of_bytes(self, data: bytes) -> PacketKind:
        """The same, of a packet's bytes."""
        return self._classify(data)

    def _units(self, data: bytes) -> list[tuple[int, int]]:
        """Start and end of each NAL unit; none where the structure is broken."""
        found: list[tuple[int, int]] = []
        if not self._length_bytes:
            start = data.find(b"\0\0\1")
            while start >= 0:
                following = data.find(b"\0\0\1", start + 3)
                found.append((start + 3, len(data) if following < 0 else following))
                start = following
            return [(a, b) for a, b in found if b - a >= 2]
        place = 0
        while place < len(data):
            start = place + self._length_bytes
            place = start + int.from_bytes(data[place:start], "big")
            if place > len(data) or place < start + 2:
                return []
            found.append((start, place))
        return found

    def _h264(self, data: bytes) -> PacketKind:
        headers = [data[start] for start, _ in self._units(data)]
        slices = [header for header in headers if header & 31 in H264_SLICES]
        if not slices or any(header & 0x80 for header in headers):
            return UNKNOWN
        return PacketKind(
            starts_closed=slices[0] & 31 == H264_IDR,
            unreferenced=not any(header & 0x60 for header in slices),
            parameters=any(header & 31 in H264_PARAMETERS for header in headers),
        )

    def _hevc(self, data: bytes) -> PacketKind:
        slices: list[int] = []
        layers: list[int] = []
        parameters = False
        for start, end in self._units(data):
            kind = data[start] >> 1 & 63
            if data[start] & 0x80:
                return UNKNOWN
            parameters = parameters or kind in HEVC_PARAMETERS
            if kind == 33 and end - start > 2:
                self._temporal_layers = max(self._temporal_layers, (data[start + 2] >> 1 & 7) + 1)
            if kind in HEVC_SLICES:
                slices.append(kind)
                layers.append(data[start + 1] & 7)
        if not slices:
            return UNKNOWN
        # Pictures of a lower temporal layer may be referred to by those of a higher one.
        highest = self._temporal_layers and min(layers) >= self._temporal_layers
        return PacketKind(
            starts_closed=slices[0] in HEVC_IDR,
            unreferenced=bool(highest) and all(kind in HEVC_UNREFERENCED for kind in slices),
            parameters=parameters,
        )

    def _vp8(self, data: bytes) -> PacketKind:
        return PacketKind(starts_closed=bool(data) and not data[0] & 1)

    def _vp9(self, data: bytes) -> PacketKind:
        if not data or data[0] >> 6 != 2:
            return UNKNOWN
        reserved = data[0] >> 4 & 3 == 3  # profile 3 has one more bit in front
        existing_inter = data[0] >> (1 if reserved else 2) & 3
        return PacketKind(starts_closed=existing_inter == 0)

    def _av1(self, data: bytes) -> PacketKind:
        place, sequence = 0, False
        while place < len(data):
            header = data[place]
            place += 2 if header & 4 else 1
            size = len(data) - place
            if header & 2:
                size, shift = 0, 0
                while place < len(data) and shift < 56:
                    byte = data[place]
                    size, shift, place = size | (byte & 127) << shift, shift + 7, place + 1
                    if not byte & 128:
                        break
            kind = header >> 3 & 15
            sequence = sequence or kind == 1
            if kind in (3, 6):  # a frame's header: not a repeated one, a key frame, shown
                closed = sequence and place < len(data) and data[place] >> 4 == 1
                return PacketKind(starts_closed=closed, parameters=sequence)
            place += size
        return UNKNOWN


@dataclass(slots=True)
class PacketGroup:
    """Packets in decoding order, with what is known of each.

    `closed`: what comes next starts a closed group, so that nothing of this one is needed later.
    """

    packets: list[av.Packet] = field(default_factory=list)
    kinds: list[PacketKind] = field(default_factory=list)
    closed: bool = False

    def last_needed(self, wanted: set[int]) -> int:
        """Index of the last packet that a picture with one of these ticks, or a later group, can
        need; -1 if none is.
        """
        if not self.closed:
            return len(self.packets) - 1
        for place in range(len(self.packets) - 1, -1, -1):
            packet = self.packets[place]
            if packet.pts in wanted or self.kinds[place].parameters or renews_parameters(packet):
                return place
        return -1


def renews_parameters(packet: av.Packet) -> bool:
    """Whether the container changes the codec's parameters with this packet."""
    return bool(packet.has_sidedata("new_extradata"))


def packet_groups(
    packets: Iterable[av.Packet], classify: PacketClassifier
) -> Iterator[PacketGroup]:
    """The packets in groups, each up to the next one that starts a closed group, or as many as may
    be held back.
    """
    group, size = PacketGroup(), 0
    for packet in packets:
        kind = classify(packet)
        full = len(group.packets) >= MAX_GROUP_PACKETS or size >= MAX_GROUP_BYTES
        if group.packets and (kind.starts_closed or full):
            group.closed = kind.starts_closed
            yield group
            group, size = PacketGroup(), 0
        group.packets.append(packet)
        group.kinds.append(kind)
        size += packet.size
    yield group
