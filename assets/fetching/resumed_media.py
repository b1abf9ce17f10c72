"""Whether the rest of a file that yt-dlp asks for belongs to what it has of it.

yt-dlp goes on with a partial file without asking whether the server still has the same one, and a
site's URL of a video is another one each time. So what the server said of the file is kept beside
the partial file. A request for the rest carries it (If-Range) and the answer is compared with it:
the length, and the ETag or the time of the last change. Where they differ, or nothing is known, the
whole file is asked for instead, and yt-dlp begins anew.

Pages, playlists and the segments of a stream are no such requests, and nothing here touches them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assets.fetching.errors import TransferError
from assets.fetching.partial_file import is_still, strong_validator
from model.atomic import writing_file


@dataclass(frozen=True, slots=True)
class _Known:
    """What a server said of a file."""

    total: int | None
    validator: str | None


class ResumedMedia:
    """The partial files of one download.

    Attributes:
        length_stated: whether the last answer said where it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.record = folder, folder / "validators.json"
        self.length_stated = True
        self._last = _Known(None, None)
        self._now: _Known | None = None  # of the file that this process is fetching
        self._known: dict[str, _Known] = {}
        if self.record.exists():
            found = json.loads(self.record.read_text())
            self._known = {name: _Known(**known) for name, known in found.items()}

    def send(self, request: Any, send: Callable[[], Any]) -> Any:
        """The answer to a request of yt-dlp, which is for the whole file where the rest would not
        belong to what is there.

        Raises:
            TransferError: the file was exchanged while this process fetched it.
        """
        start = _first_byte(request.headers.get("Range"))
        if not start:
            return self._noted(send())
        if self._now is not None:  # a further piece, or a broken connection, of this process
            response = self._noted(send())
            if response.status_code == 206 and not _is_same(response, self._now):
                response.close()
                self._forget()
                raise TransferError("transient", "changed", "the file was exchanged meanwhile")
            return response
        known = self._of_part(start)
        if known is not None and known.validator is not None:
            request.headers["If-Range"] = known.validator
            response = send()
            if response.status_code != 206 or _is_same(response, known):
                return self._noted(response)
            response.close()
        for name in ("Range", "If-Range"):
            request.headers.pop(name, None)
        return self._noted(send())

    def bytes_came(self, state: dict[str, Any]) -> None:
        """A progress hook of yt-dlp: the last answer was of the file that is being written."""
        name = Path(str(state.get("tmpfilename") or "")).name
        if state.get("status") != "downloading" or not name or self._now is not None:
            return
        self._now = self._last
        if self._known.get(name) != self._last:
            self._known[name] = self._last
            self._write()

    def _of_part(self, size: int) -> _Known | None:
        """What is known of the partial file of that size."""
        for name, known in self._known.items():
            part = self.folder / name
            if part.is_file() and part.stat().st_size == size:
                return known
        return None

    def _noted(self, response: Any) -> Any:
        if response.status_code in (200, 206):
            headers = response.headers
            self._last = _Known(_total(response), strong_validator(headers))
            chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
            self.length_stated = chunked or headers.get("Content-Length") is not None
        return response

    def _forget(self) -> None:
        self._known.clear()
        self._write()

    def _write(self) -> None:
        with writing_file(self.record, durable=False) as temporary:
            known = {name: asdict(known) for name, known in self._known.items()}
            temporary.write_text(json.dumps(known))


def _first_byte(header: str | None) -> int:
    match = re.match(r"bytes=(\d+)-", header or "")
    return int(match[1]) if match else 0


def _total(response: Any) -> int | None:
    """Size of the whole file."""
    if response.status_code == 206:
        match = re.search(r"/(\d+)\s*$", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def _is_same(response: Any, known: _Known) -> bool:
    """Whether an answer is of the file that is known. Where nothing tells files apart, its length
    has to do for a process's own file.
    """
    if _total(response) != known.total:
        return False
    return known.validator is None or is_still(response.headers, known.validator)
