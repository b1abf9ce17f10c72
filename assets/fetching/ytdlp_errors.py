"""What a failure of yt-dlp means: is the video gone, did the network fail, or must a person act?

Its exceptions carry the cause in three different places, and some keep only English text. The order
of the texts matters: "Video unavailable. This content isn't available, try again later" is a rate
limit, not a missing video.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import GeoRestrictedError, UnsupportedError

from assets.fetching.address_guard import BlockedError
from assets.fetching.errors import OperatorError, TransferError
from assets.fetching.retry import raise_if_disk, refused_with

# (status, reason, regular expressions); the first that is found counts.
TEXTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "needs_operator",
        "bot_check",
        ("confirm you.re not a bot", "captcha", "ip is likely being blocked", "unusual traffic"),
    ),
    # Of one video, and for good. They stand here because their sentences hold the words of others.
    (
        "permanent",
        "playback_disabled",
        (
            "playback on other (websites|apps) has been disabled",
            "playback .{0,40}disabled by (its|the|the video) owner",
            "embedding (is |has been )?disabled",
        ),
    ),
    (
        "permanent",
        "payment",
        (r"premium[- ]?(members|only|subscribers?)", "premium (user|account)s?"),
    ),
    ("permanent", "live", ("live (event|stream) (has|was) ended", "livestream (has )?ended")),
    (
        "transient",
        "rate_limited",
        ("try again later", "rate.?limit", "too many requests", r"\b429\b"),
    ),
    (
        "needs_operator",
        "login_required",
        (
            "please (sign|log) ?in(?! to confirm your age)",
            "sign in to (view|watch|continue)",
            "login.?required",
            "requires? (a )?log-?in",
            "only available for registered users",
        ),
    ),
    ("needs_operator", "cookies_invalid", ("cookies are no longer valid", "account cookies")),
    ("permanent", "private", ("private video", "is private")),
    ("permanent", "members_only", ("members[- ]only", "channel.s members", "join this channel")),
    ("permanent", "age", ("confirm your age", "age.?restricted", "inappropriate for some users")),
    (
        "permanent",
        "geo",
        (
            "available in your country",
            "geo.?restrict",
            "blocked it in your country",
            "not available from your",
        ),
    ),
    (
        "permanent",
        "removed",
        (
            "has been removed",
            "no longer available",
            "account (associated with this video )?has been terminated",
            "does not exist",
            "copyright",
            "violat",
        ),
    ),
    ("permanent", "drm", (r"\bDRM\b",)),
    (
        "permanent",
        "live",
        (
            "live event will begin",
            "premieres in",
            "is_live",
            "currently live",
            "live stream recording",
        ),
    ),
    ("permanent", "payment", ("requires payment", "purchase", "rental")),
    (
        "permanent",
        "unsupported",
        (
            "unsupported url",
            "no suitable extractor",
            "no suitable infoextractor",
            "not a valid url",
            "unusual and will be skipped",
            "file:// urls are disabled",
            "unsupported url scheme",
            "no request handlers",
            "playlist",
        ),
    ),
    (
        "needs_operator",
        "no_format",
        ("requested format is not available", "no video formats found", "only images are avail"),
    ),
    (
        "permanent",
        "unavailable",
        (
            "video unavailable",
            "video is not available",
            "isn.t available",
            "content is not available",
        ),
    ),
    ("transient", "range_refused", (r"\b416\b",)),
    ("transient", "forbidden", (r"\b403\b",)),
    ("permanent", "http_400", ("http error 400",)),
    ("permanent", "http_405", ("http error 405",)),
    (
        "transient",
        "connection",
        (
            "timed? ?out",
            "timeout",
            "connection (refused|reset|broken|aborted)",
            "failed to resolve",
            "name or service",
            "temporary failure",
            "remote end closed",
            "more expected",
            r"http error 5\d\d",
            "incomplete",
            "content too short",
            "ssl",
            "unable to download (webpage|api page|video data)",
        ),
    ),
)
PATTERNS = [
    (status, reason, re.compile("|".join(texts), re.IGNORECASE)) for status, reason, texts in TEXTS
]


def classify(error: BaseException) -> TransferError:
    """The failure as ours.

    Raises:
        OperatorError: the disk is full or read-only, or whatever of the kind lies behind `error`.
    """
    chain = list(causes(error))
    message = " | ".join(dict.fromkeys(_plain(str(one)) for one in chain))[:500]
    for one in chain:
        if isinstance(one, OperatorError | TransferError):
            raise one
        if isinstance(one, BlockedError):
            return TransferError("permanent", "blocked", message)
        if isinstance(one, GeoRestrictedError):
            return TransferError("permanent", "geo", message)
        if isinstance(one, UnsupportedError):
            return TransferError("permanent", "unsupported", message)
        if isinstance(one, OSError):
            raise_if_disk(one)
    for one in chain:
        if isinstance(one, HTTPError):
            headers = one.response.headers if one.response is not None else {}
            failure = refused_with(one.status, message, headers.get("Retry-After"))
            if failure.reason != "forbidden":  # its text may know more
                return failure
    for status, reason, pattern in PATTERNS:
        if pattern.search(message):
            return TransferError(status, reason, message)
    return TransferError("transient", "unknown", message)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what lies behind it, wherever yt-dlp put that."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or any(one is known for known in seen):
            continue
        seen.append(one)
        yield one
        info = getattr(one, "exc_info", None)
        waiting += [
            info[1] if info else None,
            getattr(one, "cause", None),
            one.__cause__,
            one.__context__,
        ]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
