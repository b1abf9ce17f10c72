"""A file behind a URL, streamed to the disk over one or several connections.

A transfer that was interrupted goes on at its byte, if the server still has the same file. What is
no file but a page or a playlist is left to yt-dlp.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import requests

from assets.fetching.address_guard import Guard
from assets.fetching.errors import TransferError
from assets.fetching.http_session import BROKEN, GuardedSession
from assets.fetching.options import Download
from assets.fetching.partial_file import BLOCK_BYTES, PartialFile, is_still, strong_validator
from assets.fetching.retry import backoff, raise_if_disk, refused_with
from assets.fetching.urls import shown, split_url

CHUNK_BYTES = 1 << 18  # of one read; less comes when less has arrived
PEEKED_BYTES = 1 << 16  # of a page, to tell what it is
TRIES_WITHOUT_PROGRESS = 4  # of one transfer, before it counts as failed
PLAYLISTS = re.compile(r"mpegurl|dash\+xml|x-ms-asf|smil|/xml|\+xml|f4m", re.I)
OPAQUE = ("", "application/octet-stream", "binary/octet-stream", "application/download")
# First bytes of the containers that decoders read -> where they stand.
CONTAINERS = (
    (4, (b"ftyp", b"moov", b"mdat", b"styp")),
    (0, (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"OggS")),
    (0, (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x06\x0e\x2b\x34")),
    (8, (b"AVI ",)),
)
MARKUP = re.compile(rb"\s*(<!doctype|<html|<head|<\?xml|<mpd|<smil|#extm3u)", re.I)
LOGIN_URL = re.compile(
    r"(^|[/._-])(log-?in|sign-?in|sso|oauth2?|authorize|auth|saml2?|cas)([/._?-]|$)", re.I
)
LOGIN_FORM = re.compile(rb"""<input[^>]+type=["']?password""", re.I)
CHALLENGE = re.compile(
    rb"<title>\s*(just a moment|attention required|are you a (human|robot))|cf-chl-|"
    rb"verify (that )?you are (a )?human|confirm you.{1,6}re not a (bot|robot)|unusual traffic",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file that was downloaded and not examined.

    Attributes:
        duration: what the site states, in seconds.
        format: what was chosen or is served; tool: what fetched it.
        length_stated: whether the server said where the file ends, so that a cut would have shown.
    """

    path: Path
    duration: float | None
    format: str
    tool: str
    length_stated: bool = True


def download_file(
    url: str, folder: Path, *, guard: Guard, limits: Download, watch: Callable[[int], None]
) -> Downloaded | None:
    """Stream the file behind `url` into `folder`, which belongs to this video alone.

    Args:
        watch: called by several threads with the number of bytes that came; what it raises stops
            the transfer and keeps what is there for later.

    Returns:
        None where a page or a playlist answers.

    Raises:
        TransferError: the server refuses, breaks off again and again, or asks for a login.
        DiskFullError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with GuardedSession(guard, limits.timeout_s, limits.connections) as session:
            return _Transfer(url, folder, session, limits, watch).run()
    except OSError as error:
        raise_if_disk(error)
        raise TransferError("transient", "connection", f"{shown(url)}: {error}") from error


class _BrokenError(Exception):
    """A connection ended before its file did. Another one may go on."""


class _HaltedError(Exception):
    """Another connection of the same transfer failed for good."""


class _Transfer:
    def __init__(
        self,
        url: str,
        folder: Path,
        session: GuardedSession,
        limits: Download,
        watch: Callable[[int], None],
    ) -> None:
        self.url, self.folder, self.session, self.limits = url, folder, session, limits
        self.watch = watch
        self.target = folder / "direct.bin"
        self._halted = threading.Event()

    def run(self) -> Downloaded | None:
        """Try until the file is whole; a try after which more of it is there to go on from than
        ever before costs nothing.
        """
        failures, most = 0, _kept(self.folder)
        while True:
            try:
                return self._once()
            except _BrokenError as error:
                kept = _kept(self.folder)
                failures, most = 1 if kept > most else failures + 1, max(kept, most)
                if failures == TRIES_WITHOUT_PROGRESS:
                    message = f"{shown(self.url)}: {error}"
                    raise TransferError("transient", "connection", message) from error
                self._wait(backoff(self.limits.hub_backoff_s, failures, self.url))

    def _once(self) -> Downloaded | None:
        part = PartialFile.left(self.folder)
        gap = part.first_gap() if part else None
        if part and gap is None:
            with part:
                part.finish(self.target)
            return self._downloaded("unknown")
        headers = {}
        if part and gap is not None and part.validator:
            headers = {"Range": f"bytes={part.next_byte(gap)}-", "If-Range": part.validator}
        with closing(self.session.get(self.url, headers)) as response:
            if part and gap is not None and _continues(response, part, part.next_byte(gap)):
                return self._receive(part, _Body(response), gap)
            if response.status_code in (206, 412, 416) and part:
                part.remove()  # not the file that the part is of
                raise _BrokenError("the server's file has changed")
            if response.status_code >= 400:
                raise refused_with(
                    response.status_code,
                    f"{shown(response.url)}: HTTP {response.status_code} {response.reason}",
                    response.headers.get("Retry-After"),
                )
            body = _Body(response)
            if response.status_code != 200 or not self._is_file(response, body):
                return None
            total = _length(response)
            if total is None:
                return self._receive_unmeasured(body)
            self._check_size(total)
            validator = strong_validator(response.headers)
            return self._receive(PartialFile.created(self.folder, total, validator), body, 0)

    def _is_file(self, response: requests.Response, body: _Body) -> bool:
        """Whether what answers is a media file, to be kept as it is.

        Raises:
            TransferError: it is a login page that we were sent to, or a check for robots.
        """
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            return False
        if kind.startswith(("video/", "audio/")) or kind == "application/mp4":
            return not PLAYLISTS.search(kind)
        start = body.peek(PEEKED_BYTES if "html" in kind else 512)
        if kind == "application/ogg" or _is_container(start):
            return True
        if kind in OPAQUE and not MARKUP.match(start):
            return True
        if MARKUP.match(start) or "html" in kind:
            self._refuse_page(response, start)
        return False

    def _refuse_page(self, response: requests.Response, page: bytes) -> None:
        if CHALLENGE.search(page):
            message = f"{shown(response.url)}: a page that checks for robots"
            raise TransferError("needs_operator", "bot_check", message)
        if _place(response.url) == _place(self.url):
            return
        place = split_url(response.url)
        if LOGIN_URL.search(f"{place.hostname}{place.path}") or LOGIN_FORM.search(page):
            message = (
                f"{shown(self.url)} sends to a login page, {shown(response.url)}: put the cookies "
                "of an account into the file that YTDLP_COOKIES names"
            )
            raise TransferError("needs_operator", "login_page", message)

    def _receive(self, part: PartialFile, body: _Body, block: int) -> Downloaded:
        """Fill the gaps of `part`, from the open answer that begins at `block`'s next byte, and
        over further connections.
        """
        response = body.response
        several = (
            part.validator is not None
            and part.missing >= 2 * BLOCK_BYTES
            and response.headers.get("Accept-Ranges", "bytes").lower() != "none"
        )
        helpers = min(self.limits.connections, part.missing // BLOCK_BYTES) - 1 if several else 0
        with part:
            if helpers > 0:
                self._receive_over_several(part, body, block, helpers)
            else:
                self._receive_all(part, body, block)
            if part.missing:
                raise _BrokenError(f"{part.missing:,} of {part.total:,} bytes are missing")
            part.finish(self.target)
        return self._downloaded(response.headers.get("Content-Type", ""))

    def _receive_over_several(
        self, part: PartialFile, body: _Body, block: int, helpers: int
    ) -> None:
        url = body.response.url
        with ThreadPoolExecutor(helpers, "direct") as pool:
            others = [pool.submit(self._help, part, url) for _ in range(helpers)]
            try:
                self._receive_all(part, body, block)
            except BaseException:
                self._halted.set()
                raise
            finally:
                for other in others:
                    failure = other.exception()
                    if failure is not None and not isinstance(failure, _HaltedError):
                        raise failure

    def _receive_all(self, part: PartialFile, body: _Body, block: int) -> None:
        """Take block after block from an open answer, up to one that another connection has or that
        begins elsewhere; then ask for what is still missing.
        """
        start = part.next_byte(block)
        while part.claim(block, start):
            try:
                self._fill(part, body, block)
            finally:
                part.give_back(block)
            block, start = block + 1, (block + 1) * BLOCK_BYTES
        body.response.close()
        if part.validator is not None:
            self._receive_blocks(part, body.response.url)

    def _help(self, part: PartialFile, url: str) -> None:
        """Fetch blocks from the end of the file, as long as the server plays along. What it refuses
        is left to the first connection.
        """
        try:
            self._receive_blocks(part, url)
        except (_BrokenError, TransferError):
            return
        except BaseException:
            self._halted.set()
            raise

    def _receive_blocks(self, part: PartialFile, url: str) -> None:
        while (block := part.reserve_last()) is not None:
            try:
                self._receive_block(part, url, block)
            finally:
                part.cancel(block)

    def _receive_block(self, part: PartialFile, url: str, block: int) -> None:
        """Fetch a block by a range. It is claimed only when the server has agreed, so that the
        first connection takes it along where the server does not.
        """
        start, end = part.next_byte(block), block * BLOCK_BYTES + part.length(block) - 1
        headers = {"Range": f"bytes={start}-{end}", "If-Range": part.validator or ""}
        with closing(self.session.get(url, headers)) as response:
            if response.status_code >= 400:
                raise refused_with(
                    response.status_code,
                    f"{shown(url)}: HTTP {response.status_code} for a range",
                    response.headers.get("Retry-After"),
                )
            if not _continues(response, part, start):
                raise _BrokenError("a range was not answered with one of the same file")
            if part.claim(block, start):
                try:
                    self._fill(part, _Body(response), block)
                finally:
                    part.give_back(block)

    def _fill(self, part: PartialFile, body: _Body, block: int) -> None:
        while (missing := part.length(block) - part.done[block]) > 0:
            if self._halted.is_set():
                raise _HaltedError
            data = body.read(min(CHUNK_BYTES, missing))
            if not data:
                raise _BrokenError(f"it broke off at byte {part.next_byte(block):,}")
            part.write(block, data)
            self.watch(len(data))

    def _receive_unmeasured(self, body: _Body) -> Downloaded:
        """A body whose length nobody stated: from front to back, and from the front again after a
        fault.
        """
        size = 0
        with open(self.target, "wb") as file:
            while data := body.read(CHUNK_BYTES):
                size += len(data)
                self._check_size(size)
                file.write(data)
                self.watch(len(data))
        chunked = "chunked" in body.response.headers.get("Transfer-Encoding", "").lower()
        kind = body.response.headers.get("Content-Type", "")
        return self._downloaded(kind, length_stated=chunked)

    def _downloaded(self, kind: str, length_stated: bool = True) -> Downloaded:
        tool = f"requests {requests.__version__}"
        return Downloaded(
            self.target, None, kind.partition(";")[0] or "unknown", tool, length_stated
        )

    def _check_size(self, size: int) -> None:
        if size > self.limits.max_bytes:
            message = f"{size:,} bytes or more; download.max_bytes is {self.limits.max_bytes:,}"
            raise TransferError("permanent", "not_wanted", message)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.watch(0)
            time.sleep(min(left, 0.2))


class _Body:
    """The bytes of an answer as they arrive; some may be looked at before they are read."""

    def __init__(self, response: requests.Response) -> None:
        self.response, self._peeked = response, b""

    def peek(self, size: int) -> bytes:
        """Up to `size` of the first bytes."""
        while len(self._peeked) < size and (data := self._read(size - len(self._peeked))):
            self._peeked += data
        return self._peeked

    def read(self, size: int) -> bytes:
        """What has arrived, at most `size` bytes; nothing at the end."""
        if self._peeked:
            data, self._peeked = self._peeked[:size], self._peeked[size:]
            return data
        return self._read(size)

    def _read(self, size: int) -> bytes:
        try:
            data: bytes = self.response.raw.read1(size)
        except BROKEN as error:
            raise _BrokenError(str(error)) from error
        return data


def _continues(response: requests.Response, part: PartialFile, start: int) -> bool:
    """Whether an answer holds the bytes from `start` on of the file that `part` is of."""
    match = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip()
    )
    return (
        response.status_code == 206
        and match is not None
        and (int(match[1]), int(match[2])) == (start, part.total)
        and is_still(response.headers, part.validator or "")
    )


def _length(response: requests.Response) -> int | None:
    stated = response.headers.get("Content-Length", "")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return int(stated) if stated.isdigit() and not chunked else None


def _is_container(start: bytes) -> bool:
    if start[:1] == b"G" and start[188:189] == b"G":  # packets of an MPEG transport stream
        return True
    return any(start[at : at + len(magic)] == magic for at, all_ in CONTAINERS for magic in all_)


def _kept(folder: Path) -> int:
    """Bytes that the next try goes on from."""
    part = PartialFile.left(folder)
    return part.total - part.missing if part else 0


def _place(url: str) -> tuple[str, str]:
    parts = split_url(url)
    return (parts.netloc, parts.path)
