"""One of the two LLaVA collections: what the mixture wants of it, what is finished, what to report.

A finished annotation file is recorded with the hashes of the hub's files that it was made from, and
is made again only when these change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from assets.collections.mixtures import read_mixture
from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, scratch
from assets.fetching.errors import AnnotationError
from assets.fetching.hub import HubFile, HubRepo
from assets.records.product_files import read_list, write_list
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.receipts import FileEntry
from training.formats.storage import Storage

# Annotation file of the mixture -> the hub's files that it is made from; none where there are none.
Inputs = dict[str, list[HubFile]]


@dataclass(slots=True)
class CollectionReport:
    """What was collected.

    Attributes:
        version: of the content: hashes of the files that every annotation file was made from.
        origins: repository -> commit.
        counts: rows, images or videos, and what is wrong with them, over the whole collection.
        table: one row for each annotation file of the mixture, with its own counts.
        files: annotation files, lists of media, and the record, relative to the root.
    """

    version: str
    origins: dict[str, str]
    counts: dict[str, int]
    table: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class Collection:
    """One collection, while it is brought up to date.

    Attributes:
        name: of its folder below the root, and in the mixture.
        wanted: the annotation files that the mixture names, sorted.
        scratch: folder for unfinished work; it survives a kill.
        damaged: files that were set aside before, relative to the root.
        lacks: annotation file -> what the hub does not have for it, where that is not the file.
    """

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        repo: HubRepo,
        name: str,
        log: Callable[[str], None],
        damaged: Container[str] = (),
    ) -> None:
        self.damaged = damaged
        self.storage, self.settings, self.repo = storage, settings, repo
        self.name, self.log = name, log
        entries = read_mixture(settings.collections.mixtures, settings.collections.skip)
        self.wanted = sorted({entry.annotation for entry in entries if entry.collection == name})
        self.scratch = scratch(storage, name)
        self.lacks: dict[str, str] = {}  # annotation file -> what the hub has not, if not the file
        self.disk = DiskGuard(self.scratch, settings.download.min_free_bytes)
        path = layout.collected(name)
        self._record: dict[str, Any] = storage.read_json(path) if storage.exists(path) else {}

    def unfinished(self, inputs: Inputs) -> Inputs:
        """Those of `inputs` that have to be made. What the mixture no longer names is left out of
        the record.

        Raises:
            AnnotationError: the hub has nothing for an annotation file, and the settings require
                all of them.
        """
        missing = [name for name, files in inputs.items() if not files]
        if missing:
            named = (f"{n} ({self.lacks[n]})" if n in self.lacks else n for n in missing)
            share = f"{len(missing)} of {len(inputs)} annotation files: {', '.join(named)}"
            text = f"{self.repo} has nothing for {share}"
            if self.settings.collections.require_all:
                raise AnnotationError(
                    f"{text}; nothing was fetched. Name them in collections.skip, change "
                    "collections.mixtures, or unset collections.require_all"
                )
            self.log(f"{text}; they are left out (collections.skip says that this is meant)")
        self._record = {name: entry for name, entry in self._record.items() if inputs.get(name)}
        return {
            name: files
            for name, files in inputs.items()
            if files and not self._is_finished(name, files)
        }

    def _is_finished(self, name: str, files: list[HubFile]) -> bool:
        entry = self._record.get(name, {})
        return (
            self.storage.exists(layout.collection_annotations(self.name, name))
            and entry.get("files") == [file.checksum for file in files]
            and entry["whole"]
            and self.storage.exists(self._media(entry["media"]))
            and not (self.damaged and self._lost_media(entry["media"]))
        )

    def _lost_media(self, group: str) -> bool:
        """Whether a file of a group was set aside."""
        return any(entry.path in self.damaged for entry in self.media(group))

    def _media(self, group: str) -> str:
        return layout.collection_media(self.name, group)

    def media(self, group: str) -> list[FileEntry]:
        """The image or video files of a group, as they were when they were recorded; none where it
        has no list.
        """
        name = self._media(group)
        return read_list(self.storage, name) if self.storage.exists(name) else []

    def write_media(self, group: str, files: Iterable[FileEntry]) -> None:
        """Record the image or video files of a group."""
        write_list(self.storage, self._media(group), files)

    def finish(
        self,
        name: str,
        files: list[HubFile],
        counts: dict[str, int],
        media: str,
        whole: bool = True,
    ) -> None:
        """Record an annotation file. The next run tries one again that is not `whole`, because an
        archive could not be read.

        Args:
            media: group of its images or videos, whose list is written before.
        """
        checksums = [file.checksum for file in files]
        entry = {"files": checksums, "counts": counts, "media": media, "whole": whole}
        self._record[name] = entry
        self.storage.write_json(layout.collected(self.name), self._record)
        self.log(f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items())}")

    def report(self, inputs: Inputs) -> CollectionReport:
        """What the collection holds now."""
        table, counts = [], Counter[str]()
        for name, files in inputs.items():
            found = self._record.get(name, {}).get("counts", {})
            counts.update(found)
            state = "ready" if files else self.lacks.get(name, "not in the repository")
            table.append({"annotation": name, "state": state, **found})
        counts["annotation files"] = sum(bool(files) for files in inputs.values())
        counts["missing"] = sum(not files for files in inputs.values())
        version = data_version(
            {name: (entry["files"], entry["counts"]) for name, entry in self._record.items()}
        )
        lists = {self._media(entry["media"]) for entry in self._record.values()}
        annotations = [layout.collection_annotations(self.name, name) for name in self._record]
        return CollectionReport(
            version,
            {self.repo.repo: self.repo.commit},
            dict(counts),
            table,
            files=sorted([*annotations, *lists, layout.collected(self.name)]),
        )
