"""Two local HTTP servers: one speaks the part of the Hugging Face hub's protocol that its client
needs, one serves media files by range.

The demo fetches its corpus from them through the same code that fetches from the internet. Both
listen on 127.0.0.1 only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from mimetypes import guess_type
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlencode

from pipeline.demo.local_server import Content, LocalServer, Reply, Request

# Files that the hub's LFS patterns name.
LFS_SUFFIXES = (
    ".parquet",
    ".zip",
    ".gz",
    ".tar",
    ".mp4",
    ".webm",
    ".mkv",
    ".safetensors",
    ".bin",
    ".arrow",
)
LFS_BYTES = 10 << 20  # the hub keeps any larger file in LFS, whatever it is called
LIST_PAGE = 1000  # entries; the hub pages its listings like this


class MediaServer(LocalServer):
    """Serves the files below a folder, with ranges.

    Args:
        folder: what is served; `/a/b.mp4` is `folder/a/b.mp4`. Nothing outside of it is
            reachable.
        port: 0 takes a free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(port)
        self.folder = folder.resolve()

    def reply(self, request: Request) -> Reply:
        file = (self.folder / request.path.lstrip("/")).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            return Reply(404, Content.of(b"not found\n"), {"Content-Type": "text/plain"})
        stat = file.stat()
        headers = {
            "Content-Type": guess_type(file.name)[0] or "application/octet-stream",
            "ETag": f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"',
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
        }
        return Reply(200, Content.of(file), headers, ranges=True)


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file of a revision: its content and the identifiers the hub gives it."""

    content: Content
    sha256: str
    blob_id: str
    lfs: bool

    @staticmethod
    def of(name: str, data: bytes | Path) -> ServedFile:
        content = Content.of(data)
        sha256 = hashlib.sha256()
        sha1 = hashlib.sha1(b"blob %d\0" % content.size, usedforsecurity=False)  # as git does
        for chunk in content.chunks(0, content.size):
            sha256.update(chunk)
            sha1.update(chunk)
        lfs = name.lower().endswith(LFS_SUFFIXES) or content.size >= LFS_BYTES
        return ServedFile(content, sha256.hexdigest(), sha1.hexdigest(), lfs)

    def entry(self, path: str) -> dict[str, Any]:
        """The file as the hub's tree listing shows it."""
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": self.content.size,
            "oid": self.blob_id,
        }
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.content.size, "pointerSize": 134}
        return entry


@dataclass(slots=True)
class ServedRepo:
    """A repository.

    Attributes:
        revisions: revision -> path -> file.
        main: the newest revision.
        token: what a gated repository asks for; None for an open one.
    """

    revisions: dict[str, dict[str, ServedFile]] = field(default_factory=dict)
    main: str = ""
    token: str | None = None


class HubServer(LocalServer):
    """A Hugging Face hub with the repositories that were published into it.

    Answers listings of repositories by author, dataset and model information, file trees (paged,
    recursive or not), path information and resolved files with ranges, by branch `main` or by
    revision; errors carry the hub's `X-Error-Code`. Point a client at `server.url`, for example
    through `HfApi(endpoint=server.url)`.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self._repos: dict[tuple[str, str], ServedRepo] = {}
        self._renamed: dict[tuple[str, str], str] = {}

    def publish(
        self,
        repo: str,
        files: Mapping[str, bytes | Path] | Path,
        kind: Literal["datasets", "models"] = "datasets",
        token: str | None = None,
    ) -> str:
        """Make `files` the newest revision of `repo` and return its 40-digit revision.

        Equal files give an equal revision. Earlier revisions stay reachable by theirs.

        Args:
            repo: `namespace/name`.
            files: path in the repository -> content, or a folder. Paths are taken as they are,
                hostile ones too.
            token: when given, the repository is gated and answers only to `Authorization: Bearer
                <token>`.
        """
        if isinstance(files, Path):
            folder = files
            files = {
                str(p.relative_to(folder).as_posix()): p
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        hashed = {name: ServedFile.of(name, data) for name, data in sorted(files.items())}
        listing = json.dumps({name: file.sha256 for name, file in hashed.items()}, sort_keys=True)
        revision = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        entry = self._repos.setdefault((kind, repo), ServedRepo())
        entry.revisions[revision] = hashed
        entry.main, entry.token = revision, token
        return revision

    def rename(self, old: str, new: str, kind: Literal["datasets", "models"] = "datasets") -> None:
        """Give a repository another name; the old one answers with a permanent redirect from now
        on.
        """
        self._repos[kind, new] = self._repos.pop((kind, old))
        self._renamed[kind, old] = new

    def reply(self, request: Request) -> Reply:
        if match := re.fullmatch(
            r"/api/(datasets|models)/([^/]+/[^/]+)"
            r"(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?",
            request.path,
        ):
            kind, name, action, revision, rest = match.groups()
            return self._api(
                request, kind, name, action or "revision", revision or "main", rest or ""
            )
        if match := re.fullmatch(r"/api/(datasets|models)", request.path):
            return self._listing(request, match[1])
        if match := re.fullmatch(r"(/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path):
            kind = "datasets" if match[1] else "models"
            return self._resolve(request, kind, match[2], match[3], match[4])
        return Reply.json(404, {"error": f"no route {request.path}"})

    def _api(
        self, request: Request, kind: str, name: str, action: str, revision: str, rest: str
    ) -> Reply:
        found = self._find(request, kind, name, revision)
        if isinstance(found, Reply):
            return found
        sha, files = found
        if action == "tree":
            return self._tree(request, files, rest.strip("/"))
        if action == "paths-info":
            wanted = _paths_of(request)
            return Reply.json(200, [files[path].entry(path) for path in wanted if path in files])
        siblings = [{"rfilename": path} for path in files]
        return Reply.json(
            200,
            {
                "_id": sha[:24],
                "id": name,
                "sha": sha,
                "private": False,
                "gated": False,
                "downloads": 0,
                "likes": 0,
            }
            | {"lastModified": "2025-01-01T00:00:00.000Z", "tags": [], "siblings": siblings},
        )

    def _listing(self, request: Request, kind: str) -> Reply:
        """The open repositories of an author, or all of them, a page at a time."""
        author = request.query.get("author")
        names = [
            name
            for (of_kind, name), repo in self._repos.items()
            if of_kind == kind and repo.token is None and author in (None, name.partition("/")[0])
        ]
        page, headers = self._page(request, [{"id": name, "private": False} for name in names])
        return Reply.json(200, page, headers)

    def _page(self, request: Request, entries: list[Any]) -> tuple[list[Any], dict[str, str]]:
        """The entries that a request asks for, and a link to those behind them."""
        start = int(request.query.get("cursor", "0"))
        headers = {}
        if start + LIST_PAGE < len(entries):
            query = urlencode({**request.query, "cursor": str(start + LIST_PAGE)})
            headers["Link"] = f'<{self.url}{quote(request.path)}?{query}>; rel="next"'
        return entries[start : start + LIST_PAGE], headers

    def _tree(self, request: Request, files: dict[str, ServedFile], folder: str) -> Reply:
        prefix = f"{folder}/" if folder else ""
        recursive = request.query.get("recursive", "").lower() in ("1", "true")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in files.items():
            if not path.startswith(prefix):
                continue
            parents = path[len(prefix) :].split("/")[:-1]
            for depth in range(1, (len(parents) if recursive else min(len(parents), 1)) + 1):
                name = prefix + "/".join(parents[:depth])
                oid = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
                entries.setdefault(name, {"type": "directory", "path": name, "size": 0, "oid": oid})
            if recursive or not parents:
                entries[path] = file.entry(path)
        if folder and not entries:
            return _hub_error(404, "EntryNotFound", f"{folder} does not exist")
        page, headers = self._page(request, list(entries.values()))
        return Reply.json(200, page, headers)

    def _resolve(self, request: Request, kind: str, name: str, revision: str, path: str) -> Reply:
        found = self._find(request, kind, name, revision)
        if isinstance(found, Reply):
            return found
        sha, files = found
        if path not in files:
            return _hub_error(
                404, "EntryNotFound", f"{path} is not in {name}", {"X-Repo-Commit": sha}
            )
        file = files[path]
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": sha,
            "ETag": f'"{file.sha256 if file.lfs else file.blob_id}"',
        }
        if file.lfs:
            headers |= {
                "X-Linked-ETag": f'"{file.sha256}"',
                "X-Linked-Size": str(file.content.size),
            }
        return Reply(200, file.content, headers, ranges=True)

    def _find(
        self, request: Request, kind: str, name: str, revision: str
    ) -> tuple[str, dict[str, ServedFile]] | Reply:
        if (kind, name) in self._renamed:
            moved = quote(request.path.replace(name, self._renamed[kind, name], 1))
            query = f"?{urlencode(request.query)}" if request.query else ""
            return Reply(307, Content.of(b""), {"Location": moved + query})
        repo = self._repos.get((kind, name))
        if repo is None:
            return _hub_error(404, "RepoNotFound", "Repository not found")
        if (
            repo.token is not None
            and request.headers.get("Authorization") != f"Bearer {repo.token}"
        ):
            return _hub_error(
                401, "GatedRepo", f"Access to {name} is restricted; you must be authenticated"
            )
        sha = repo.main if revision == "main" else revision
        if sha not in repo.revisions:
            return _hub_error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.revisions[sha]


def _hub_error(
    status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Reply:
    return Reply.json(
        status,
        {"error": message},
        {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})},
    )


def _paths_of(request: Request) -> Sequence[str]:
    """The `paths` that a path-information request asks about: a form or JSON."""
    if "json" in request.headers.get("Content-Type", ""):
        return list(json.loads(request.body).get("paths", []))
    return parse_qs(request.body.decode()).get("paths", [])
