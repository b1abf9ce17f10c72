"""From a fetched file to a published video, or to a file in quarantine."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from assets.annotations.catalogue import Catalogue
from assets.fetching.errors import TransferError
from assets.fetching.options import Download
from assets.fetching.probe import InvalidVideo, ProbePool, VideoFacts, check_video
from assets.fetching.retry import item_error
from assets.fetching.stated_length import states_its_length
from assets.sources.base import NOT_ASKED, OK, PENDING, Fetched, VideoRow, composed
from training.formats import layout
from training.formats.hashing import hash_file
from training.formats.receipts import set_aside
from training.formats.storage import Storage


class Publisher:
    """Gives verified videos of one source and part their final names, and records them.

    Many threads may publish at once.

    Attributes:
        fetched, adopted: videos published, and those that were found in place.
        fetched_bytes: of the videos published.
    """

    def __init__(
        self,
        storage: Storage,
        catalogue: Catalogue,
        prober: ProbePool,
        limits: Download,
        log: Callable[[str], None],
    ) -> None:
        self.storage, self.catalogue, self.prober = storage, catalogue, prober
        self.limits, self.log, self.source = limits, log, catalogue.source
        self.fetched = self.adopted = self.fetched_bytes = 0
        self._lock = threading.Lock()

    def match_files(self) -> None:
        """Make rows and files agree: a finished file whose row was lost counts, a row whose file is
        gone does not.
        """
        folder = f"{layout.VIDEOS}/{self.source}"
        files = {
            composed(name[len(folder) + 1 :].rsplit(".", 1)[0]): name
            for name in self.storage.list(folder)
        }
        for row in self.catalogue.rows():
            name = files.get(row.id)
            if row.status == OK and (name is None or name != row.path or self._size_differs(row)):
                self.log(f"{row.video}: {row.path} is gone or changed; the video is fetched again")
                self.catalogue.update(
                    row.id, status=PENDING, reason="file_gone", message=None, path=None
                )
                if name is not None and name == row.path:
                    self._set_aside(row, name, "another size than recorded")
            elif row.status not in (OK, NOT_ASKED) and name is not None:
                try:
                    path = self.storage.local(name)
                    facts = self.prober.probe(path)
                    check_video(facts, self.limits, row.expected_duration)
                    size, sha256 = path.stat().st_size, hash_file(path)
                except InvalidVideo as error:
                    self._set_aside(row, name, f"{error.reason}: {error}")
                    continue
                except OSError as error:
                    if item_error(error) is None:
                        raise
                    self.log(f"{row.video}: {name} cannot be read ({error.strerror})")
                    continue
                self.adopted += 1
                found = Fetched(path, row.location or "found in place")
                self._record(row, name, size, sha256, facts, found, 0)

    def _set_aside(self, row: VideoRow, name: str, fault: str) -> None:
        where = set_aside(self.storage, name)
        self.log(f"{row.video}: {fault}; {name} is now {where}, and the video is fetched again")

    def _size_differs(self, row: VideoRow) -> bool:
        return (
            self.storage.is_local and os.path.getsize(self.storage.path(row.path or "")) != row.size
        )

    def publish(self, row: VideoRow, fetched: Fetched, tries: int) -> None:
        """Probe a fetched file, then give it its final name or put it into quarantine.

        Args:
            tries: of this run, to fetch this video; after the last one a bad file is kept.

        Raises:
            TransferError: it is not the video; `transient` when another transfer may help.
        """
        try:
            facts = self.prober.probe(fetched.path)
            check_video(facts, self.limits, row.expected_duration or fetched.duration)
        except InvalidVideo as error:
            cut = error.reason == "duration_differs" and not fetched.length_stated
            hopeful = (error.another_download_may_help and not fetched.checked) or cut
            last = not hopeful or tries >= self.limits.attempts
            if last:
                self._quarantine(row, fetched.path, error)
            shutil.rmtree(fetched.path.parent, ignore_errors=True)
            raise TransferError(
                "transient" if hopeful else "permanent", error.reason, str(error)
            ) from error
        sha256, size = fetched.sha256 or hash_file(fetched.path), fetched.path.stat().st_size
        unmeasured = not (
            fetched.length_stated
            or fetched.duration
            or row.expected_duration
            or states_its_length(fetched.path, facts.suffix)
        )
        name = f"{layout.VIDEOS}/{self.source}/{row.id}{facts.suffix}"
        self.storage.remove_unfinished(name)  # a part is one process's at a time
        if row.status == OK and row.path and self.storage.exists(row.path):
            where = set_aside(self.storage, row.path)
            self.log(
                f"{row.video}: its file is another one at the source now; the old one: {where}"
            )
        with self.storage.writing(name) as temporary:
            shutil.move(fetched.path, temporary)
        self._record(row, name, size, sha256, facts, fetched, tries, unmeasured)
        with self._lock:
            self.fetched += 1
            self.fetched_bytes += size
        self.storage.remove(layout.quarantined_video(self.source, row.id))

    def _record(
        self,
        row: VideoRow,
        name: str,
        size: int,
        sha256: str,
        facts: VideoFacts,
        fetched: Fetched,
        tries: int,
        unmeasured: bool = False,
    ) -> None:
        self.catalogue.update(
            row.id,
            status=OK,
            reason=None,
            message=None,
            attempts=row.attempts + tries,
            next_try_at=None,
            location=fetched.location,
            path=name,
            size=size,
            sha256=sha256,
            duration=round(facts.duration, 3),
            packets=facts.frames,
            codec=facts.codec,
            width=facts.width,
            height=facts.height,
            damaged=facts.damaged,
            unmeasured=unmeasured,
            format=fetched.format,
            tool=fetched.tool,
        )

    def _quarantine(self, row: VideoRow, path: Path, error: InvalidVideo) -> None:
        """Keep a bad file where a person can look at it."""
        with self.storage.writing(layout.quarantined_video(self.source, row.id)) as temporary:
            shutil.move(path, temporary)
        self.log(f"{row.video}: set aside, {error.reason}: {error}")
