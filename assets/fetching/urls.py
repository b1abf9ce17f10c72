"""URLs that strangers wrote: taken apart with one kind of error, and told without their secrets."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urljoin, urlsplit

# Up to the first character that no URL has unquoted; a text ends a URL with a quote or a bracket.
IN_A_TEXT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>|]+", re.I)
# A password may hold what should have been quoted: then it reads like a port that is none.
CREDENTIALS = r"[^/?#]*@|[^/?#@\[]*:(?!\d*(?:[/?#]|$)).*@"
PARTS = re.compile(rf"((?:[^:/?#]+:)?//)(?:{CREDENTIALS})?([^?#]*)")
# What libraries name without its host, as in "Max retries exceeded with url: /v.mp4?Signature=x".
PATH_WITH_QUERY = re.compile(r"(?<![^\s'\"(])(/[^\s'\"?]*)\?[^\s'\"|)]+")


class MalformedUrlError(ValueError):
    """A URL that nothing can be asked by. Its text names none of the URL's secrets."""


def split_url(url: str) -> SplitResult:
    """The parts of a URL, of which `hostname` and `port` can be read.

    Raises:
        MalformedUrlError: a bracket without its other half, a host that is no name, a port that is
            none.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if host.isascii():
            host.encode("idna")  # what looking it up would do: labels have 1 to 63 letters
    except ValueError:  # its own text may hold a password
        raise MalformedUrlError(f"{shown(url)}: its host is malformed") from None
    try:
        _ = parts.port
    except ValueError:
        raise MalformedUrlError(f"{shown(url)}: its port is not from 0 to 65535") from None
    return parts


def join_url(base: str, reference: str) -> str:
    """Where a reference (the target of a redirect, say) leads from `base`.

    Raises:
        MalformedUrlError: as `split_url`.
    """
    try:
        return urljoin(base, reference)
    except ValueError:
        raise MalformedUrlError(f"{shown(reference)}: its host is malformed") from None


def shown(url: str) -> str:
    """A URL as it may be logged: without its user, its password and its query. Any text will do."""
    parts = PARTS.match(url)
    return parts.expand(r"\1\2") if parts else re.split(r"[?#]", url, maxsplit=1)[0]


def without_secrets(text: str) -> str:
    """A text of any library, in which every URL stands as `shown` tells it."""
    text = IN_A_TEXT.sub(lambda found: shown(found[0]), text)
    return PATH_WITH_QUERY.sub(r"\1", text)
