"""Archives that were cut into parts to be uploaded: `x.tar.gz.part-aa`, `x.zip.001`, ..."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from assets.fetching.compression import ArchiveError
from assets.fetching.hub import HubFile, HubRepo, RetryingFile

ARCHIVE = r"\.(tar|tgz|taz|tbz2?|txz|tzst|zip|7z|rar|tar\.(gz|bz2|xz|zst|lz4|Z|lz|lzo))"
ARCHIVE_NAME = re.compile(rf".+({ARCHIVE}|\.z\d\d)", re.I)
PART_NAME = re.compile(
    rf"(?P<base>.+{ARCHIVE})[._-]?(part)?[._-]?(?P<number>\d{{1,5}}|[a-z]{{2,3}})", re.I
)


@dataclass(frozen=True, slots=True)
class SplitFile(HubFile):
    """A file that lies in a repository in parts.

    Attributes:
        path: as if it were whole; parts: in order.
        checksum: of the parts' checksums.
    """

    parts: tuple[HubFile, ...] = ()

    @classmethod
    def of(cls, path: str, parts: tuple[HubFile, ...]) -> SplitFile:
        joined = hashlib.sha256("\n".join(part.checksum for part in parts).encode()).hexdigest()
        return cls(path, sum(part.size for part in parts), joined, parts)

    def new_digest(self) -> Any:
        return _PartsDigest(self.parts)


def is_archive(name: str) -> bool:
    """Whether a file is called as archives are."""
    return bool(ARCHIVE_NAME.fullmatch(name))


def joined(files: Iterable[HubFile]) -> tuple[list[HubFile], list[tuple[str, ArchiveError]]]:
    """The files of a repository with parts put together, and what cannot be: (path, why)."""
    whole: list[HubFile] = []
    groups: dict[str, dict[str, HubFile]] = defaultdict(dict)
    for file in files:
        match = None if is_archive(file.path) else PART_NAME.fullmatch(file.path)
        if match:
            groups[match["base"]][match["number"].lower()] = file
        else:
            whole.append(file)
    problems = []
    for base, parts in groups.items():
        numbers = sorted(parts, key=_order)
        lettered = not any(number.isdigit() for number in numbers)
        if lettered and numbers[0].strip("a") and "part" not in parts[numbers[0]].path[len(base) :]:
            whole += parts.values()  # not parts but companions: x.tar.gz.asc, x.zip.sig
        elif missing := _missing(numbers):
            text = f"{base}: of its parts {', '.join(numbers)} are there, and {missing} is missing"
            problems.append((base, ArchiveError("archive_incomplete", text)))
        else:
            whole.append(SplitFile.of(base, tuple(parts[number] for number in numbers)))
    return sorted(whole, key=lambda file: file.path), problems


def opened(repo: HubRepo, file: HubFile) -> RetryingFile:
    """A file to read from, anywhere, also if it lies in parts."""
    if not isinstance(file, SplitFile):
        return repo.open(file)
    parts = file.parts
    return RetryingFile(
        lambda: _Joined([(part.size, lambda part=part: repo.open(part)) for part in parts]),  # type: ignore[misc]
        file.size,
        repo.hub,
        f"{repo.repo}/{file.path}",
    )


def _order(number: str) -> tuple[int, str]:
    return (int(number), "") if number.isdigit() else (_letters(number), "")


def _letters(text: str) -> int:
    """aa, ab, ..., as `split` counts."""
    value = 0
    for letter in text:
        value = value * 26 + ord(letter) - ord("a")
    return value


def _missing(numbers: list[str]) -> str | None:
    """The first number that a row of parts lacks; it begins at 0, 1 or aa."""
    values = [_order(number)[0] for number in numbers]
    first = 1 if numbers[0].isdigit() and values[0] == 1 else 0
    for place, value in enumerate(values):
        if value != first + place:
            return f"part {first + place + 1 - first}"
    return None


class _PartsDigest:
    """The hash of each part, of bytes that come without borders."""

    def __init__(self, parts: tuple[HubFile, ...]) -> None:
        self.parts, self.done = list(parts), list[str]()
        self._begin()

    def _begin(self) -> None:
        part = self.parts[len(self.done)]
        self.digest, self.left = part.new_digest(), part.size

    def update(self, data: bytes) -> None:
        while data:
            self.digest.update(data[: self.left])
            taken = min(self.left, len(data))
            data, self.left = data[taken:], self.left - taken
            if self.left == 0 and len(self.done) + 1 < len(self.parts):
                self.done.append(self.digest.hexdigest())
                self._begin()
            elif self.left == 0 and data:
                break  # more than the parts have: the hash is not theirs

    def hexdigest(self) -> str:
        digests = [*self.done, self.digest.hexdigest()]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class _Joined:
    """Several files as one. Each is opened when it is needed."""

    def __init__(self, parts: list[tuple[int, Callable[[], Any]]]) -> None:
        self.parts, self.at = parts, 0
        self._open: dict[int, Any] = {}

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset
        return offset

    def read(self, size: int) -> bytes:
        data, start = b"", 0
        for number, (length, open_part) in enumerate(self.parts):
            if size > len(data) and start <= self.at < start + length:
                if number not in self._open:
                    self.close()
                    self._open[number] = open_part()
                part = self._open[number]
                part.seek(self.at - start)
                piece = part.read(min(size - len(data), start + length - self.at))
                data += piece
                self.at += len(piece)
            start += length
        return data

    def close(self) -> None:
        for part in self._open.values():
            part.close()
        self._open.clear()
