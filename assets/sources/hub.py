"""Videos of a Hugging Face dataset: loose files, members of zip archives, members of tar archives.

Of a zip only the wanted members are transferred: its directory is read first, then each member by
range. A tar has no directory and is streamed through once. What any part of the source wants is
staged on the way, so that no part streams the tar again.
"""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from assets.fetching.archives import ArchiveError, extract_zip_member, zip_members
from assets.fetching.disk import DiskGuard, scratch
from assets.fetching.errors import OperatorError, TransferError
from assets.sources.base import (
    PERMANENT,
    TRANSIENT,
    VIDEO_SUFFIXES,
    FetchContext,
    Fetched,
    Outcome,
    Source,
    VideoRow,
    match_stems,
)
from assets.sources.findings import OK, Finding
from training.formats import layout

if TYPE_CHECKING:
    from assets.fetching.hub import HubFile, HubRepo

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


class HubSource(Source):
    """Files of a Hugging Face dataset repository, loose or inside archives."""

    kind: Literal["hub"]
    repo: str
    revision: str = "main"
    archives: list[str] = Field(
        default=[], description="glob patterns of zip / tar.gz files that hold the videos"
    )
    files: list[str] = Field(default=[], description="glob patterns of loose video files")

    def fetcher(self, context: FetchContext) -> HubFetcher:
        return HubFetcher(self, context)

    def findings(self, name: str) -> Iterator[Finding]:
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


class HubFetcher:
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

    def prepare(self, rows: list[VideoRow]) -> dict[str, Outcome]:
        if not rows:
            return {}
        self.repo = self._pinned_repo()
        listed = self.repo.files([*self.source.files, *self.source.archives])
        loose = [file for file in listed if file.name.lower().endswith(VIDEO_SUFFIXES)]
        zips = [file for file in listed if file.name.lower().endswith(".zip")]
        tars = [file for file in listed if file.name.lower().endswith(TAR_SUFFIXES)]
        if not (loose or zips or tars):
            raise OperatorError(
                f"{self.source.repo}@{self.repo.commit}: no video and no archive matches "
                f"{', '.join([*self.source.files, *self.source.archives]) or '(nothing)'} "
                f"(sources.{self.name})"
            )
        found: dict[str, list[Place]] = defaultdict(list)
        self._match(rows, {file.path: Place(file) for file in loose}, found)
        problems = self._search_zips(zips, rows, found) + self._search_tars(tars, rows, found)
        for problem in problems:
            self.log(f"{self.source.repo}: archive left out, {problem.reason}: {problem.message}")
        return self._outcomes(rows, found, problems)

    def host(self, row: VideoRow) -> str:
        return str(self.hub.api.endpoint)

    def fetch(self, row: VideoRow, folder: Path, watch: Callable[[int], None]) -> Fetched:
        from assets.fetching.tar_members import forget_staged

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

    def _pinned_repo(self) -> HubRepo:
        """The repository at a commit that is resolved once for the source, so that all parts come
        from the same one.
        """
        name = layout.catalogue(self.name, "revision.json")
        asked = {"repo": self.source.repo, "revision": self.source.revision}
        if self.storage.exists(name):
            known = self.storage.read_json(name)
            if {key: known.get(key) for key in asked} == asked:
                return self.hub.repo_at(self.source.repo, known["commit"])
        repo = self.hub.repo(self.source.repo, self.source.revision)
        self.storage.write_json(name, {**asked, "commit": repo.commit})
        self.log(f"{self.source.repo}: {self.source.revision} is {repo.commit}")
        return repo

    def _search_zips(
        self, zips: list[HubFile], rows: list[VideoRow], found: dict[str, list[Place]]
    ) -> list[Outcome]:
        """Look for the rows in all zips; returns an outcome for each zip that was left out."""
        problems = []
        for file in zips:
            try:
                members = zip_members(self._zip(file))
            except ArchiveError as error:
                problems.append(Outcome(PERMANENT, error.reason, f"{file.path}: {error}"))
            except zipfile.BadZipFile as error:
                problems.append(Outcome(PERMANENT, "archive_damaged", f"{file.path}: {error}"))
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
        stems: dict[str, list[str]] = defaultdict(list)
        for path in places:
            name = PurePosixPath(path).name
            if name.lower().endswith(VIDEO_SUFFIXES):
                stems[name.rsplit(".", 1)[0]].append(path)
        for identifier, paths in match_stems(rows, stems).items():
            if paths:
                found[identifier] += [places[path] for path in paths]

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
        opened = getattr(self._local, "zips", None)
        if opened is None:
            opened = self._local.zips = {}
        if file.path not in opened:
            opened[file.path] = zipfile.ZipFile(io.BufferedReader(self.repo.open(file), 1 << 20))
        return opened[file.path]

    def _stage(self, file: HubFile) -> dict[str, Path]:
        """Stage those members of a tar that any part of the source wants."""
        from assets.fetching.tar_members import stage_tar

        wanted = self.all_ids()

        def is_wanted(name: str) -> bool:
            path = PurePosixPath(name)
            steps = path.with_suffix("").parts
            return path.suffix.lower() in VIDEO_SUFFIXES and any(
                "/".join(steps[i:]) in wanted for i in range(len(steps))
            )

        folder = scratch(self.storage, "staged", self.name, file.checksum)
        return stage_tar(self.repo, file, folder, is_wanted, self.disk, self.log)
