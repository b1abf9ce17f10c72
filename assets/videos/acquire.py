"""One source's videos of one part: fetched, looked into, published, and every one of them accounted
for.

A video goes through a folder of its own: fetch, examine, compare, hash, rename to its final name,
then one line in the catalogue. A kill at any moment costs at most the part of a file that was not
written yet.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from assets.annotations.catalogue import Catalogue, read_catalogue, snapshot_name
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, clear, scratch
from assets.fetching.errors import CoverageError, DiskFullError, TransferError
from assets.fetching.probe import InvalidVideo, Prober, VideoFacts, check
from assets.fetching.retry import backoff, raise_if_disk
from assets.sources.base import (
    EXHAUSTED,
    MANUAL_MISSING,
    NEEDS_OPERATOR,
    OK,
    PENDING,
    PERMANENT,
    TRANSIENT,
    FetchContext,
    Fetched,
    VideoRow,
)
from assets.videos.pacing import Pace, Queue
from assets.videos.report import AcquireReport, coverage_threshold, report_name, summarize, too_few
from training.formats import layout
from training.formats.hashing import hash_file, stable_hash
from training.formats.storage import Storage
from training.progress import Progress

TRIED_AGAIN = (PENDING, TRANSIENT, EXHAUSTED, NEEDS_OPERATOR, MANUAL_MISSING)
PAUSING = ("rate_limited", "bot_check")  # the host speaks about us, not about one video
DAMAGE = ("truncated", "damaged", "unreadable", "empty")  # another transfer may give a sound file


def acquire_part(
    storage: Storage, settings: Settings, source: str, part: str, log: Callable[[str], None]
) -> AcquireReport:
    """Get all videos of one source and part that can be had.

    What a single video suffers is a row in the catalogue. Rows that failed in passing are tried
    again by the next call; finished ones are never fetched again. The report is also written beside
    the catalogue.

    Raises:
        OperatorError: the disk is full, a tool, a token or a decision is missing, another process
            does the same, or (CoverageError) fewer videos are present than the settings ask for.
        FileNotFoundError: the source and part are not catalogued.
        ValueError: the settings have no such source.
    """
    if source not in settings.sources:
        raise ValueError(
            f"there is no source {source!r} in the settings; they have "
            f"{', '.join(settings.sources)}"
        )
    read_catalogue(storage, source, part)
    with Catalogue(storage, source, part) as catalogue, Prober() as prober:
        work = _Acquisition(storage, settings, catalogue, prober, log)
        work.run()
        catalogue.compact()
        report = work.report()
    storage.write_json(report_name(source, part), asdict(report))
    log(
        f"{source}, {part}: {report.counts.get(OK, 0):,} of {report.counts['expected']:,} videos, "
        f"{report.hours:.1f} h, {report.bytes / 1e9:.2f} GB; {report.lost_rows:,} question-answer "
        "pairs lost"
    )
    for note in report.notes:
        log(note)
    if report.coverage < coverage_threshold(settings, source):
        raise CoverageError(too_few(report, coverage_threshold(settings, source)))
    return report


class _Acquisition:
    """The work on one source and part: some threads fetch, as many look into what was fetched."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        catalogue: Catalogue,
        prober: Prober,
        log: Callable[[str], None],
    ) -> None:
        self.storage, self.settings, self.limits = storage, settings, settings.download
        self.catalogue, self.prober, self.log = catalogue, prober, log
        self.source, self.part = catalogue.source, catalogue.part
        self.context = FetchContext(
            storage,
            self.source,
            self.part,
            settings.download,
            settings.hub_endpoint,
            lambda: _all_ids(storage, self.source),
            log,
        )
        self.fetcher = settings.sources[self.source].fetcher(self.context)
        self.pace = Pace(self.fetcher.min_interval_s, self.limits.breaker)
        self.disk = DiskGuard(scratch(storage), self.limits.min_free_bytes)
        self.tries: Counter[str] = Counter()
        self.fetched = self.adopted = self.fetched_bytes = 0
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.problem: BaseException | None = None
        self._lock = threading.Lock()

    def run(self) -> None:
        """Adopt what is there already, settle what needs no fetching, fetch the rest.

        Raises:
            OperatorError: as ``acquire_part``; everything finished so far is in the catalogue.
        """
        self._adopt()
        todo = [row for row in self.catalogue.rows() if self._due(row)]
        outcomes = self.fetcher.prepare(todo)
        for identifier, outcome in outcomes.items():
            self.catalogue.update(
                identifier,
                status=outcome.status,
                reason=outcome.reason,
                message=outcome.message,
                next_try_at=None,
            )
        todo = [row for row in todo if row.id not in outcomes]
        if todo:
            self.disk.check()
        self.queue = Queue(todo)
        self.progress = Progress(self.log, len(todo), f"videos of {self.source}, {self.part}")
        threads = [
            threading.Thread(target=self._work, name=f"acquire-{number}", daemon=True)
            for number in range(min(self.limits.workers, len(todo)))
        ]
        self._waiting = threading.Semaphore(2 * self.limits.workers)
        with ThreadPoolExecutor(self.limits.workers) as self._examiners:
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException:  # the run is being ended: parts stay for the next one
                self.queue.stop()
                raise
        if self.problem is not None:
            raise self.problem
        missing = [row.id for row in self.catalogue.rows([MANUAL_MISSING])]
        if missing:
            self.notes += self.settings.sources[self.source].notes(self.context, missing)

    def report(self) -> AcquireReport:
        return summarize(
            self.catalogue,
            fetched=self.fetched,
            adopted=self.adopted,
            fetched_bytes=self.fetched_bytes,
            seconds=time.monotonic() - self.started,
            notes=self.notes,
        )

    def _due(self, row: VideoRow) -> bool:
        return row.status in TRIED_AGAIN or (
            row.status == PERMANENT and row.reason in self.limits.retry
        )

    def _adopt(self) -> None:
        """Rows and files must agree: a finished file whose row was lost counts, a row whose file is
        gone does not.
        """
        folder = f"{layout.VIDEOS}/{self.source}"
        files = {
            name[len(folder) + 1 :].rsplit(".", 1)[0]: name for name in self.storage.list(folder)
        }
        for row in self.catalogue.rows():
            name = files.get(row.id)
            if row.status == OK and (name is None or name != row.path or self._size_differs(row)):
                self.log(f"{row.video}: {row.path} is gone or changed; it is fetched again")
                self.catalogue.update(
                    row.id, status=PENDING, reason="file_gone", message=None, path=None
                )
                if name is not None and name == row.path:
                    self.storage.remove(name)
            elif row.status != OK and name is not None:
                try:
                    path = self.storage.local(name)
                    facts = self.prober.examine(path)
                    check(facts, self.limits, row.expected_duration)
                except InvalidVideo as error:
                    self.log(
                        f"{row.video}: {name} is there, but {error.reason}: {error}; it is replaced"
                    )
                    self.storage.remove(name)
                    continue
                self.adopted += 1
                found = Fetched(path, row.location or "found in place")
                self._record(row, name, path.stat().st_size, hash_file(path), facts, found)

    def _size_differs(self, row: VideoRow) -> bool:
        return (
            self.storage.is_local and os.path.getsize(self.storage.path(row.path or "")) != row.size
        )

    def _work(self) -> None:
        """Fetch rows as they come due; whoever is free looks into the files, so that no connection
        waits for that.
        """
        while (row := self.queue.take()) is not None:
            fetched = None
            with self._ending_on_failure():
                fetched = self._fetch(row)
            if fetched is None:
                self.queue.done()
            else:
                self._waiting.acquire()
                self._examiners.submit(self._finish, row, fetched)

    def _fetch(self, row: VideoRow) -> Fetched | None:
        """One try to fetch one video; None when it failed, which the catalogue then says, or when
        the run ends.
        """
        host = self.fetcher.host(row)
        self.pace.wait(host, self.queue.stopped)
        if self.queue.stopped.is_set():
            return None
        self.tries[row.id] += 1
        try:
            fetched = self.fetcher.fetch(row, self._folder(row), self._watch)
        except TransferError as error:
            self._failed(row, error)
            return None
        self.pace.answered(host)
        return fetched

    def _finish(self, row: VideoRow, fetched: Fetched) -> None:
        try:
            with self._ending_on_failure():
                try:
                    self._publish(row, fetched)
                except TransferError as error:
                    self._failed(row, error)
                else:
                    clear(self._folder(row))
                    self._advance()
        finally:
            self._waiting.release()
            self.queue.done()

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """What is not one video's affair, a full disk or a defect of ours, ends the run, and the
        run shows it.
        """
        try:
            yield
        except _StoppedError:
            pass
        except BaseException as error:
            problem: BaseException = error
            if isinstance(error, OSError):
                try:
                    raise_if_disk(error)
                except DiskFullError as full:
                    problem = full
            with self._lock:
                self.problem = self.problem or problem
            self.queue.stop()

    def _folder(self, row: VideoRow) -> Path:
        return scratch(self.storage, self.source, f"{stable_hash(row.id):016x}")

    def _advance(self) -> None:
        with self._lock:
            self.progress.advance()

    def _publish(self, row: VideoRow, fetched: Fetched) -> None:
        """Look into a fetched file, and give it its final name or set it aside.

        Raises:
            TransferError: it is not the video; ``transient`` when another transfer may help.
        """
        try:
            facts = self.prober.examine(fetched.path)
            check(facts, self.limits, row.expected_duration or fetched.duration)
        except InvalidVideo as error:
            hopeful = error.reason in DAMAGE and not fetched.checked
            last = not hopeful or self.tries[row.id] >= self.limits.attempts
            if last:
                self._set_aside(row, fetched.path, error)
            shutil.rmtree(fetched.path.parent, ignore_errors=True)
            raise TransferError(
                "transient" if hopeful else "permanent", error.reason, str(error)
            ) from error
        sha256, size = fetched.sha256 or hash_file(fetched.path), fetched.path.stat().st_size
        name = f"{layout.VIDEOS}/{self.source}/{row.id}{facts.suffix}"
        self.storage.remove_unfinished(name)  # a part is one process's at a time
        with self.storage.writing(name) as temporary:
            shutil.move(fetched.path, temporary)
        self._record(row, name, size, sha256, facts, fetched)
        with self._lock:
            self.fetched += 1
            self.fetched_bytes += size
        self.storage.remove(layout.quarantined_video(self.source, row.id))

    def _record(
        self, row: VideoRow, name: str, size: int, sha256: str, facts: VideoFacts, fetched: Fetched
    ) -> None:
        self.catalogue.update(
            row.id,
            status=OK,
            reason=None,
            message=None,
            attempts=row.attempts + self.tries[row.id],
            next_try_at=None,
            location=fetched.location,
            path=name,
            size=size,
            sha256=sha256,
            duration=round(facts.duration, 3),
            packets=facts.packets,
            codec=facts.codec,
            width=facts.width,
            height=facts.height,
            damaged=bool(facts.bad_places),
            format=fetched.format,
            tool=fetched.tool,
        )

    def _set_aside(self, row: VideoRow, path: Path, error: InvalidVideo) -> None:
        """Keep a bad file where a person can look at it."""
        with self.storage.writing(layout.quarantined_video(self.source, row.id)) as temporary:
            shutil.move(path, temporary)
        self.log(f"{row.video}: set aside, {error.reason}: {error}")

    def _failed(self, row: VideoRow, error: TransferError) -> None:
        """Journal a failed try, and decide about the next one."""
        status, tries, host = error.status, self.tries[row.id], self.fetcher.host(row)
        delay = backoff(self.limits.backoff_s, tries, row.video, error.retry_after)
        if error.reason in PAUSING:
            pause = max(error.retry_after or 0.0, self.limits.cooldown_s)
            self.pace.cool(host, pause)
            self.log(f"{host}: {error.reason}; nobody asks it for {pause:.0f} s")
            if error.reason == "bot_check" and self.pace.refused(host):
                self.notes.append(
                    f"{host} refused {self.limits.breaker} times in a row ({error}). The rest was "
                    "not tried: set YTDLP_COOKIES or HTTPS_PROXY, raise download.min_interval_s, "
                    "or wait, and run again"
                )
                self.queue.stop()
        else:
            self.pace.answered(host)
        if status == TRANSIENT and tries >= self.limits.attempts:
            status = EXHAUSTED
        self.catalogue.update(
            row.id,
            status=status,
            reason=error.reason,
            message=str(error)[:500],
            attempts=row.attempts + tries,
            next_try_at=round(time.time() + delay, 3) if status == TRANSIENT else None,
        )
        if status == TRANSIENT:
            self.queue.again(row, delay)
        else:
            self._advance()

    def _watch(self, count: int) -> None:
        if self.queue.stopped.is_set():
            raise _StoppedError
        self.disk.watch(count)


class _StoppedError(BaseException):
    """Ends a transfer because the run ends; not an Exception, so that no downloader takes it for a
    failure.
    """


def _all_ids(storage: Storage, source: str) -> set[str]:
    """Ids of a source in all parts."""
    found: set[str] = set()
    index = 0
    while storage.exists(snapshot_name(source, part_name(index))):
        found |= set(read_catalogue(storage, source, part_name(index))["id"].to_pylist())
        index += 1
    return found
