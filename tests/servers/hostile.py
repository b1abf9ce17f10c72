"""Archives that a stranger might publish."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Mapping

ESCAPES = (
    "../escaped.mp4",
    "/escaped.mp4",
    "a/../../escaped.mp4",
    "..\\escaped.mp4",
    "C:\\escaped.mp4",
)


def tar_gz(members: Mapping[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """A tar.gz of files, and of further headers without content (links, devices)."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return gzip.compress(raw.getvalue(), mtime=0)


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return raw.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_with_link(name: str, target: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    return raw.getvalue()


def tar_with_huge_header(stated: int) -> bytes:
    """A tar whose long-name header says that the name has `stated` bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, stated
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240), mtime=0)


def zip_that_understates(name: str, data: bytes, stated: int) -> bytes:
    """A deflated member whose headers give a smaller size than it has."""
    raw = bytearray(zipped({name: data}, zipfile.ZIP_DEFLATED))
    local, central = raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    struct.pack_into("<I", raw, local + 22, stated)
    struct.pack_into("<I", raw, central + 24, stated)
    return bytes(raw)
