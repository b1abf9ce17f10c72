"""Whose fault an error is: the machine's, or that of one file's content.

A file that is missing or holds nonsense concerns the samples that need it: they are left out. A
full disk, too few descriptors, a store or mount that does not answer concern everything at once:
leaving samples out would empty a run of good data. Such a fault is waited out, and when it lasts,
the run stops with a checkpoint.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
SAY_EVERY_S = 60.0

# What an operating system answers about a name or an argument; everything else is its own trouble.
_ABOUT_THE_FILE = {
    errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EILSEQ, errno.EEXIST, errno.EFBIG,
}  # fmt: skip
# FFmpeg gives errno values of its own to broken content, EIO among them.
_OF_FFMPEG = {
    errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE,
}  # fmt: skip
# Clients of stores, whose own exceptions are not OSErrors.
_CLIENTS = {"aiohttp", "botocore", "aiobotocore", "urllib3", "requests", "gcsfs", "google", "azure"}
_BUSY = {401, 403, 408, 425, 429}  # statuses below 500 that say nothing of the file
_ADVICE = {
    errno.ENOSPC: "make room there, or set shard_cache or features_cache to another disk",
    errno.EDQUOT: "raise the quota, or set shard_cache or features_cache to another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or set fewer workers",
    errno.ENFILE: "raise the machine's limit of open files (sysctl fs.file-max)",
    errno.EACCES: "give this user the right to read it",
    errno.ENOMEM: "set fewer workers or a smaller prefetch",
}


class MachineFault(RuntimeError):
    """A fault of the machine, its disks or its store that did not pass. What was done is kept, and
    the same command goes on once the fault is mended.
    """


def machine_fault(error: BaseException) -> str | None:
    """What is wrong with the machine, as a clause for people; None where the error is about a
    file's content, a name or a setting.
    """
    for link in _causes(error):
        if isinstance(link, MachineFault):
            return str(link)
        if _is_of_the_machine(link):
            advice = _ADVICE.get(getattr(link, "errno", None) or 0)
            text = f"{type(link).__name__}: {link}"
            return f"{text} ({advice})" if advice else text
    return None


def gone(root: Path) -> MachineFault | None:
    """The fault where a whole local folder of inputs is not there any more, as when a mount went
    away: then none of the files in it is to blame.
    """
    if root.is_dir():
        return None
    return MachineFault(f"{root}: the folder is not there; is its file system mounted?")


def wait_out(
    action: Callable[[], T],
    limit_s: float,
    stopped: Callable[[], bool] = lambda: False,
) -> T:
    """The result of `action`, tried again while the machine is at fault, with growing pauses.

    Args:
        limit_s: how long to wait before giving up.
        stopped: whether to give up now.

    Raises:
        MachineFault: the fault did not pass in time.
        Exception: whatever else `action` raises, at once.
    """
    began: float | None = None
    said, delay = float("-inf"), FIRST_DELAY_S
    while True:
        try:
            result = action()
        except Exception as error:
            if (fault := machine_fault(error)) is None:
                raise
            now = time.monotonic()
            began = now if began is None else began
            if now - began >= limit_s or stopped():
                raise MachineFault(
                    f"{fault}; it did not pass within {now - began:.0f} s (machine_wait_s "
                    f"{limit_s:g}). No sample is to blame, and none was left out for it"
                ) from error
            if now - said >= SAY_EVERY_S:
                said = now
                log.warning("waiting up to %.0f s for this to pass: %s", limit_s, fault)
            _sleep(min(delay, limit_s), stopped)
            delay = min(2 * delay, LONGEST_DELAY_S)
        else:
            if began is not None:
                log.warning("it passed after %.0f s", time.monotonic() - began)
            return result


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, 1.0))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: some clients call an unreachable store a missing
    file.
    """
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _is_of_the_machine(error: BaseException) -> bool:
    home = type(error).__module__.partition(".")[0]
    if home == "av":
        return getattr(error, "errno", None) in _OF_FFMPEG
    if (status := _status(error)) is not None:
        return status >= 500 or status in _BUSY
    if isinstance(error, PermissionError | TimeoutError | ConnectionError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno not in _ABOUT_THE_FILE
    return home in _CLIENTS and not isinstance(error, ValueError)


def _status(error: BaseException) -> int | None:
    """The HTTP status that a client's exception carries."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        # aiohttp, gcsfs, requests
        own = getattr(error, "status", None) or getattr(error, "code", None)
        found = own or getattr(response, "status_code", None)
    return found if isinstance(found, int) else None
