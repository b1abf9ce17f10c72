"""Whether a JPEG file still holds all of its picture.

Pillow fills what is missing with grey and says nothing. FFmpeg's decoder tells when the coded data
ends before the picture does, or does not follow the file's own tables. What neither can see is a
change that decodes to other pixels.
"""

from __future__ import annotations

# So many zeros in coded data are whole blocks of the commonest code; see `_zeroed`.
ZERO_RUN = 64
_SEQUENTIAL = (0xC0, 0xC1)
_HUFFMAN, _SCAN = 0xC4, 0xDA


def jpeg_fault(data: bytes) -> str | None:
    """What is wrong with a JPEG file, as a clause; None where all of its picture is there."""
    segments = _segments(data)
    if segments is None:
        return "cut short: it has no picture"
    scan = segments[-1][1]
    if data.find(b"\xff\xd9", scan) < 0:
        return "cut short: no end marker"
    if _zeroed(data, segments):
        return f"damaged: more than {ZERO_RUN} zeros in its coded data"
    return _decoding_fault(data)


def _segments(data: bytes) -> list[tuple[int, int, int]] | None:
    """(marker, begin, end) of each segment up to the first scan, which is the last one; None where
    there is no scan. A thumbnail lies within a segment.
    """
    found, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:
            position += 2
        else:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            found.append((marker, position + 4, end))
            if marker == _SCAN:
                return found
            position = end
    return None


def _zeroed(data: bytes, segments: list[tuple[int, int, int]]) -> bool:
    """Whether part of a single sequential scan was overwritten with zeros.

    Zeros decode to the first code of the tables over and over. Where that code is not the end of a
    block for every component, as in the tables that most encoders use, whole blocks would hold
    nothing but coefficients of -1, which no picture does.
    """
    if not any(marker in _SEQUENTIAL for marker, _, _ in segments):
        return False
    tables = [data[begin:end] for marker, begin, end in segments if marker == _HUFFMAN]
    symbols = [symbol for table in tables for symbol in _first_ac_symbols(table)]
    start = segments[-1][2]
    end = data.find(b"\xff\xd9", start)
    if not any(symbols) or data.find(bytes([0xFF, _SCAN]), start, end) >= 0:
        return False
    return data.find(bytes(ZERO_RUN), start, end) >= 0


def _first_ac_symbols(tables: bytes) -> list[int]:
    """The symbol of the first code of each AC table in a segment of Huffman tables."""
    symbols, position = [], 0
    while position + 17 <= len(tables):
        count = sum(tables[position + 1 : position + 17])
        if tables[position] >> 4 and count and position + 17 < len(tables):
            symbols.append(tables[position + 17])
        position += 17 + count
    return symbols


def _decoding_fault(data: bytes) -> str | None:
    """What FFmpeg's decoder says when it is strict and not when it is lenient: then it knows the
    format, and the data is at fault.
    """
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        _decode(data, "explode")
    except av.error.InvalidDataError:
        try:
            if _decode(data, "careful"):
                return "damaged: its coded data ends early or does not decode"
        except av.FFmpegError:
            return None
    except av.FFmpegError:
        return None  # a sort of JPEG that FFmpeg does not know
    return None


def _decode(data: bytes, strictness: str) -> int:
    """How many pictures come out."""
    import av

    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": strictness}
    decoder.thread_count = 1
    return len([*decoder.decode(av.Packet(data)), *decoder.decode(None)])
