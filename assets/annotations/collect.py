"""All question-answer rows, under one schema, in one Parquet file.

It holds what today's files say: those that the settings name, then the landed ones in the order in
which they were first seen. A later row supersedes an earlier one (`identity.py`); what was edited,
removed or taken away is so here, too. Each file is read once (`readings.py`), and the rows that
count are put together part after part (`merge.py`). A video never changes its part
(`video_parts.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from assets.annotations.files import AnnotationFile, configured_files
from assets.annotations.identity import RowKeys, changes, survivors
from assets.annotations.landing import is_put_by_people, look_into_landing
from assets.annotations.merge import videos_of, write_annotations, write_rejected
from assets.annotations.readings import Readings, reading_files
from assets.annotations.record import AnnotationRecord, Origin
from assets.annotations.rows import PARSER_VERSION
from assets.annotations.video_parts import VideoParts
from assets.deployment.settings import Settings
from assets.fetching.disk import remove_scratch, scratch
from assets.fetching.errors import AnnotationError
from assets.fetching.table_rows import in_brief
from assets.records.sentences import listed
from assets.records.withdrawals import Withdrawals
from training.formats import layout
from training.formats.storage import Storage

NAMED = 10  # columns, files and problems that a sentence names


@dataclass(slots=True)
class AnnotationReport:
    """What was collected.

    Attributes:
        version: of the content, over all parts.
        origins: repository or file -> commit or checksum.
        counts: `rows_read`, `rows`, `rejected`, `superseded`, `withdrawn`, `parts`.
        rejected: reason -> rows.
        columns: names found in the files.
        files: what was written, relative to the root: the annotations and what they are made from.
        problems: files that could not be read, with the reason.
        read: a row for each file: how it was read, what was set aside, what is not read of it.
        changes: `came`, `changed` and `gone`: rows, since the collection before.
        changed_files: the same for each file in which something changed.
    """

    version: str
    origins: dict[str, str]
    counts: dict[str, int]
    rejected: dict[str, int]
    columns: list[str]
    problems: list[str] = field(default_factory=list)
    read: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    changes: dict[str, int] = field(default_factory=dict)
    changed_files: list[dict[str, Any]] = field(default_factory=list)


def collect_annotations(
    storage: Storage, settings: Settings, log: Callable[[str], None]
) -> AnnotationReport:
    """Bring `VideoMarathon/annotations.parquet` up to what the configured files and the landing
    folder say today.

    Files that did not change are not read again, and nothing is written when nothing changed. Rows
    that cannot be used go to `annotations.rejected.parquet`. A file that cannot be read is told
    (`problems`) and costs no other one; its rows stay as they were when it could be read.

    Raises:
        AnnotationError: no file can be read, or no row of them be used; the annotations that are
            there were not written by this pipeline.
        OperatorError: the hub refuses.
    """
    before = AnnotationRecord.read(storage)
    parts = VideoParts.read(storage)
    work = _Collection(storage, settings, log, before or AnnotationRecord(), parts)
    record = work.origins_of_today()
    if before is None and not any(one.rows_read > one.set_aside for one in record.origins):
        raise AnnotationError(_nothing_to_use(record, settings, work.problems))
    seen = [
        [
            (origin.name, videos_of(storage, origin))
            for origin in record.origins
            if origin.landed is landed
        ]
        for landed in (False, True)
    ]
    withdrawn = Withdrawals.read(storage).videos
    asked = {video for group in seen for _, videos in group for video in videos}
    record.withdrawn = sorted(asked & withdrawn.keys())
    # What the settings name and what landed make a new part each. The parts come first: a kill
    # between the two files costs nothing.
    grew = [parts.add(group, settings.parts) for group in seen]
    if any(grew) or work.order_changed or not storage.exists(layout.VIDEO_PARTS):
        parts.write(storage)
    record.part_names = list(parts.names)
    files, total = work.publish(record)
    remove_scratch(scratch(storage, "annotations"))
    for problem in work.problems:
        log(f"not read: {problem}")
    return AnnotationReport(
        version=record.version,
        origins={origin.name: origin.version for origin in record.origins},
        counts=record.counts,
        rejected=record.rejected,
        columns=record.columns,
        changes=total,
        changed_files=files,
        files=[
            layout.ANNOTATIONS,
            layout.REJECTED_ANNOTATIONS,
            layout.VIDEO_PARTS,
            *sorted({name for origin in record.origins for name in reading_files(origin.reading)}),
        ],
        problems=work.problems,
        read=[
            {
                "file": origin.file,
                "read as": origin.form,
                "rows": origin.rows_read,
                "set aside": origin.set_aside,
                "columns not read": listed(origin.unused, NAMED),
                "values not read": ", ".join(f"{n:,} {what}" for what, n in origin.unread.items()),
            }
            for origin in record.origins
        ],
    )


def _nothing_to_use(record: AnnotationRecord, settings: Settings, problems: list[str]) -> str:
    """Why there is not one row."""
    if problems:
        return listed(problems, NAMED)
    if not record.origins:
        return (
            f"no annotation file in {', '.join(settings.annotations.paths)} (annotations.paths), "
            f"and none in the landing folder ({settings.landing or 'none is set'})"
        )
    files = listed([origin.file for origin in record.origins], NAMED)
    reasons = [f"{number:,} {reason}" for reason, number in record.rejected.items()]
    return (
        f"{files}: no row can be used: {listed(reasons, NAMED)}. The settings have the sources "
        f"{', '.join(sorted(settings.sources))}"
    )


class _Collection:
    """One collection: which files there are today, and what they change."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        log: Callable[[str], None],
        before: AnnotationRecord,
        parts: VideoParts,
    ) -> None:
        self.storage, self.settings, self.log = storage, settings, log
        self.before, self.parts = before, parts
        shaped_by = {
            "normaliser": PARSER_VERSION,
            "sources": sorted(settings.sources),
            "columns": settings.annotations.columns,
        }
        self.readings = Readings(storage, settings, shaped_by, log)
        self.problems: list[str] = []
        self.order_changed = False
        self._known_keys: dict[str, RowKeys] = {}

    def origins_of_today(self) -> AnnotationRecord:
        """A record of today's files in their order, each of them read."""
        configured = configured_files(self.storage, self.settings, self.log)
        earlier = {origin.file: origin for origin in self.before.origins if not origin.landed}
        origins = [
            origin
            for file in _named_apart(configured)
            if (origin := self._origin_or_earlier(file, earlier, landed=False))
        ]
        return AnnotationRecord(origins=[*origins, *self._landed()])

    def _origin_or_earlier(
        self, file: AnnotationFile, earlier: dict[str, Origin], landed: bool
    ) -> Origin | None:
        """A file as it is; where it cannot be read, as it was when it could."""
        try:
            return self._origin(file, landed)
        except AnnotationError as error:
            before = earlier.get(file.name)
            kept = "; its rows stay as they were when it could be read" if before else ""
            self.problems.append(f"{in_brief(error, 1000)}{kept}")
            return before

    def _landed(self) -> list[Origin]:
        landing = look_into_landing(self.settings)
        earlier = {origin.file: origin for origin in self.before.origins if origin.landed}
        if landing.missing and any(map(is_put_by_people, earlier)):
            self.problems.append(
                f"{landing.missing} is not there (landing in the settings); the rows of its "
                f"{sum(map(is_put_by_people, earlier))} files stay as they were"
            )
        kept = (name for name in earlier if landing.missing and is_put_by_people(name))
        found = {name: earlier[name] for name in kept}
        found |= {name: earlier[name] for name in landing.copying if name in earlier}
        for file in landing.files:
            if origin := self._origin_or_earlier(file, earlier, landed=True):
                found[file.name] = origin
        known = set(self.parts.landed)
        new = sorted(name for name in found if name not in known)
        self.order_changed = bool(new)
        self.parts.landed += new
        return [found[name] for name in self.parts.landed if name in found]

    def _origin(self, file: AnnotationFile, landed: bool) -> Origin:
        reading = self.readings.of(file)
        return Origin(
            file=file.name,
            name=file.origin,
            version=file.version,
            checksum=file.checksum,
            landed=landed,
            reading=reading.key,
            rows_read=reading.rows_read,
            rejected=reading.rejected,
            columns=reading.columns,
            form=reading.form,
            unused=reading.unused,
            unread=reading.unread,
        )

    def publish(self, record: AnnotationRecord) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Write the annotations where they are others than before; what changed, by file and in
        all.
        """
        if record.made_from() == self.before.made_from() and self.storage.exists(
            layout.REJECTED_ANNOTATIONS
        ):
            record.part_versions = self.before.part_versions
            record.origins = self.before.origins
            self.readings.forget_others(origin.reading for origin in record.origins)
            return [], {"came": 0, "changed": 0, "gone": 0}
        keys = [self._keys(origin) for origin in record.origins]
        alive = survivors(keys)
        withdrawn = set(record.withdrawn)
        part_of = {v: part for v, part in self.parts.part_of.items() if v not in withdrawn}
        write_rejected(self.storage, record.origins, withdrawn)
        write_annotations(self.storage, record, alive, part_of)
        files, total = self._changes(
            record, [k.chosen(m) for k, m in zip(keys, alive, strict=True)]
        )
        self.readings.forget_others(origin.reading for origin in record.origins)
        self.log(
            f"annotations: {record.counts['rows']:,} rows in {len(record.part_versions)} parts; "
            f"{total['came']:,} came, {total['changed']:,} changed, {total['gone']:,} are gone"
        )
        return files, total

    def _changes(
        self, record: AnnotationRecord, after: list[RowKeys]
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        old = [origin for origin in self.before.origins if self._is_there(origin)]
        keys = [self._keys(origin) for origin in old]
        alive = survivors(keys)
        before = [k.chosen(mask) for k, mask in zip(keys, alive, strict=True)]
        files, total = changes(
            {origin.file: one for origin, one in zip(old, before, strict=True)},
            {origin.file: one for origin, one in zip(record.origins, after, strict=True)},
        )
        return [{"file": name, **asdict(found)} for name, found in files.items()], asdict(total)

    def _keys(self, origin: Origin) -> RowKeys:
        if origin.reading not in self._known_keys:  # most files are the same as before
            path = self.storage.local(layout.reading(origin.reading))
            self._known_keys[origin.reading] = RowKeys.read(path)
        return self._known_keys[origin.reading]

    def _is_there(self, origin: Origin) -> bool:
        return self.storage.exists(layout.reading(origin.reading))


def _named_apart(files: list[AnnotationFile]) -> list[AnnotationFile]:
    """The files, those that are called like an earlier one with a number before their name."""
    seen = Counter[str]()
    apart = []
    for file in files:
        seen[file.name] += 1
        if (number := seen[file.name]) > 1:
            name = f"({number}) {file.name}"
            file = replace(
                file, name=name, origin=name if file.origin == file.name else file.origin
            )
        apart.append(file)
    return apart
