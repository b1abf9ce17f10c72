"""Videos of a Hugging Face dataset: loose files, members of zip archives, members of tar archives.

Of a zip only the wanted members are transferred: its directory is read first, then each member by
range. A tar has no directory and is streamed through once. What any part of the source wants is
staged on the way, so that no part streams the tar again.
"""

from __future__ import annotations

import io
import os
import re
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from assets.fetching.archives import extract_zip_member, zip_members
from assets.fetching.compression import ArchiveError
from assets.fetching.disk import DiskGuard, scratch
from assets.fetching.errors import OperatorError, TransferError
from assets.sources.base import (
    PERMANENT,
    TRANSIENT,
    VIDEO_SUFFIXES,
    FetchContext,
    Fetched,
    Fetcher,
    Outcome,
    Source,
    VideoFiles,
    VideoRow,
)
from assets.sources.findings import OK, Finding
from training.formats import layout
from training.formats.storage import Storage

if TYPE_CHECKING:
    from assets.fetching.hub import HubFile, HubRepo

FULL_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(Source):
    """Files of a Hugging Face dataset repository, loose or inside archives."""

    kind: Literal["hub"]
    repo: str = Field(description="a dataset on the hub: namespace/name")
    revision: str = Field(
        default="main",
        description="branch, tag or commit; a commit is never compared with a newer one",
    )
    archives: list[str] = Field(
        default=[], description="glob patterns of zip / tar.gz files that hold the videos"
    )
    files: list[str] = Field(default=[], description="glob patterns of loose video files")

    def fetcher(self, context: FetchContext) -> HubFetcher:
        return HubFetcher(self, context)

    def findings(self, name: str, asked: Collection[str]) -> Iterator[Finding]:
        yield Finding(f"source {name}", OK, f"{self.repo} at {self.revision}, on the hub")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a video lies: a loose file, a member of a zip, or a staged member of a tar."""

    file: HubFile
    member: zipfile.ZipInfo | None = None
    staged: Path | None = None

    @property
    def same(self) -> tuple[object, ...]:
        """Equal for two copies of one video."""
        if self.member is not None:
            return ("zip", self.member.file_size, self.member.CRC)
        return ("staged", self.staged) if self.staged else ("loose", self.file.checksum)


class HubFetcher(Fetcher):
    """Finds and fetches the videos of one dataset repository."""

    # Plain files of a service that is made for it; what it asks for in a 429 is still honoured.
    min_interval_s = 0.0

    def __init__(self, source: HubSource, context: FetchContext) -> None:
        from assets.fetching.hub import Hub

        self.source, self.name = source, context.source
        self.storage, self.all_ids, self.log = context.storage, context.all_ids, context.log
        self.hub = Hub(context.hub_endpoint, context.download, context.log)
        self.places: dict[str, Place] = {}
        self.disk = DiskGuard(scratch(context.storage), context.download.min_free_bytes)
        self._local = threading.local()
        self._checksums: dict[str, dict[str, str]] = {}
        self._incomplete: list[tuple[str, ArchiveError]] = []

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        if not rows:
            return {}
        loose, zips, tars = self._listing
        if not (loose or zips or tars or self._incomplete):
            raise OperatorError(
                f"{self.source.repo}@{self.repo.commit}: no video and no archive matches "
                f"{', '.join([*self.source.files, *self.source.archives]) or '(nothing)'} "
                f"(sources.{self.name})"
            )
        found: dict[str, list[Place]] = defaultdict(list)
        self._match(rows, {file.path: Place(file) for file in loose}, found)
        problems = [Outcome(PERMANENT, error.reason, str(error)) for _, error in self._incomplete]
        problems += self._search_zips(zips, tars, rows, found)
        problems += self._search_tars(tars, rows, found)
        for problem in problems:
            self.log(f"{self.source.repo}: archive left out, {problem.reason}: {problem.message}")
        return self._outcomes(rows, found, problems)

    def host(self, row: VideoRow) -> str:
        return str(self.hub.api.endpoint)

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        from assets.fetching.archive_members import forget_staged

        place = self.places[row.id]
        target = folder / "file"
        where = f"{self.source.repo}@{self.repo.commit}:{place.file.path}"
        if place.staged is not None:
            if place.staged.exists():
                os.replace(place.staged, target)
            elif not target.exists():
                forget_staged(place.staged.parent)
                raise TransferError(
                    "transient",
                    "staging_lost",
                    f"{place.staged} is gone; the archive is read again",
                )
            return Fetched(target, f"{where}:{place.staged.name}", checked=True)
        if place.member is None:
            self.disk.check(place.file.size)
            self.repo.download(place.file, target, tries=1)
            known = place.file.checksum if len(place.file.checksum) == 64 else None
            return Fetched(target, where, checked=True, sha256=known)
        archive = self._zip(place.file)
        try:
            extract_zip_member(archive, place.member, target)
        except ArchiveError as error:
            raise TransferError("permanent", error.reason, str(error)) from error
        watch(place.member.file_size)
        return Fetched(target, f"{where}:{place.member.filename}", checked=True)

    @cached_property
    def repo(self) -> HubRepo:
        """The repository at the commit that the revision is now: resolved once a run, recorded, and
        written into the location of each video.
        """
        if FULL_COMMIT.fullmatch(self.source.revision):
            return self.hub.repo_at(self.source.repo, self.source.revision)
        repo = self.hub.repo(self.source.repo, self.source.revision)
        if repo.commit != self._recorded_commit():
            asked = {"repo": self.source.repo, "revision": self.source.revision}
            name = layout.catalogue(self.name, "revision.json")
            self.storage.write_json(name, {**asked, "commit": repo.commit})
            self.log(f"{self.source.repo}: {self.source.revision} is {repo.commit}")
        return repo

    def _recorded_commit(self) -> str | None:
        """The commit that the revision was when it was looked up last."""
        name = layout.catalogue(self.name, "revision.json")
        known = self.storage.read_json(name) if self.storage.exists(name) else {}
        asked = (self.source.repo, self.source.revision)
        return known.get("commit") if (known.get("repo"), known.get("revision")) == asked else None

    def _commit_now(self) -> str | None:
        """The commit of the revision; the recorded one where the hub does not say."""
        try:
            return self.repo.commit
        except (TransferError, OperatorError):
            return self._recorded_commit()

    @cached_property
    def _listing(self) -> tuple[list[HubFile], list[HubFile], list[HubFile]]:
        """The repository's loose videos, zips and tars."""
        from assets.fetching.split_files import is_archive, joined

        whole, self._incomplete = joined(self.repo.files())
        patterns = [*self.source.files, *self.source.archives]
        listed = [file for file in whole if _is_named(file, patterns)]
        archives = [file for file in listed if is_archive(file.name)]
        zips = [file for file in archives if file.name.lower().endswith(".zip")]
        return (
            [file for file in listed if file.name.lower().endswith(VIDEO_SUFFIXES)],
            zips,
            [file for file in archives if file not in zips],
        )

    def facts(self) -> Mapping[str, Callable[[VideoRow], Any]]:
        """`place`: the repository, its commit, and which of its files hold videos."""
        return {"place": lambda row: self._place}

    @cached_property
    def _place(self) -> list[Any]:
        patterns = [sorted(self.source.files), sorted(self.source.archives)]
        return [self.source.repo, self._commit_now(), *patterns, self.hub.endpoint]

    def changed(self, rows: list[VideoRow]) -> tuple[list[VideoRow], dict[str, str]]:
        """What came from another commit is compared with the file as it is now: a loose file by its
        hash, a member of a zip by size and CRC, a member of a tar by the hash of the tar.

        What is no longer there, or cannot be looked up, is kept.
        """
        prefix = f"{self.source.repo}@"
        earlier = [row for row in rows if (row.location or "").startswith(prefix)]
        commit = self._commit_now() if earlier else None
        here = f"{prefix}{commit}:"
        earlier = [row for row in earlier if not (row.location or "").startswith(here)]
        if not earlier or commit is None:
            return [], {}
        try:
            return self._compared(earlier, here)
        except (TransferError, OperatorError) as error:
            self.log(f"{self.repo}: files that are there were not compared with it ({error})")
            return [], {}

    def _compared(self, rows: list[VideoRow], here: str) -> tuple[list[VideoRow], dict[str, str]]:
        """As `changed`, for videos of earlier commits; `here` begins the location of the others."""
        files = {file.path: file for group in self._listing for file in group}
        changed, same = [], {}
        for row in rows:
            _, _, place = (row.location or "").partition("@")
            commit, _, inside = place.partition(":")
            path, _, member = inside.partition(":")
            file = files.get(path)
            if file is None:
                continue
            if self._is_same(row, file, member, commit):
                same[row.id] = f"{here}{inside}"
            else:
                changed.append(row)
        return changed, same

    def _is_same(self, row: VideoRow, file: HubFile, member: str, commit: str) -> bool:
        """Whether a video that is there is what a file of the repository holds now."""
        if file.checksum == self._earlier(commit).get(file.path):
            return True
        if not member:
            return file.checksum == row.sha256
        if not file.name.lower().endswith(".zip"):
            return False
        try:
            found = self._zip(file).getinfo(member)
        except (KeyError, ArchiveError, zipfile.BadZipFile):
            return True  # what is there stays
        return found.file_size == row.size and _crc(self.storage, row.path or "") == found.CRC

    def _earlier(self, commit: str) -> dict[str, str]:
        """Path -> checksum of the repository's files at an earlier commit."""
        if commit not in self._checksums:
            from assets.fetching.split_files import joined

            files, _ = joined(self.hub.repo_at(self.source.repo, commit).files())
            self._checksums[commit] = {file.path: file.checksum for file in files}
        return self._checksums[commit]

    def _search_zips(
        self,
        zips: list[HubFile],
        tars: list[HubFile],
        rows: list[VideoRow],
        found: dict[str, list[Place]],
    ) -> list[Outcome]:
        """Look for the rows in all zips; returns an outcome for each zip that was left out. What
        has no directory at its end is no zip, whatever its name says: it is added to `tars`.
        """
        problems = []
        for file in zips:
            try:
                members = zip_members(self._zip(file))
            except ArchiveError as error:
                problems.append(Outcome(PERMANENT, error.reason, f"{file.path}: {error}"))
            except zipfile.BadZipFile:
                tars.append(file)
            except TransferError as error:
                problems.append(Outcome(error.status, error.reason, f"{file.path}: {error}"))
            else:
                places = {member.filename: Place(file, member=member) for member in members}
                self._match(rows, places, found)
        return problems

    def _search_tars(
        self, tars: list[HubFile], rows: list[VideoRow], found: dict[str, list[Place]]
    ) -> list[Outcome]:
        """As `_search_zips`, for tars. Each is streamed, so it ends when all rows are found."""
        problems = []
        for file in tars:
            if all(row.id in found for row in rows):
                break
            try:
                staged = self._stage(file)
            except TransferError as error:
                problems.append(Outcome(error.status, error.reason, str(error)))
            else:
                places = {name: Place(file, staged=path) for name, path in staged.items()}
                self._match(rows, places, found)
        return problems

    def _match(
        self, rows: list[VideoRow], places: dict[str, Place], found: dict[str, list[Place]]
    ) -> None:
        files = VideoFiles(places)
        for row in rows:
            if paths := files.that_may_be(row.id):
                found[row.id] += [places[path] for path in paths]

    def _outcomes(
        self, rows: list[VideoRow], found: dict[str, list[Place]], problems: list[Outcome]
    ) -> dict[str, Outcome]:
        """Remember where each row was found. What was not found may be in an archive that was left
        out: then it gets that archive's outcome.
        """
        nowhere = Outcome(PERMANENT, "not_in_repo", str(self.repo))
        if problems:
            nowhere = next(
                (problem for problem in problems if problem.status == TRANSIENT), problems[0]
            )
        outcomes = {}
        for row in rows:
            places = found.get(row.id, [])
            if not places:
                outcomes[row.id] = nowhere
            elif len({place.same for place in places}) > 1:
                names = ", ".join(p.member.filename if p.member else p.file.path for p in places)
                outcomes[row.id] = Outcome(
                    PERMANENT, "ambiguous", f"several files could be it: {names}"[:500]
                )
            else:
                self.places[row.id] = places[0]
        return outcomes

    def _zip(self, file: HubFile) -> zipfile.ZipFile:
        """A zip opened over ranges, one for each thread."""
        from assets.fetching.split_files import opened

        zips = getattr(self._local, "zips", None)
        if zips is None:
            zips = self._local.zips = {}
        if file.path not in zips:
            zips[file.path] = zipfile.ZipFile(io.BufferedReader(opened(self.repo, file), 1 << 20))
        return zips[file.path]  # type: ignore[no-any-return]

    def _stage(self, file: HubFile) -> dict[str, Path]:
        """Stage those members of a tar that any part of the source wants."""
        from assets.fetching.archive_members import stage_archive

        wanted = self.all_ids()

        def is_wanted(name: str) -> bool:
            path = PurePosixPath(name)
            steps = path.with_suffix("").parts
            return path.suffix.lower() in VIDEO_SUFFIXES and any(
                "/".join(steps[i:]) in wanted for i in range(len(steps))
            )

        folder = scratch(self.storage, "staged", self.name, file.checksum)
        return stage_archive(self.repo, file, folder, is_wanted, self.disk, self.log)


def _is_named(file: HubFile, patterns: list[str]) -> bool:
    """Whether a pattern of the settings is meant for a file: by its path, or by that of a part."""
    paths = [file.path, *(part.path for part in getattr(file, "parts", ()))]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


def _crc(storage: Storage, name: str) -> int:
    """CRC-32 of a file, as a zip states it."""
    crc = 0
    with storage.open(name) as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc
