"""Wanted members of a tar archive on the hub, staged on our disk in one pass over the archive.

They are used only when the hash of the whole archive was right.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from assets.fetching.archives import ArchiveError, stream_tar
from assets.fetching.disk import DiskGuard
from assets.fetching.errors import TransferError
from assets.fetching.hub import HubFile, HubRepo, RetryingFile
from model.atomic import writing_file
from training.progress import Progress

RECORD = "members.json"  # beside what was set aside; written last
# Reasons for which the whole archive is read again. Broken connections are not among them: the
# stream retries those itself.
READ_AGAIN = ("hash_mismatch", "archive_damaged")


def stage_tar(
    repo: HubRepo,
    file: HubFile,
    folder: Path,
    wanted: Callable[[str], bool],
    disk: DiskGuard,
    log: Callable[[str], None],
) -> dict[str, Path]:
    """Stream an archive through once and write the wanted members to our disk.

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
    """Let the next `stage_tar` into `folder` read the archive again."""
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

    stream_verified(repo, file, choose)
    return chosen


def stream_verified(
    repo: HubRepo, file: HubFile, choose: Callable[[str, int], Path | None]
) -> list[str]:
    """Stream a tar archive of a repository; its hash is compared with the hub's at the end.

    Raises:
        TransferError: as `stage_tar`.
    """
    with repo.open(file) as raw:
        hashed = _Hashed(raw, file)
        try:
            names = stream_tar(
                hashed, compressed=not file.name.lower().endswith(".tar"), choose=choose
            )
        except ArchiveError as error:
            broken_off = error.reason == "archive_damaged" and not hashed.is_what_the_hub_holds()
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
