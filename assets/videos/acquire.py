"""The videos of one source and part: fetched, verified, published, each one accounted for.

Each video has a folder of its own while it is worked on: fetch, probe, compare, hash, rename to its
final name, then one line in the catalogue. A kill at any moment costs at most the part of a file
that was not written yet.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from assets.annotations.build import mend_table
from assets.annotations.catalogue import Catalogue, read_catalogue, snapshot_name
from assets.deployment.parts import part_name
from assets.deployment.settings import Settings
from assets.fetching.disk import DiskGuard, remove_empty, remove_scratch, scratch
from assets.fetching.errors import CoverageError, TransferError
from assets.fetching.probe import ProbePool
from assets.fetching.retry import OWN_FAULTS, backoff, disk_error, item_error
from assets.records.withdrawals import Withdrawals
from assets.sources.base import (
    EXHAUSTED,
    MANUAL_MISSING,
    NEEDS_OPERATOR,
    NOT_ASKED,
    OK,
    PENDING,
    PERMANENT,
    TRANSIENT,
    FetchContext,
    Fetched,
    VideoRow,
)
from assets.sources.outcomes import RESTING, Evidence, is_refusal
from assets.videos.pacing import RateLimiter, RetryQueue
from assets.videos.publish import Publisher
from assets.videos.report import (
    AcquireReport,
    coverage_threshold,
    is_enough,
    report_name,
    summarize,
    too_few,
)
from training.formats.hashing import stable_hash
from training.formats.storage import Storage
from training.progress import Progress

# Statuses of rows that every run tries to fetch.
TRIED_AGAIN = (PENDING, TRANSIENT, EXHAUSTED, NEEDS_OPERATOR, MANUAL_MISSING)


def acquire_part(
    storage: Storage, settings: Settings, source: str, part: str, log: Callable[[str], None]
) -> AcquireReport:
    """Get all videos of one source and part that can be had.

    What became of a single video is a row in the catalogue. The next call retries rows whose
    failure may pass; finished videos are never fetched again. The report is also written beside the
    catalogue.

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
    mend_table(storage, settings, source, part, log)
    read_catalogue(storage, source, part)
    most = settings.features.limits.max_pixels
    with (
        Catalogue(storage, source, part, log) as catalogue,
        ProbePool(max_pixels=most) as prober,
    ):
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
    threshold = coverage_threshold(settings, source)
    if not is_enough(report, threshold):
        raise CoverageError(too_few(report, threshold))
    return report


class _Acquisition:
    """The work on one source and part: some threads fetch, as many verify and publish."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        catalogue: Catalogue,
        prober: ProbePool,
        log: Callable[[str], None],
    ) -> None:
        self.storage, self.settings, self.limits = storage, settings, settings.download
        self.catalogue, self.log = catalogue, log
        self.source, self.part = catalogue.source, catalogue.part
        self.context = FetchContext(
            storage,
            self.source,
            self.part,
            settings.download,
            settings.hub_endpoint,
            lambda: _ids(storage, self.source),
            lambda: _ids(storage, self.source, but=(OK, NOT_ASKED)),
            log,
        )
        self.fetcher = settings.sources[self.source].fetcher(self.context)
        self.evidence = Evidence(
            self.fetcher, settings.download, settings.features.limits.max_pixels
        )
        self.withdrawn = Withdrawals.read(storage).videos
        self.rate_limiter = RateLimiter(
            self.fetcher.min_interval_s, self.limits.cooldown_s, self.limits.breaker
        )
        # Host -> videos that it said are gone for good, in words that it may have for all of them.
        self.doubted: dict[str, list[str]] = defaultdict(list)
        self.disk = DiskGuard(scratch(storage), self.limits.min_free_bytes)
        self.tries: Counter[str] = Counter()
        self.publisher = Publisher(storage, catalogue, prober, self.limits, log)
        self.started = time.monotonic()
        self.notes: list[str] = []
        self.problem: BaseException | None = None
        self._lock = threading.Lock()
        self._refusing = threading.Lock()

    def run(self) -> None:
        """Match rows with the files that are there, record what needs no fetching, fetch the rest.

        Raises:
            OperatorError: as `acquire_part`; everything finished so far is in the catalogue.
        """
        self.publisher.match_files()
        todo = [row for row in self.catalogue.rows() if self._is_due(row)]
        todo += self._changed_at_the_source()
        outcomes = self.fetcher.prepare(todo)
        for row in todo:
            outcome = outcomes.get(row.id)
            if outcome is not None and row.status != OK:
                self.catalogue.update(
                    row.id,
                    status=outcome.status,
                    reason=outcome.reason,
                    message=outcome.message,
                    next_try_at=None,
                    decided_by=self.evidence.fingerprint(row, outcome.reason),
                )
        todo = [row for row in todo if row.id not in outcomes]
        if todo:
            self.disk.check()
        try:
            self._fetch_all(todo)
        finally:
            self._remove_leftovers()
        if self.problem is not None:
            raise self.problem
        missing = [row.id for row in self.catalogue.rows([MANUAL_MISSING])]
        if missing:
            self.notes += self.settings.sources[self.source].notes(self.context, missing)

    def _fetch_all(self, todo: list[VideoRow]) -> None:
        self.queue = RetryQueue(todo)
        self.progress = Progress(self.log, len(todo), f"videos of {self.source}, {self.part}")
        threads = [
            threading.Thread(target=self._fetch_rows, name=f"acquire-{number}", daemon=True)
            for number in range(min(self.limits.workers, len(todo)))
        ]
        # Fetching waits when so many files are not published yet, so that they do not pile up.
        self._unpublished = threading.Semaphore(2 * self.limits.workers)
        with ThreadPoolExecutor(self.limits.workers) as self._publishers:
            for thread in threads:
                thread.start()
            try:
                for thread in threads:
                    thread.join()
            except BaseException:  # the run is being ended: unfinished files stay for the next one
                self.queue.stop()
                raise

    def report(self) -> AcquireReport:
        return summarize(
            self.catalogue,
            fetched=self.publisher.fetched,
            adopted=self.publisher.adopted,
            fetched_bytes=self.publisher.fetched_bytes,
            seconds=time.monotonic() - self.started,
            notes=self.notes,
            refusals=self.rate_limiter.refusals(),
        )

    def _remove_leftovers(self) -> None:
        """Folders of videos that are finished, which an earlier run did not come to remove."""
        folder = scratch(self.storage, self.source)
        finished = self.catalogue.rows([OK, PERMANENT, NOT_ASKED])
        for name in {_folder_name(row) for row in finished} & set(os.listdir(folder)):
            remove_scratch(folder / name)
        remove_empty(folder)

    def _is_due(self, row: VideoRow) -> bool:
        if row.video in self.withdrawn:
            return False
        return row.status in TRIED_AGAIN or (
            row.status == PERMANENT
            and (row.reason in self.limits.retry or self.evidence.is_stale(row))
        )

    def _changed_at_the_source(self) -> list[VideoRow]:
        """Videos that are there, and whose file at the source is another one now. They stay as they
        are until the new file is there and verified.
        """
        there = [row for row in self.catalogue.rows([OK]) if row.video not in self.withdrawn]
        changed, same = self.fetcher.changed(there)
        self.catalogue.amend({name: {"location": location} for name, location in same.items()})
        for row in changed:
            self.log(f"{row.video}: is another file at its source now; it is fetched again")
        return changed

    def _fetch_rows(self) -> None:
        """Fetch rows as they come due. Other threads verify the files, so that no connection waits
        for that.
        """
        while (row := self.queue.get()) is not None:
            fetched = None
            with self._stop_on_failure():
                fetched = self._try_to_fetch(row)
            if fetched is None:
                self.queue.task_done()
            else:
                self._unpublished.acquire()
                self._publishers.submit(self._verify_and_publish, row, fetched)

    def _try_to_fetch(self, row: VideoRow) -> Fetched | None:
        """One try to fetch one video; None when it failed, which the catalogue then says, or when
        the run ends.
        """
        host = self.fetcher.host(row)
        if self.rate_limiter.is_given_up(host):
            self._advance()  # it stays as it is, for the next run
            return None
        if rest := self.rate_limiter.rest_left(host):
            self.queue.put_later(row, rest)
            return None
        asked_at = self.rate_limiter.wait(host, self.queue.stopped)
        if self.queue.stopped.is_set():
            return None
        self.tries[row.id] += 1
        try:
            with _items_own_faults():
                fetched = self.fetcher.fetch(row, self._row_folder(row), self._count_bytes)
        except TransferError as error:
            if is_refusal(error.reason):
                # Together: what is recorded of a video here, the next refusal may take back.
                with self._refusing:
                    error = self._count_refusal(row, host, error, asked_at)
                    self._record_failure(row, error)
                return None
            if error.reason not in OWN_FAULTS:
                self._count_answer(host)
            self._record_failure(row, error)
            return None
        self._count_answer(host)
        return fetched

    def _verify_and_publish(self, row: VideoRow, fetched: Fetched) -> None:
        try:
            with self._stop_on_failure():
                try:
                    with _items_own_faults():
                        self.publisher.publish(row, fetched, self.tries[row.id])
                except TransferError as error:
                    self._record_failure(row, error)
                else:
                    remove_scratch(self._row_folder(row))
                    self._advance()
        finally:
            self._unpublished.release()
            self.queue.task_done()

    @contextmanager
    def _stop_on_failure(self) -> Iterator[None]:
        """A failure that does not concern one video alone (a full disk, a defect of ours) ends the
        run, which then raises it.
        """
        try:
            yield
        except _StoppedError:
            pass
        except BaseException as error:
            problem = disk_error(error) if isinstance(error, OSError) else None
            with self._lock:
                self.problem = self.problem or problem or error
            self.queue.stop()

    def _row_folder(self, row: VideoRow) -> Path:
        return scratch(self.storage, self.source, _folder_name(row))

    def _advance(self) -> None:
        with self._lock:
            self.progress.advance()

    def _record_failure(self, row: VideoRow, error: TransferError) -> None:
        """Record a failed try, and put the row back when another one may help."""
        status, tries = error.status, self.tries[row.id]
        delay = backoff(self.limits.backoff_s, tries, row.video, error.retry_after)
        if status == TRANSIENT and tries >= self.limits.attempts:
            status = EXHAUSTED
        if row.status == OK:
            self.log(f"{row.video}: the file that is there stays, {error.reason}: {error}")
        else:
            self.catalogue.update(
                row.id,
                status=status,
                reason=error.reason,
                message=str(error)[:500],
                attempts=row.attempts + tries,
                next_try_at=round(time.time() + delay, 3) if status == TRANSIENT else None,
                decided_by=self.evidence.fingerprint(row, error.reason),
            )
        if status == TRANSIENT and not self.rate_limiter.is_given_up(self.fetcher.host(row)):
            self.queue.put_later(row, delay)
            return
        if status == PERMANENT:
            remove_scratch(self._row_folder(row))
        self._advance()

    def _count_answer(self, host: str) -> None:
        """The host is not refusing us: what it said of single videos is true."""
        self.rate_limiter.record_answer(host)
        with self._lock:
            self.doubted[host].clear()

    def _count_refusal(
        self, row: VideoRow, host: str, error: TransferError, asked_at: float
    ) -> TransferError:
        """Count a refusal, and tell what follows from it. What a host says of all videos is true of
        none: then the failure is one that may pass, and so are those before it.
        """
        found = self.rate_limiter.record_refusal(
            host, asked_at, rest=error.reason in RESTING, asked_s=error.retry_after
        )
        if found.rest_s:
            self.log(
                f"{host}: {error.reason}, {found.in_a_row} refusals in a row; nobody asks it for "
                f"{found.rest_s:.0f} s ({error})"
            )
        if found.last:
            self.notes.append(
                f"{host} refused {found.in_a_row} times in a row ({error.reason}: {error}). The "
                "rest was not tried: set YTDLP_COOKIES or HTTPS_PROXY, raise "
                "download.min_interval_s, or wait, and run again"
            )
            self.queue.drop(lambda waiting: self.fetcher.host(waiting) == host)
        if error.status != PERMANENT:
            return error
        with self._lock:
            self.doubted[host].append(row.id)
            doubted = list(self.doubted[host]) if found.general else []
        if not found.general:
            return error
        for identifier in doubted[:-1]:
            self.catalogue.update(identifier, status=TRANSIENT)
        with self._lock:
            self.doubted[host].clear()
        return TransferError(TRANSIENT, error.reason, str(error), error.retry_after)

    def _count_bytes(self, count: int) -> None:
        """Called while bytes arrive: ends the transfer when the run ends or the disk is full."""
        if self.queue.stopped.is_set():
            raise _StoppedError
        self.disk.watch(count)


def _folder_name(row: VideoRow) -> str:
    return f"{stable_hash(row.id):016x}"


class _StoppedError(BaseException):
    """Ends a transfer because the run ends.

    It is no Exception, so that no downloader handles it as a failed transfer.
    """


@contextmanager
def _items_own_faults() -> Iterator[None]:
    """A fault of one video's file is that video's, and no other waits for it."""
    try:
        yield
    except OSError as error:
        if (own := item_error(error)) is None:
            raise
        raise own from error


def _ids(storage: Storage, source: str, but: tuple[str, ...] = ()) -> set[str]:
    """Ids of a source in all parts, but those of some statuses."""
    found: set[str] = set()
    index = 0
    while storage.exists(snapshot_name(source, part_name(index))):
        table = read_catalogue(storage, source, part_name(index))
        rows = zip(table["id"].to_pylist(), table["status"].to_pylist(), strict=True)
        found |= {identifier for identifier, status in rows if status not in but}
        index += 1
    return found
