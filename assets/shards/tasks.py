"""One shard's worth of work, done in a worker process: rows in, one or a few shard files and their
counts out.

A task is fixed by its inputs alone, so the same inputs give the same files whichever process runs
it and however often. Its record is written last: a task with a record is done, also after the
process was killed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq

from assets.shards.annotation_rows import mapped, parse_row
from assets.shards.examples import PICTURES, contact_sheet, example_row
from assets.shards.images import ImagePolicy, RefusedImage, stored_image
from assets.shards.llava_rows import EXPECTED_DROPS, Dropped, to_sample
from assets.shards.mds import ROW_LIMIT, write_shards
from model.atomic import writing_file
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND
from training.formats.sample import Sample, broken_rule, encode, text_fault
from training.formats.storage import Storage

PICTURE = "examples.png"
EXAMPLES = 2  # samples that a task shows
NAMED_DROPS = 20  # dropped rows that a task names; the rest is counted


@dataclass(frozen=True, slots=True)
class LlavaRows:
    """Rows of LLaVA annotation files.

    Attributes:
        names: annotation files, relative to the storage root.
        places: int64 [n, 4]: index into `names`, ordinal in the file, first byte, last byte + 1.
    """

    names: tuple[str, ...]
    places: np.ndarray


@dataclass(frozen=True, slots=True)
class ConversationRows:
    """Rows `start` .. `stop` of a part's grouped conversations."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class ShardTask:
    """What one worker does in one go.

    Attributes:
        index: place in the part; decides the names of the files.
        kind: kind of sample.
        root, cache: where inputs are (see `Storage`).
        folder: local folder that takes the files.
    """

    index: int
    kind: str
    root: str
    cache: Path
    folder: Path
    rows: LlavaRows | ConversationRows
    images: ImagePolicy

    @cached_property
    def storage(self) -> Storage:
        """Where the inputs are."""
        return Storage(self.root, self.cache)

    @property
    def record(self) -> Path:
        """File of the task's result; it is written last."""
        return self.folder / f"task-{self.index:05d}.json"


@dataclass(slots=True)
class TaskResult:
    """What a task made of its rows.

    Attributes:
        shards: entries for `index.json`; none when every row was dropped.
        rows: rows read.
        drops: rows dropped, by reason; `named` holds some of them, one line each.
        lost: question-answer pairs that are lost with them: source of the video -> reason -> pairs.
            Of the LLaVA collections the source is "".
        changed: texts of kept rows that something was left out of, by what it was.
        text_bytes: bytes of text of all samples.
        durations: video -> seconds, of the samples' videos.
        examples: a few samples as a person reads them.
    """

    index: int
    shards: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    lost: dict[str, dict[str, int]] = field(default_factory=dict)
    named: list[str] = field(default_factory=list)
    changed: dict[str, int] = field(default_factory=dict)
    text_bytes: int = 0
    durations: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


def done_tasks(folder: Path) -> list[str]:
    """The names of the records of finished tasks in a folder."""
    return sorted(path.name for path in folder.glob("task-*.json"))


def read_record(task: ShardTask) -> TaskResult | None:
    """The result of a task that was finished earlier, or None."""
    try:
        return TaskResult(**json.loads(task.record.read_bytes()))
    except FileNotFoundError:
        return None


def run_task(task: ShardTask) -> TaskResult:
    """Write the task's shards and then its record; the first task of a part also draws a picture of
    its images.
    """
    result, drops, changed = TaskResult(task.index), Counter[str](), Counter[str]()
    pictures: list[bytes] = []

    def rows() -> Iterator[dict[str, Any]]:
        for name, sample in _samples(task, changed):
            result.rows += 1
            if isinstance(sample, Sample) and sum(map(len, sample.images)) > ROW_LIMIT:
                sample = Dropped(
                    "row too large", f"{sum(map(len, sample.images)):,} bytes of images"
                )
            if not isinstance(sample, Sample):
                drops[sample.reason] += 1
                source = name.partition("/")[0] if isinstance(task.rows, ConversationRows) else ""
                of_source = result.lost.setdefault(source, {})
                of_source[sample.reason] = of_source.get(sample.reason, 0) + _pairs(sample)
                if len(result.named) < NAMED_DROPS and sample.reason not in EXPECTED_DROPS:
                    result.named.append(f"{name}: {sample}")
                continue
            result.text_bytes += sum(len(turn["value"].encode()) for turn in sample.conversations)
            if len(result.examples) < EXAMPLES:
                result.examples.append(example_row(sample))
            if task.index == 0:
                pictures.extend(sample.images[: PICTURES - len(pictures)])
            if sample.video:
                result.durations[sample.video] = sample.duration
            yield encode(sample)

    result.shards = write_shards(task.folder, f"shard.{task.index:05d}", rows())
    result.drops = dict(sorted(drops.items()))
    result.changed = {what: count for what, count in sorted(changed.items()) if count}
    if pictures:
        (task.folder / PICTURE).write_bytes(contact_sheet(pictures))
    with writing_file(task.record, durable=False) as temporary:
        temporary.write_text(json.dumps(asdict(result)))
    return result


def _pairs(lost: Dropped | RefusedImage) -> int:
    """Question-answer pairs that are lost with a row."""
    return lost.rows if isinstance(lost, Dropped) else 1


def _samples(
    task: ShardTask, changed: Counter[str]
) -> Iterator[tuple[str, Sample | Dropped | RefusedImage]]:
    """Each row's name, and its sample or the reason why it has none.

    Args:
        changed: counts what of the text was left out.
    """
    if isinstance(task.rows, LlavaRows):
        return _llava_samples(task, task.rows, changed)
    return _long_samples(task, task.rows)


def _llava_samples(
    task: ShardTask, rows: LlavaRows, changed: Counter[str]
) -> Iterator[tuple[str, Sample | Dropped | RefusedImage]]:
    storage = task.storage
    present: dict[str, float | None] = {}

    def read_image(name: str) -> bytes:
        try:
            data = storage.read_bytes(f"{layout.ONEVISION_IMAGES}/{name}")
        except FileNotFoundError:
            raise Dropped("image missing", name) from None
        except (IsADirectoryError, NotADirectoryError):
            raise Dropped("image missing", f"{name} is not a file") from None
        return stored_image(data, task.images)

    def video_duration(name: str) -> float | None:
        if name not in present:
            present[name] = 0.0 if storage.exists(f"{layout.LLAVA_VIDEO_FILES}/{name}") else None
        return present[name]

    with ExitStack() as stack:
        data = {
            int(index): stack.enter_context(mapped(storage.local(rows.names[index])))
            for index in np.unique(rows.places[:, 0])
        }
        for index, ordinal, begin, end in rows.places.tolist():
            row = parse_row(data[index], begin, end)
            file = rows.names[index].partition("/annotations/")[2]
            name = f"{file.removesuffix('.json').removesuffix('.jsonl')}#{ordinal}"
            if row and row.get("id") not in (None, ""):
                name += f":{row['id']}"
            try:
                left_out = Counter[str]()
                sample = to_sample(row, task.kind, name, read_image, video_duration, left_out)
                changed.update(left_out)
                yield name, sample
            except (Dropped, RefusedImage) as reason:
                yield name, reason


def _long_samples(
    task: ShardTask, rows: ConversationRows
) -> Iterator[tuple[str, Sample | Dropped]]:
    with pq.ParquetFile(task.storage.local(rows.name)) as file:
        first = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            start, stop = max(rows.start - first, 0), min(rows.stop - first, size)
            first += size
            if start >= stop:
                continue
            columns = ["id", "video", "duration", "conversations"]
            for row in file.read_row_group(group, columns).slice(start, stop - start).to_pylist():
                sample = Sample(
                    id=row["id"],
                    kind=LONG_VIDEO_KIND,
                    modality="video",
                    conversations=orjson.loads(row["conversations"]),
                    video=row["video"],
                    duration=row["duration"],
                )
                broken = broken_rule(sample) or text_fault(sample)
                pairs = max(len(sample.conversations) // 2, 1)
                yield (
                    row["id"],
                    Dropped("row breaks the sample schema", broken, pairs) if broken else sample,
                )
