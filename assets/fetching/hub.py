"""Repositories of the Hugging Face hub or a mirror: revisions, files, and bytes that are checked.

Everything goes through `huggingface_hub`. This module adds what that client leaves to its caller.
The client does not compare the hash of what it fetched, does not retry after a 429 or a broken
body, reports both as "not found locally", and writes wherever a mirror's file names point.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import requests
from huggingface_hub import HfApi, HfFileSystem, get_token, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars

from assets.fetching.errors import AccessError, OperatorError, TransferError
from assets.fetching.options import Download
from assets.fetching.retry import raise_if_disk, retry_after, retrying

Kind = Literal["dataset", "model"]

BLOCK_BYTES = 8 << 20  # one range request while a file is read from front to back
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (requests.RequestException,)
if find_spec("httpx"):  # what the client is built on from its version 1 on
    import httpx

    TRANSPORT_ERRORS = (*TRANSPORT_ERRORS, httpx.HTTPError)

CLIENT_ERRORS: tuple[type[Exception], ...] = (
    HfHubHTTPError,
    HFValidationError,
    OSError,
    *TRANSPORT_ERRORS,
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: its size in bytes, and its sha256 (64 digits) or git blob id (40
    digits).
    """

    path: str
    size: int
    checksum: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    def new_digest(self) -> Any:
        """A hash object that, fed with the content, gives `checksum`."""
        if len(self.checksum) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)

    def matches(self, path: Path) -> bool:
        """Whether a local file has this content."""
        if path.stat().st_size != self.size:
            return False
        digest = self.new_digest()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest() == self.checksum


class Hub:
    """The Hugging Face hub or a mirror; failed requests are retried.

    The token is the one that the Hugging Face client finds: `HF_TOKEN` or a login on this machine.

    Args:
        endpoint: address of a mirror, None for the hub itself.
        download: how often to retry, and how long to wait.
    """

    def __init__(
        self, endpoint: str | None, download: Download, log: Callable[[str], None]
    ) -> None:
        disable_progress_bars()
        self.endpoint, self.token, self.log = endpoint, get_token(), log
        self.tries, self.backoff_s = download.attempts, download.hub_backoff_s
        self.api = HfApi(endpoint=self.endpoint, token=self.token)

    def repo(self, repo: str, revision: str = "main", kind: Kind = "dataset") -> HubRepo:
        """A repository with its revision made definite: one request.

        Raises:
            OperatorError: no such repository or revision.
            AccessError: it is gated, and the token is missing or not accepted.
            TransferError: the hub does not answer.
        """
        info = self.retrying(
            lambda: self.api.repo_info(repo, revision=revision, repo_type=kind), repo
        )
        if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
            raise OperatorError(
                f"{self.api.endpoint}: gave no commit for {repo} at {revision!r}; is it a hub?"
            )
        return self.repo_at(repo, str(info.sha), kind)

    def repo_at(self, repo: str, commit: str, kind: Kind = "dataset") -> HubRepo:
        """A repository at a commit that is known already: no request.

        Args:
            commit: 40 digits.
        """
        return HubRepo(self, repo, commit, kind)

    def retrying(self, action: Callable[[], Any], name: str, tries: int | None = None) -> Any:
        """What `action` gives, retried as the settings say; the client's errors become ours."""

        def one() -> Any:
            with hub_errors(name):
                return action()

        return retrying(
            one, name, tries=tries or self.tries, backoff_s=self.backoff_s, log=self.log
        )


class HubRepo:
    """One repository at one revision.

    Attributes:
        commit: the 40-digit revision.
    """

    def __init__(self, hub: Hub, repo: str, commit: str, kind: Kind = "dataset") -> None:
        self.hub, self.repo, self.commit, self.kind = hub, repo, commit, kind

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"

    def files(self, patterns: Iterable[str] = ("*",)) -> list[HubFile]:
        """All files whose path matches one of the patterns (`*` also crosses folders), by path.

        Raises:
            OperatorError: the listing names a path outside of the repository.
        """
        wanted = list(patterns)

        def listing() -> list[Any]:
            return list(
                self.hub.api.list_repo_tree(
                    self.repo, recursive=True, revision=self.commit, repo_type=self.kind
                )
            )

        entries = [
            entry for entry in self.hub.retrying(listing, self.repo) if isinstance(entry, RepoFile)
        ]
        return sorted(
            (
                HubFile(
                    safe_path(entry.path, self.repo),
                    entry.size,
                    entry.lfs.sha256 if entry.lfs else entry.blob_id,
                )
                for entry in entries
                if any(fnmatchcase(entry.path, pattern) for pattern in wanted)
            ),
            key=lambda file: file.path,
        )

    def download(self, file: HubFile, target: Path, tries: int | None = None) -> Path:
        """Fetch a file to `target`, going on where an earlier call was interrupted. Its hash is
        compared.

        A folder `<target>.hub` holds the part; it belongs to this download alone.

        Raises:
            TransferError, AccessError, DiskFullError.
        """
        private = target.with_name(f"{target.name}.hub")

        def fetch() -> None:
            path = Path(
                hf_hub_download(
                    self.repo,
                    safe_path(file.path, self.repo),
                    repo_type=self.kind,
                    revision=self.commit,
                    endpoint=self.hub.endpoint,
                    token=self.hub.token,
                    local_dir=private,
                )
            )
            if not file.matches(path):
                shutil.rmtree(private)
                raise TransferError(
                    "transient", "hash_mismatch", f"{self}: {file.path} is not {file.checksum}"
                )
            os.replace(path, target)
            shutil.rmtree(private)

        self.hub.retrying(fetch, f"{self.repo}/{file.path}", tries)
        return target

    def open(self, file: HubFile) -> RetryingFile:
        """A file to read from, anywhere; only what is read travels."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        filesystem = HfFileSystem(
            endpoint=self.hub.endpoint, token=self.hub.token, skip_instance_cache=True
        )
        name = f"{prefix}{self.repo}@{self.commit}/{safe_path(file.path, self.repo)}"
        return RetryingFile(
            lambda: filesystem.open(name, "rb", block_size=BLOCK_BYTES),
            file.size,
            self.hub,
            f"{self.repo}/{file.path}",
        )


class RetryingFile(io.RawIOBase):
    """A remote file. A read that fails is retried at the same place, with the file opened anew.

    Args:
        opened: opens the file anew.
        size: in bytes; a read that ends earlier than it should is a failed one.
    """

    def __init__(self, opened: Callable[[], Any], size: int, hub: Hub, label: str) -> None:
        super().__init__()
        self.opened, self.size, self.hub, self.label = opened, size, hub, label
        self._file: Any = None
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(
            {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence] + offset, 0
        )
        return self._at

    def readinto(self, buffer: Any) -> int:
        expected = min(len(buffer), self.size - self._at)
        if expected <= 0:
            return 0
        data = self.hub.retrying(lambda: self._read(expected), self.label)
        buffer[:expected] = data
        self._at += expected
        return expected

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, count: int) -> bytes:
        try:
            if self._file is None:
                self._file = self.opened()
            self._file.seek(self._at)
            data = self._file.read(count)
        except BaseException:
            self._drop()
            raise
        if len(data) != count:
            self._drop()
            raise TransferError(
                "transient", "truncated", f"{self.label}: {len(data):,} of {count:,} bytes"
            )
        return data

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def safe_path(path: str, where: str) -> str:
    """`path` if it stays inside the folder it is relative to.

    Raises:
        OperatorError: it does not; a listing that tries is not used at all.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
        raise OperatorError(
            f"{where}: the listing names {path!r}, a path outside of the repository; it is not "
            "trusted"
        )
    return path


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn the client's exceptions into ours. Where it says "not found locally", the cause behind
    that is used.
    """
    try:
        yield
    except CLIENT_ERRORS as error:
        cause: BaseException = error
        while isinstance(cause, LocalEntryNotFoundError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise _translated(cause, name) from error


def _translated(error: BaseException, name: str) -> Exception:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = str(error).strip()
    text = f"{name}: {said.splitlines()[0] if said else type(error).__name__}"[:400]
    if isinstance(error, GatedRepoError) or (
        status in (401, 403) and not isinstance(error, RevisionNotFoundError)
    ):
        return AccessError(
            f"{text}. Access is restricted or the repository does not exist: check its name, "
            "accept the conditions on its page, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
        return OperatorError(f"{text}. Check the repository and the revision in the settings")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return TransferError("permanent", "http_404", text)
    if status is not None and response is not None:
        wait = retry_after(response.headers.get("Retry-After"))
        if status == 429:
            return TransferError("transient", "rate_limited", text, wait)
        if status >= 500 or status in (408, 416, 425):
            return TransferError("transient", "server_error", text, wait)
        return TransferError("permanent", f"http_{status}", text)
    if isinstance(error, OSError) and not isinstance(error, TRANSPORT_ERRORS):
        raise_if_disk(error)
    return TransferError("transient", "connection", text)
