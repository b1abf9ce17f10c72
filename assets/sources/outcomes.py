"""Whether what decided an outcome is still so. The one place that knows, for all kinds of source.

What became of a video is believed only as long as the facts that decided it are the same: the
settings, the file in a folder, the commit of a repository, the tool, the cookies. The catalogue
keeps a fingerprint of them beside each outcome (`decided_by`). When it is another one now, the
video is tried again by the next run.

A kind of source states its facts (`Fetcher.facts`), and `DECIDED_BY` which of them decide a reason.
A reason that does not stand there may depend on any of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from assets.fetching.options import COOKIES_VARIABLE, Download
from assets.sources.base import (
    EXHAUSTED,
    NOT_ASKED,
    OK,
    PENDING,
    TRANSIENT,
    Fetcher,
    VideoRow,
)
from model.media.limits import MAX_VIDEO_PIXELS
from model.media.reading import RULES
from model.media.refusals import REASONS
from training.formats.hashing import data_version

Facts = Mapping[str, Callable[[VideoRow], Any]]

# The file itself: which one it is, and where it lies.
FILE = ("place",)
ACCOUNT = ("account", "proxy", "tool")
# Reason -> the facts that decide it, besides what the rows say of the video (URL and duration).
DECIDED_BY: dict[str, tuple[str, ...]] = {
    # settings of the source, and what they point at
    "blocked": ("hosts", "proxy"),
    "not_in_repo": FILE,
    "not_dropped": FILE,
    "ambiguous": FILE,
    "still_copied": FILE,
    "name_taken": (),
    "archive_damaged": FILE,
    "archive_too_large": FILE,
    "archive_bomb": FILE,
    "hostile_archive": FILE,
    "no_url": (),
    "bad_url": (),
    # what a file turned out to be
    **dict.fromkeys((*REASONS, "truncated", "damaged"), (*FILE, "decoder")),
    "fragments_missing": (*FILE, "decoder"),
    "decoder_crash": (*FILE, "decoder"),
    "decoder_hang": (*FILE, "decoder"),
    "oom": (*FILE, "decoder"),
    "too_large": (*FILE, "decoder", "max_pixels"),
    "duration_differs": (*FILE, "decoder", "verify_tolerance_s"),
    "too_long": (*FILE, "max_duration_s"),
    "not_wanted": (*FILE, "max_duration_s", "max_bytes", "tool"),
    # who asks, and from where
    "geo": ACCOUNT,
    "age": ACCOUNT,
    "private": ACCOUNT,
    "members_only": ACCOUNT,
    "payment": ACCOUNT,
    "login_required": ACCOUNT,
    "login_page": ACCOUNT,
    "proxy_login": ("proxy",),
    "playback_disabled": ACCOUNT,
    "encrypted_archive": FILE,
    "unsupported_archive": FILE,
    "not_an_archive": FILE,
    "archive_incomplete": FILE,
    "bot_check": ACCOUNT,
    "cookies_invalid": ACCOUNT,
    "unavailable": ACCOUNT,
    "forbidden": ACCOUNT,
    # what the tool understands
    "unsupported": ("tool",),
    "no_format": ACCOUNT,
    "drm": ("tool",),
    "live": ("tool",),
    # the video is gone, whoever asks
    "removed": (),
    "http_404": (),
    "http_410": (),
    "http_451": ("proxy",),
}
# Reasons that say something about us, or that may: a host that is tired of us words it as it likes.
# They are counted by host. Those of `RESTING` say that fewer requests are wanted.
REFUSALS = frozenset(
    {
        "bot_check",
        "connection",
        "cookies_invalid",
        "forbidden",
        "login_page",
        "login_required",
        "no_format",
        "rate_limited",
        "server_error",
        "unavailable",
        "unknown",
    }
)
RESTING = frozenset({"bot_check", "rate_limited"})
GONE = frozenset({"http_404", "http_410", "http_451"})
_ASKED_TO_RETRY = "+retry"

PROXY_VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy")


def is_refusal(reason: str) -> bool:
    """Whether a failure may be about us and not about the video."""
    return reason in REFUSALS or (reason.startswith("http_4") and reason not in GONE)


class Evidence:
    """What decides outcomes now, for the videos of one source and part.

    Args:
        fetcher: states the facts of its kind of source.
        max_pixels: most width x height of a picture.
    """

    def __init__(
        self, fetcher: Fetcher, download: Download, max_pixels: int = MAX_VIDEO_PIXELS
    ) -> None:
        settings = {**_facts_of_settings(download), "max_pixels": lambda row: max_pixels}
        self._facts: Facts = {**settings, **fetcher.facts()}
        self._retry = frozenset(download.retry)

    def fingerprint(self, row: VideoRow, reason: str | None) -> str:
        """Of what decides `reason` for a video now. Secrets go into it as hashes only."""
        names = DECIDED_BY.get(reason or "", tuple(self._facts))
        said = [self._facts["url"](row), row.expected_duration]
        facts = {name: self._facts[name](row) for name in sorted(names) if name in self._facts}
        print_ = data_version([reason, said, facts])
        return print_ + _ASKED_TO_RETRY if reason in self._retry else print_

    def is_stale(self, row: VideoRow) -> bool:
        """Whether something that decided a failure is another one now.

        A reason that `download.retry` names since is such a change; one that it names no longer is
        none.
        """
        if row.status in (OK, PENDING, NOT_ASKED):
            return False
        if row.decided_by is None:
            return True
        now = self.fingerprint(row, row.reason)
        same = now.removesuffix(_ASKED_TO_RETRY) == row.decided_by.removesuffix(_ASKED_TO_RETRY)
        newly_asked = now.endswith(_ASKED_TO_RETRY) and not row.decided_by.endswith(_ASKED_TO_RETRY)
        return not same or newly_asked


def outcome_is_stale(row: VideoRow, evidence: Evidence) -> bool:
    """Whether the outcome of a video may be another one now, without anybody asking for it: it was
    never tried, it failed in passing, or what decided it has changed.
    """
    return row.status in (PENDING, TRANSIENT, EXHAUSTED) or evidence.is_stale(row)


def account_facts() -> dict[str, Callable[[VideoRow], Any]]:
    """Who asks, from where, and with what: for sources that yt-dlp fetches."""
    return {
        "account": lambda row: _cookies(),
        "proxy": lambda row: _proxies(),
        "tool": lambda row: _version("yt-dlp"),
    }


def _facts_of_settings(download: Download) -> dict[str, Callable[[VideoRow], Any]]:
    return {
        "url": lambda row: row.url,
        "decoder": lambda row: f"{_version('av')}, rules {RULES}",
        "verify_tolerance_s": lambda row: download.verify_tolerance_s,
        "max_duration_s": lambda row: download.max_duration_s,
        "max_bytes": lambda row: download.max_bytes,
    }


def _cookies() -> str | None:
    """A hash of the cookies' file; None without one."""
    path = os.environ.get(COOKIES_VARIABLE)
    if not path or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _proxies() -> str:
    """A hash of the proxies, whose addresses may hold a password."""
    values = [os.environ.get(name, "") for name in PROXY_VARIABLES]
    return hashlib.sha256("\0".join(values).encode()).hexdigest()


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
