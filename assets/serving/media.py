"""Images and videos that a request brings or names, within bounds."""

from __future__ import annotations

import base64
import binascii
import re

from assets.fetching.address_guard import Guard
from assets.fetching.errors import TransferError
from assets.fetching.http_session import GuardedSession
from assets.fetching.urls import shown
from assets.serving.library import Library

MOST_IMAGE_BYTES = 32 << 20
_DATA = re.compile(r"data:([a-z]+)/[a-z0-9.+-]+;base64,", re.ASCII)
WEB = ("http://", "https://")


def image_bytes(url: str, library: Library) -> bytes:
    """The content of an image's URL, `data:` or http.

    Raises:
        ValueError: it may not or cannot be fetched, or is too large.
    """
    if url.startswith("data:"):
        return _decoded(url, "image", MOST_IMAGE_BYTES)
    if not url.startswith(WEB):
        raise ValueError("an image is a data: URL with base64, or an http(s) one")
    rules = library.fetching
    try:
        with GuardedSession(Guard(rules.hosts), rules.limits.timeout_s, 1) as session:
            response = session.get(url)
            try:
                if response.status_code != 200:
                    raise ValueError(f"{shown(url)}: HTTP {response.status_code}")
                content: bytes = response.raw.read(MOST_IMAGE_BYTES + 1)
            finally:
                response.close()
    except TransferError as error:
        raise ValueError(f"{shown(url)}: not fetched ({error.reason}): {error}") from error
    if len(content) > MOST_IMAGE_BYTES:
        raise ValueError(f"{shown(url)}: more than {MOST_IMAGE_BYTES:,} bytes")
    return content


def video_name(url: str, library: Library) -> str:
    """The name in the library of a video that is given as a `data:` URL, an http one, or by such a
    name.

    Raises:
        ValueError: it may not or cannot be fetched, is no sound video, or there is none.
    """
    if url.startswith("data:"):
        path = library.new_file()
        path.write_bytes(_decoded(url, "video", library.upload_bytes))
        return library.add(path, "video")
    if url.startswith(WEB):
        return library.fetch(url)
    library.video(url)
    return url


def _decoded(url: str, kind: str, most: int) -> bytes:
    """The bytes of a data: URL."""
    head = _DATA.match(url[:100])
    if not head or head[1] != kind:
        raise ValueError(f"not a data:{kind}/...;base64, URL")
    if len(url) > most * 4 // 3 + 200:
        raise ValueError(f"more than {most:,} bytes")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"a data: URL whose base64 is broken ({error})") from error
