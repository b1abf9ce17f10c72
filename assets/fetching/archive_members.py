"""Wanted members of an archive on the hub, staged on our disk.

A tar is read in one pass, and its members are used only when the hash of the whole was right. Of a
zip only the wanted members are read; each has a checksum of its own.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from assets.fetching.archives import (
    extract_zip_member,
    safe_name,
    stream_tar,
    zip_members,
)
from assets.fetching.compression import ArchiveError, ZipFoundError
from assets.fetching.disk import DiskGuard
from assets.fetching.errors import TransferError
from assets.fetching.hub import HubFile, HubRepo, RetryingFile
from assets.fetching.split_files import opened
from model.atomic import writing_file
from training.progress import Progress

RECORD = "members.json"  # beside what was set aside; written last
# Reasons for which the whole archive is read again. Broken connections are not among them: the
# stream retries those itself.
READ_AGAIN = ("hash_mismatch", "archive_damaged", "not_an_archive")


def stage_archive(
    repo: HubRepo,
    file: HubFile,
    folder: Path,
    wanted: Callable[[str], bool],
    disk: DiskGuard,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Read an archive, whole or in parts, and write the wanted members to our disk. What it is is
    told by its bytes.

    An archive that was staged before is not read again, also when its files have been moved away
    since. What an interrupted pass left is not used: nothing says whether its bytes were right.

    Args:
        folder: for this archive alone.
        wanted: whether the member of that name is.

    Returns:
        Name in the archive -> file on our disk.

    Raises:
        TransferError: broken off, damaged or another hash than the hub's (transient); hostile
            (permanent).
        DiskFullError: the disk is nearly full.
    """
    record = folder / RECORD
    if record.exists():
        return {name: folder / step for name, step in json.loads(record.read_text()).items()}
    disk.check()
    for attempt in range(1, repo.hub.tries + 1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            chosen = _read_once(repo, file, folder, wanted, disk, log)
            break
        except TransferError as error:
            shutil.rmtree(folder)
            if (
                error.status != "transient"
                or error.reason not in READ_AGAIN
                or attempt == repo.hub.tries
            ):
                raise
            log(f"{file.path}: {error.reason}; it is read again")
    with writing_file(record, durable=False) as temporary:
        temporary.write_text(json.dumps(chosen))
    return {name: folder / step for name, step in chosen.items()}


def forget_staged(folder: Path) -> None:
    """Let the next `stage_archive` into `folder` read the archive again."""
    (folder / RECORD).unlink(missing_ok=True)


def _read_once(
    repo: HubRepo,
    file: HubFile,
    folder: Path,
    wanted: Callable[[str], bool],
    disk: DiskGuard,
    log: Callable[[str], None],
) -> dict[str, str]:
    """One pass over the archive; name in the archive -> name in `folder`."""
    chosen: dict[str, str] = {}
    progress = Progress(log, None, f"members of {file.path}")

    def choose(name: str, size: int) -> Path | None:
        progress.advance()
        if name in chosen or not wanted(name):
            return None
        disk.watch(size)
        chosen[name] = f"{len(chosen):06d}{PurePosixPath(name).suffix.lower()}"
        return folder / chosen[name]

    try:
        stream_verified(repo, file, choose)
    except ZipFoundError:
        _read_zip(repo, file, choose)
    return chosen


def _read_zip(repo: HubRepo, file: HubFile, choose: Callable[[str, int], Path | None]) -> None:
    try:
        with zipfile.ZipFile(io.BufferedReader(opened(repo, file), 1 << 20)) as archive:
            for member in zip_members(archive):
                target = choose(safe_name(member.filename), member.file_size)
                if target is not None:
                    extract_zip_member(archive, member, target)
    except zipfile.BadZipFile as error:
        raise TransferError("permanent", "archive_damaged", f"{file.path}: {error}") from error
    except ArchiveError as error:
        raise TransferError("permanent", error.reason, f"{file.path}: {error}") from error


def stream_verified(
    repo: HubRepo, file: HubFile, choose: Callable[[str, int], Path | None]
) -> list[str]:
    """Stream a tar archive of a repository; its hash is compared with the hub's at the end.

    Raises:
        ZipFoundError: it is no tar but a zip.
        TransferError: as `stage_archive`.
    """
    with opened(repo, file) as raw:
        hashed = _Hashed(raw, file)
        try:
            names = stream_tar(hashed, choose=choose)
        except ZipFoundError:
            raise
        except ArchiveError as error:
            broken_off = error.reason in READ_AGAIN and not hashed.is_what_the_hub_holds()
            status = "transient" if broken_off else "permanent"
            raise TransferError(status, error.reason, f"{file.path}: {error}") from error
        sound = hashed.is_what_the_hub_holds()
    if not sound:
        raise TransferError("transient", "hash_mismatch", f"{file.path}: is not {file.checksum}")
    return names


class _Hashed:
    """The bytes of a remote file, hashed as they pass."""

    def __init__(self, raw: RetryingFile, file: HubFile) -> None:
        self.raw, self.digest, self.checksum = raw, file.new_digest(), file.checksum

    def read(self, size: int = -1) -> bytes:
        data = self.raw.read(size) or b""
        self.digest.update(data)
        return data

    def is_what_the_hub_holds(self) -> bool:
        """Whether the whole file, read to its end, has the hash that the hub states."""
        while self.read(1 << 20):
            pass
        return self.digest.hexdigest() == self.checksum
