"""What an archive is by its first bytes, and its bytes without the compression.

Names lie: a plain tar is called .tar.gz, a gzip .tar. Compressed streams that end early or grow out
of proportion are errors.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from typing import Any, Protocol

import pyarrow as pa

CHUNK_BYTES = 1 << 20
RATIO_FREE_BYTES = 64 << 20  # below this any ratio is harmless
XZ_MEMORY = 256 << 20  # a dictionary may ask for 4 GiB; `xz -9` needs 65 MiB
TAR_BLOCK = 512
# First bytes -> what it is.
MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x07\x08PK", "split zip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "RAR"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\x1f\x9d", "compress (.Z)"),
    (b"LZIP", "lzip"),
    (b"\x89LZO", "lzop"),
)
READ = ("gzip", "bzip2", "xz", "zstd")
# What the decompressors of `unpacked_tar` raise for bytes that are not what they should be.
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError, pa.ArrowInvalid)


class Readable(Protocol):
    """Anything that gives bytes from front to back."""

    def read(self, size: int = -1, /) -> bytes: ...


class ArchiveError(Exception):
    """The archive is damaged, hostile, or of a kind that is not read; `reason` is one word."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ZipFoundError(ArchiveError):
    """What should be a tar is a zip, which is read from its end."""

    def __init__(self) -> None:
        super().__init__("not_an_archive", "is a zip, whatever its name says")


class Counted:
    """Bytes that are counted as they are read."""

    def __init__(self, raw: Readable) -> None:
        self.raw, self.count = raw, 0

    def read(self, size: int = -1) -> bytes:
        data = self.raw.read(size)
        self.count += len(data)
        return data


def kind_of(start: bytes) -> str | None:
    """What a file is, by its first 512 bytes: `tar`, `zip`, `gzip`, `7z`, ...; None for what is no
    archive.
    """
    for magic, kind in MAGIC:
        if start.startswith(magic):
            return kind
    return "tar" if _is_tar(start) else None


def unpacked_tar(counted: Counted, ratio: int) -> Readable:
    """The bytes of a tar without its compression.

    Args:
        ratio: most bytes out for each byte in.

    Raises:
        ZipFoundError: it is a zip.
        ArchiveError: it is no tar; the message says what it is.
    """
    start = _take(counted, TAR_BLOCK)
    kind = kind_of(start)
    raw = _Again(start, counted)
    if kind == "tar":
        return raw
    if kind == "zip":
        raise ZipFoundError
    if kind == "split zip":
        raise ArchiveError(
            "unsupported_archive",
            "is the first disk of a zip in several (.z01, .z02, ..., .zip); join them by "
            "`zip -s 0 NAME.zip --out JOINED.zip`",
        )
    if kind is None:
        raise ArchiveError("not_an_archive", f"is no archive that is known; begins {start[:8]!r}")
    if kind not in READ:
        raise ArchiveError(
            "unsupported_archive",
            f"is a {kind} archive; unpack it, and pack it again as tar or zip",
        )
    body = _Bounded(_opened(kind, raw), counted, ratio)
    inner = _take(body, TAR_BLOCK)
    if not _is_tar(inner):
        raise ArchiveError(
            "not_an_archive",
            f"is compressed by {kind}, and holds {kind_of(inner) or 'a single file'} and no tar",
        )
    return _Again(inner, body)


def _opened(kind: str, raw: Readable) -> Readable:
    source: Any = io.BufferedReader(_Raw(raw), CHUNK_BYTES)
    if kind == "gzip":
        # It notices an early end and a wrong checksum; tarfile's own gzip mode does not.
        opened: Any = gzip.GzipFile(fileobj=source, mode="rb")
    elif kind == "zstd":
        opened = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd")
    elif kind == "bzip2":
        opened = bz2.BZ2File(source)
    else:
        opened = _Xz(source)
    return opened  # type: ignore[no-any-return]


def _is_tar(start: bytes) -> bool:
    """Whether a header of a tar stands here, by its checksum. An empty tar is zeros."""
    if len(start) < TAR_BLOCK:
        return False
    if not any(start):
        return True
    try:
        tarfile.TarInfo.frombuf(start[:TAR_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _take(raw: Readable, size: int) -> bytes:
    """Up to `size` bytes, less only at the end."""
    taken = b""
    while len(taken) < size and (data := raw.read(size - len(taken))):
        taken += data
    return taken


class _Again:
    """Bytes that were looked at, and then the rest."""

    def __init__(self, start: bytes, rest: Readable) -> None:
        self.start, self.rest = start, rest

    def read(self, size: int = -1) -> bytes:
        if not self.start:
            return self.rest.read(size)
        data, self.start = (self.start, b"") if size < 0 else (self.start[:size], self.start[size:])
        return data


class _Bounded:
    """Decompressed bytes, as long as they stay in proportion."""

    def __init__(self, body: Readable, counted: Counted, ratio: int) -> None:
        self.body, self.counted, self.ratio, self.out = body, counted, ratio, 0

    def read(self, size: int = -1) -> bytes:
        data = self.body.read(size)
        self.out += len(data)
        if self.out > RATIO_FREE_BYTES and self.out > self.ratio * max(self.counted.count, 1):
            raise ArchiveError(
                "archive_bomb", f"{self.counted.count:,} bytes became more than {self.out:,}"
            )
        return data


class _Xz:
    """Decompressed bytes of one or several xz streams, in bounded memory."""

    def __init__(self, source: io.BufferedReader) -> None:
        self.source = source
        self.one = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)

    def read(self, size: int = -1) -> bytes:
        while True:
            if self.one.eof:
                rest = (self.one.unused_data or self.source.read(CHUNK_BYTES)).lstrip(b"\0")
                if not rest:
                    return b""
                self.one = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
            elif self.one.needs_input:
                rest = self.source.read(CHUNK_BYTES)
                if not rest:
                    raise EOFError("the xz stream ends early")
            else:
                rest = b""
            if data := self.one.decompress(rest, size):
                return data


class _Raw(io.RawIOBase):
    def __init__(self, source: Readable) -> None:
        super().__init__()
        self.source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
