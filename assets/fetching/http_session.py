"""Plain GETs whose every connection, and every redirect, passes the address guard.

Nothing of a request outlives a redirect: each hop is a request of its own, so that a password in a
URL and the cookies of a host reach that host alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from requests.utils import get_auth_from_url

from assets.fetching.address_guard import BlockedError, Guard, guard_manager
from assets.fetching.errors import MissingToolError, TransferError
from assets.fetching.options import COOKIES_VARIABLE
from assets.fetching.urls import MalformedUrlError, join_url, shown, split_url

MOST_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; hour-llava)",
    "Accept": "*/*",
    "Accept-Encoding": "identity",  # a video's bytes, as they are counted and resumed
}
MALFORMED = (
    MalformedUrlError,
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)
BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class GuardedSession:
    """A pool of connections that several threads share. A context manager.

    Args:
        timeout_s: longest silence of a server.
        connections: to one host.
    """

    def __init__(self, guard: Guard, timeout_s: float, connections: int) -> None:
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._session.headers.clear()
        self._session.headers.update(HEADERS)
        adapter = _GuardedAdapter(guard, connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        if cookies := _cookie_file():
            from yt_dlp.cookies import YoutubeDLCookieJar

            jar = YoutubeDLCookieJar(str(cookies))
            jar.load()
            self._session.cookies.update(jar)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> requests.Response:
        """The answer to a GET after all redirects, its body unread. `url` of the answer is the last
        one asked; it differs from the argument where the server sent us elsewhere.

        Raises:
            TransferError: the connection fails (`transient`), or the address is not to be asked.
        """
        try:
            for _ in range(MOST_REDIRECTS):
                response = self._ask(url, headers or {})
                where = response.headers.get("Location")
                if response.status_code not in REDIRECTS or not where:
                    return response
                response.close()
                url = join_url(url, where)
        except BlockedError as error:
            raise TransferError("permanent", "blocked", str(error)) from error
        except MALFORMED as error:
            raise TransferError("permanent", "bad_url", str(error)) from error
        except BROKEN as error:
            raise TransferError("transient", "connection", f"{shown(url)}: {error}") from error
        raise TransferError("permanent", "redirects", f"{shown(url)}: redirected without an end")

    def _ask(self, url: str, headers: Mapping[str, str]) -> requests.Response:
        """One GET. Not `requests`' own: that reads the body of a redirect, whatever its size."""
        split_url(url)  # first: the libraries below raise anything at a malformed one
        session, credentials = self._session, get_auth_from_url(url)
        request = session.prepare_request(
            requests.Request(
                "GET",
                url,
                headers=dict(headers),
                auth=credentials if any(credentials) else _no_credentials,
            )
        )
        options = session.merge_environment_settings(request.url or "", {}, True, None, None)
        adapter = session.get_adapter(request.url or "")
        response = adapter.send(request, timeout=self.timeout_s, **options)
        extract_cookies_to_jar(session.cookies, request, response.raw)
        return response


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, guard: Guard, connections: int) -> None:
        self.guard = guard
        super().__init__(pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)  # type: ignore[no-untyped-call]
        guard_manager(self.poolmanager, self.guard)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> Any:
        self.guard.check_url(request.url or "")
        return super().send(request, *args, **options)


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """In the place of those that `requests` would look up in a .netrc file."""
    return request


def _cookie_file() -> Path | None:
    """The operator's cookies.

    Raises:
        MissingToolError: the variable names no file.
    """
    name = os.environ.get(COOKIES_VARIABLE)
    if not name:
        return None
    if not Path(name).is_file():
        raise MissingToolError(f"{COOKIES_VARIABLE} names {name}, which is not a file")
    return Path(name)
