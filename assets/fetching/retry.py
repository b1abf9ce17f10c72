"""Retrying: how often, how long to wait between tries, and which failures are not retried."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from assets.fetching.errors import DiskFullError, TransferError
from training.formats.hashing import stable_hash

LONGEST_WAIT_S = 3600.0
# What an HTTP status means for one file, where it means more than "asked wrongly" (other 4xx, for
# good) or "the server failed" (5xx, in passing).
STATUSES = {
    401: ("needs_operator", "login_required"),
    403: ("transient", "forbidden"),
    407: ("needs_operator", "proxy_login"),
    408: ("transient", "connection"),
    416: ("transient", "range_refused"),
    421: ("transient", "connection"),
    423: ("transient", "server_error"),
    425: ("transient", "server_error"),
    429: ("transient", "rate_limited"),
}

T = TypeVar("T")


def retrying(
    action: Callable[[], T],
    name: str,
    *,
    tries: int,
    backoff_s: float,
    log: Callable[[str], None] = print,
) -> T:
    """Run `action` until it succeeds, at most `tries` times, with growing waits between tries.

    Args:
        name: of the item, for the log; it also spreads the waits of different items.
        backoff_s: first wait.

    Raises:
        TransferError: the last one, or the first that is not transient.
    """
    for attempt in range(1, tries + 1):
        try:
            return action()
        except TransferError as error:
            if error.status != "transient" or attempt == tries:
                raise
            wait = backoff(backoff_s, attempt, name, error.retry_after)
            log(f"{name}: {error.reason}, try {attempt} of {tries}, next in {wait:.1f} s ({error})")
            time.sleep(wait)
    raise AssertionError("tries is at least 1")


def backoff(first_s: float, attempt: int, name: str, asked_s: float | None = None) -> float:
    """Seconds to wait after a failure: doubling, spread by the item's name, at most an hour.

    Args:
        attempt: number of the failure, from 1.
        asked_s: what the server asked for; the wait is never shorter.
    """
    spread = 0.5 + stable_hash("backoff", name, str(attempt)) / 2**64
    return min(max(first_s * 2 ** (attempt - 1) * spread, asked_s or 0.0), LONGEST_WAIT_S)


def retry_after(value: str | None) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max((when.astimezone(UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def refused_with(status: int, message: str, asked: str | None = None) -> TransferError:
    """What an HTTP status of 400 or more means for the file that was asked for.

    Args:
        asked: the answer's Retry-After header.
    """
    wait = retry_after(asked)
    if status in STATUSES:
        return TransferError(*STATUSES[status], message, wait)
    if 400 <= status < 500:
        return TransferError("permanent", f"http_{status}", message)
    return TransferError("transient", "server_error", message, wait)


def disk_error(error: OSError) -> DiskFullError | None:
    """What an operator must see if the system refused to write; None for any other error."""
    where = error.filename or "the disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        problem = DiskFullError(f"{where}: {error.strerror}; free some space and run again")
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        problem = DiskFullError(f"{where}: {error.strerror}; make it writable and run again")
    else:
        return None
    problem.__cause__ = error
    return problem


OWN_FAULTS = ("name_taken", "file_error")  # reasons of `item_error`, which no host has given


def item_error(error: OSError) -> TransferError | None:
    """What a file's own fault means for the item that it belongs to; None where it is the
    machine's: its disk, its memory, its descriptors, its network.
    """
    machine = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    network = isinstance(error, ConnectionError | TimeoutError)
    if error.errno is None or error.errno in machine or network or disk_error(error):
        return None
    said = f"{error.filename or 'a file of it'}: {error.strerror}"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return TransferError(
            "permanent",
            "name_taken",
            f"{said}: a file has the name that its folder needs, or the other way round; give one "
            "of the two videos another id",
        )
    return TransferError("transient", "file_error", said)


def raise_if_disk(error: OSError) -> None:
    """Raise `disk_error` if the system refused to write."""
    problem = disk_error(error)
    if problem is not None:
        raise problem
