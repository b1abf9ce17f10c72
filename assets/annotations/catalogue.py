"""Every video that the annotations ask for, and what became of it: one row a video, one table a
source and part.

A table is a Parquet snapshot and a journal of what changed since (`journal.py`). A change counts
once its line is on the disk; a snapshot replaces the old one in one step, and only then is the
journal emptied. A kill at any moment loses nothing: a journal that continues another snapshot is
one whose changes the snapshot has taken, or one of a machine that died while another went on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from assets.annotations.journal import Change, Changes, Journal, journal_path, read_journal
from assets.deployment.settings import Settings
from assets.records.withdrawals import Withdrawals
from assets.sources.base import OK, VideoRow
from training.formats import layout
from training.formats.storage import Storage

# An object store has no journal beside the snapshot, so snapshots are taken as work goes on.
REMOTE_SNAPSHOT_S = 60.0

SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("source", pa.string()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("expected_duration", pa.float64()),
        ("questions", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("next_try_at", pa.float64()),
        ("location", pa.string()),
        ("path", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("duration", pa.float64()),
        ("packets", pa.int64()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("damaged", pa.bool_()),
        ("unmeasured", pa.bool_()),
        ("format", pa.string()),
        ("tool", pa.string()),
        ("updated_at", pa.float64()),
        ("decided_by", pa.string()),
    ]
)


_CONTENT = b"hourllava.content"  # in a snapshot's metadata: hash of its rows


class DamagedTableError(ValueError):
    """A snapshot whose rows are not those that were written."""


ROW_FIELDS = [item.name for item in fields(VideoRow)]
assert SCHEMA.names == ROW_FIELDS


@dataclass(frozen=True, slots=True)
class PresentVideo:
    """A video that is there and verified.

    Attributes:
        video: `source/id`.
        duration: in seconds.
        rel: its path below the root.
        damaged: one of the places looked at gave no picture.
        packets: the number of its pictures, where known.
    """

    video: str
    duration: float
    sha256: str
    rel: str
    damaged: bool
    packets: int | None = None


def snapshot_name(source: str, part: str) -> str:
    """The Parquet file of a source and part, relative to the storage root."""
    return layout.catalogue(source, f"{part}.parquet")


class Catalogue:
    """The table of one source and part, open for writing by one process. Many threads of it may
    update.

    Args:
        log: takes a line where a journal does not continue the snapshot that is there.

    Raises:
        OperatorError: another process of this machine, or of a local root, has it open.
    """

    def __init__(
        self, storage: Storage, source: str, part: str, log: Callable[[str], None] = print
    ) -> None:
        self.storage, self.source, self.part = storage, source, part
        self._lock = threading.RLock()
        self._journal = Journal(storage, source, part)
        self._table, content, journal = _load(storage, source, part)
        self._place = _places(self._table)
        self._changed: dict[str, Change] = {}
        self._snapshot_at = time.monotonic()
        if journal.continues == content:
            self._changed = {k: dict(v) for k, v in journal.by_id.items() if k in self._place}
        elif journal.continues is not None:
            kept = self._journal.set_aside()
            log(
                f"{source}, {part}: the journal of a run that was killed belongs to an earlier "
                f"table ({len(journal.by_id):,} videos); it is now {kept}. Videos of it that are "
                "there are found by themselves"
            )
        if self._changed:
            self.compact()
        else:
            self._journal.begin(content)  # also after a torn line, behind which nothing is read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._table.num_rows

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._place

    def row(self, identifier: str) -> VideoRow:
        """The row of one video as it is now."""
        with self._lock:
            raw = self._table.slice(self._place[identifier], 1).to_pylist()[0]
            return VideoRow(**{**raw, **self._changed.get(identifier, {})})

    def rows(self, statuses: Iterable[str] | None = None) -> Iterator[VideoRow]:
        """Rows as they are now, by id, all or those with one of the statuses."""
        wanted = None if statuses is None else frozenset(statuses)
        with self._lock:
            changed = {name: dict(change) for name, change in self._changed.items()}
            table = self._table
        for batch in table.to_batches(4096):
            for raw in batch.to_pylist():
                raw.update(changed.get(raw["id"], {}))
                if wanted is None or raw["status"] in wanted:
                    yield VideoRow(**raw)

    def counts(self) -> Counter[tuple[str, str]]:
        """(status, reason) -> videos."""
        with self._lock:
            statuses, reasons = (
                self._table.column(name).to_pylist() for name in ("status", "reason")
            )
            for name, change in self._changed.items():
                place = self._place[name]
                statuses[place] = change.get("status", statuses[place])
                reasons[place] = change.get("reason", reasons[place])
        return Counter(zip(statuses, (reason or "" for reason in reasons), strict=True))

    def update(self, identifier: str, **changes: Any) -> None:
        """Change fields of one row; on return the change is on the disk."""
        unknown = changes.keys() - set(SCHEMA.names)
        if unknown or identifier not in self._place:
            problem = ", ".join(sorted(unknown)) or "not in the catalogue"
            raise KeyError(f"{self.source}/{identifier}: {problem}")
        changes["updated_at"] = round(time.time(), 3)
        with self._lock:
            self._journal.append(identifier, changes)
            self._changed.setdefault(identifier, {}).update(changes)
            age = time.monotonic() - self._snapshot_at
            if not self.storage.is_local and age > REMOTE_SNAPSHOT_S:
                self.compact()

    def add(self, rows: Iterable[VideoRow]) -> int:
        """Add rows of videos that are not in the table yet; returns how many were."""
        with self._lock:
            fresh = [row for row in rows if row.id not in self._place]
            if fresh or not self.storage.exists(snapshot_name(self.source, self.part)):
                columns = {name: [getattr(row, name) for row in fresh] for name in SCHEMA.names}
                self._table = pa.concat_tables([self._table, pa.table(columns, schema=SCHEMA)])
                self.compact()
        return len(fresh)

    def amend(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of many rows at once, by id; on return the changes are on the disk."""
        with self._lock:
            for identifier, change in changes.items():
                self._changed.setdefault(identifier, {}).update(change)
            if changes:
                self.compact()

    def compact(self) -> None:
        """Write a new snapshot that holds all changes, then empty the journal."""
        with self._lock:
            self._table = _merged(self._table, self._changed).combine_chunks()
            self._place = _places(self._table)
            content = _hash_rows(self._table)
            marked = self._table.replace_schema_metadata({_CONTENT: content})
            with self.storage.writing(snapshot_name(self.source, self.part)) as temporary:
                pq.write_table(marked, temporary, compression="zstd")
            self._changed = {}
            self._journal.begin(content)
            self._snapshot_at = time.monotonic()

    def close(self) -> None:
        """Compact if there is anything to, and let the next writer in."""
        with self._lock:
            if self._changed:
                self.compact()
            self._journal.close()


def read_catalogue(storage: Storage, source: str, part: str) -> pa.Table:
    """The table as it is now, also while another process writes it.

    Raises:
        FileNotFoundError: the source and part are not catalogued.
    """
    if not storage.exists(snapshot_name(source, part)):
        path = storage.path(snapshot_name(source, part))
        raise FileNotFoundError(f"{path}: not there; materialize the catalogue first")
    table, content, journal = _load(storage, source, part)
    return _merged(table, journal.by_id if journal.continues == content else {})


def present_videos(storage: Storage, settings: Settings, part: str) -> list[PresentVideo]:
    """The videos of a part that are there and verified, of all sources, by name; without those
    that were withdrawn.
    """
    withdrawn = Withdrawals.read(storage).videos
    found = []
    for source in sorted(settings.sources):
        table = read_catalogue(storage, source, part)
        rows = table.filter(pc.equal(table["status"], OK))
        names = ("video", "duration", "sha256", "path", "damaged", "packets")
        columns = (rows[name].to_pylist() for name in names)
        found += [PresentVideo(*values) for values in zip(*columns, strict=True)]
    found = [present for present in found if present.video not in withdrawn]
    return sorted(found, key=lambda present: present.video)


def _places(table: pa.Table) -> dict[str, int]:
    """Id of a video -> its row in the table."""
    return {name: place for place, name in enumerate(table.column("id").to_pylist())}


def _load(storage: Storage, source: str, part: str) -> tuple[pa.Table, str, Changes]:
    """The rows of the snapshot with their hash, and what the journal holds.

    The journal is read first. Where a writer empties it before the snapshot is read, that snapshot
    has taken its changes.
    """
    journal = read_journal(journal_path(storage, source, part))
    storage.forget_listings()  # another machine may have written the snapshot
    name = snapshot_name(source, part)
    if not storage.exists(name):
        return SCHEMA.empty_table(), "", journal
    return *read_snapshot(storage, name), journal


def read_snapshot(storage: Storage, name: str) -> tuple[pa.Table, str]:
    """The rows of a snapshot and their hash, compared with the one that it holds itself: it changes
    with every video that is fetched, so no receipt can name its bytes.

    Raises:
        DamagedTableError: the rows are not those that were written.
    """
    try:
        with pq.ParquetFile(storage.local(name)) as file:  # opened once: it may be replaced
            table = file.read()
        stated = (table.schema.metadata or {}).get(_CONTENT, b"").decode()
        table = table.replace_schema_metadata(None)
        if table.schema == SCHEMA and stated == _hash_rows(table):
            return table, stated
        fault = "its rows are not those that were written"
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault, not the file's: Arrow's own errors have no number
        fault = str(error)
    source, _, part = name.removesuffix(".parquet").rpartition("/")
    videos = f"videos[{part}|{source.rpartition('/')[2]}]"
    raise DamagedTableError(
        f"{storage.path(name)} is damaged ({fault}); materialize {videos} again: the table is set "
        "aside and made anew, and no video is fetched for it"
    )


def _hash_rows(table: pa.Table) -> str:
    digest = xxhash.xxh3_128()
    for name in SCHEMA.names:
        digest.update(orjson.dumps([name, table.column(name).to_pylist()]))
    return digest.hexdigest()


def _merged(table: pa.Table, changed: Mapping[str, Change]) -> pa.Table:
    """The table with the changes in it, by id."""
    if changed:
        touched = pc.is_in(table["id"], pa.array(list(changed), pa.string()))
        rows = [{**raw, **changed[raw["id"]]} for raw in table.filter(touched).to_pylist()]
        untouched = table.filter(pc.invert(touched))
        table = pa.concat_tables([untouched, pa.Table.from_pylist(rows, schema=SCHEMA)])
    return table.sort_by("id")
