"""Single members of zip and tar archives that strangers made.

Only regular files are extracted, to paths that we choose: no name inside an archive becomes a path
on our disk. Sizes, numbers and compression ratios are limited, and an archive that was cut off is
an error.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from assets.fetching.compression import (
    DAMAGED,
    RATIO_FREE_BYTES,
    ArchiveError,
    Counted,
    Readable,
    unpacked_tar,
)
from assets.fetching.retry import raise_if_disk
from model.atomic import writing_file

CHUNK_BYTES = 1 << 20
SYMLINK, FILE_KIND = 0o120000, 0o170000
READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
AES = 99
ZIP_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
EXTENDED_HEADER_BYTES = 1 << 20  # tarfile reads such headers into memory, whatever size they state


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may contain.

    Attributes:
        member_bytes, total_bytes: of one member, and of all.
        members: their number.
        ratio: bytes out for each compressed byte in.
    """

    member_bytes: int = 16 << 30
    total_bytes: int = 4 << 40
    members: int = 2_000_000
    ratio: int = 200


def safe_name(name: str) -> str:
    """A member's name with plain separators.

    Raises:
        ArchiveError: absolute, or with `..`: nobody packs such names by accident.
    """
    plain = name.replace("\\", "/")
    steps = [step for step in plain.split("/") if step not in ("", ".")]
    if plain.startswith("/") or plain[1:2] == ":" or "\0" in plain or ".." in steps or not steps:
        raise ArchiveError("hostile_archive", f"a member is called {name!r}")
    return "/".join(steps)


def stream_tar(
    raw: Readable,
    *,
    choose: Callable[[str, int], Path | None],
    limits: ArchiveLimits | None = None,
) -> list[str]:
    """Read a tar once from front to back and write the chosen members; returns the names of all
    members. Whether and how it is compressed is told by its bytes, whatever it is called.

    Args:
        raw: the archive's bytes.
        choose: name and size of a regular member -> where to write it, or None to leave it out.
            Written under a temporary name and renamed when complete.

    Raises:
        ZipFoundError: it is a zip.
        ArchiveError: something else that is no tar, cut off, damaged, or beyond the limits.
    """
    limits = limits or ArchiveLimits()
    counted = Counted(raw)
    body: Any = unpacked_tar(counted, limits.ratio)
    names: list[str] = []
    total = 0
    try:
        with tarfile.open(fileobj=body, mode="r|", tarinfo=_CheckedInfo) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                total += member.size
                if (
                    len(names) >= limits.members
                    or total > limits.total_bytes
                    or member.size > limits.member_bytes
                ):
                    raise ArchiveError(
                        "archive_too_large", f"member {len(names):,} ({member.size:,} bytes)"
                    )
                name = safe_name(member.name)
                if not member.isreg() or member.issparse():
                    continue
                names.append(name)
                target = choose(name, member.size)
                if target is not None:
                    source = archive.extractfile(member)
                    assert source is not None, "regular members have content"
                    write_member(source, target, member.size)
        # tarfile stops at its end mark, and takes a missing one for it: only the rest of the stream
        # tells.
        while body.read(CHUNK_BYTES):
            pass
        while counted.read(CHUNK_BYTES):
            pass
    except (tarfile.TarError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of our own disk
        raise ArchiveError("archive_damaged", f"after {counted.count:,} bytes: {error}") from error
    return names


def zip_members(
    archive: zipfile.ZipFile, limits: ArchiveLimits | None = None
) -> list[zipfile.ZipInfo]:
    """The regular, readable members of a zip file.

    Raises:
        ArchiveError: too many or too large, or hostile names.
    """
    limits = limits or ArchiveLimits()
    members = archive.infolist()
    if (
        len(members) > limits.members
        or sum(member.file_size for member in members) > limits.total_bytes
    ):
        raise ArchiveError("archive_too_large", f"{len(members):,} members")
    for member in members:
        safe_name(member.filename)
    return [
        member
        for member in members
        if not member.is_dir() and (member.external_attr >> 16) & FILE_KIND != SYMLINK
    ]


def refuse_unreadable(member: zipfile.ZipInfo) -> None:
    """Refuse a member of a zip that cannot be read, by its true name.

    Raises:
        ArchiveError: it is encrypted, or compressed in a way that Python does not know.
    """
    if member.flag_bits & 0x1 or member.compress_type == AES:
        raise ArchiveError(
            "encrypted_archive",
            f"{member.filename}: is encrypted; unpack it with its password, and use the files",
        )
    if member.compress_type not in READABLE_METHODS:
        name = ZIP_METHODS.get(member.compress_type, f"method {member.compress_type}")
        raise ArchiveError(
            "unsupported_archive",
            f"{member.filename}: is compressed with {name}; unpack it, and pack it again with "
            "Deflate or without compression",
        )


def extract_zip_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    target: Path,
    limits: ArchiveLimits | None = None,
) -> None:
    """Write one member; its CRC is checked.

    Raises:
        ArchiveError: damaged, larger than it states, or beyond the limits.
    """
    limits = limits or ArchiveLimits()
    refuse_unreadable(member)
    if member.file_size > limits.member_bytes:
        raise ArchiveError("archive_too_large", f"{member.filename}: {member.file_size:,} bytes")
    if (
        member.file_size > max(member.compress_size, 1) * limits.ratio
        and member.file_size > RATIO_FREE_BYTES
    ):
        raise ArchiveError(
            "archive_bomb",
            f"{member.filename}: {member.compress_size:,} -> {member.file_size:,} bytes",
        )
    try:
        with archive.open(member) as source:
            write_member(source, target, member.file_size)
    except (zipfile.BadZipFile, *DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of our own disk
        raise ArchiveError("archive_damaged", f"{member.filename}: {error}") from error


def write_member(source: Any, target: Path, size: int) -> None:
    """Copy exactly `size` bytes to `target`, which appears only when they are all there."""
    count = 0
    try:
        with writing_file(target, durable=False) as temporary:
            with open(temporary, "wb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    count += len(chunk)
                    if count > size:
                        raise ArchiveError(
                            "archive_bomb", f"{target.name}: more than the stated {size:,} bytes"
                        )
                    file.write(chunk)
            if count != size:
                raise ArchiveError("archive_damaged", f"{target.name}: {count:,} of {size:,} bytes")
    except OSError as error:
        raise_if_disk(error)
        raise


class _CheckedInfo(tarfile.TarInfo):
    """Refuses headers that would be read into memory at any stated size."""

    EXTENDED = (
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    )

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in cls.EXTENDED and info.size > EXTENDED_HEADER_BYTES:
            raise ArchiveError("archive_bomb", f"a header of {info.size:,} bytes")
        return info
