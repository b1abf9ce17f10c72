"""Questions about all described videos of a source: written, checked, balanced, judged, published.

Everything is put together anew each time from answers that are kept: a second run asks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from assets.captions.answerers import make_embedder
from assets.captions.describe import Described
from assets.captions.frames import ClipReader, Look
from assets.captions.own_videos import OwnVideo, own_videos
from assets.captions.tables import known_contents, read_described, write_table
from assets.captions.texts import read_texts, texts_version
from assets.deployment.settings import Settings
from assets.endpoints.asker import Asker, in_parallel
from assets.questions.asked_checks import Examiner
from assets.questions.balance import longest_share, place_options, places, trim_longest
from assets.questions.duplicates import VectorLikeness, WordLikeness, mark_duplicates
from assets.questions.judging import ErrorRate, apply_judgements, read_judgements
from assets.questions.rows import CHOICE, OPEN, Row, table_row
from assets.questions.sheet import frames_html, sample, sheet_csv
from assets.questions.text_checks import text_faults
from assets.questions.texts import QuestionTexts
from assets.questions.write import orders, write_rows
from assets.records.withdrawals import Withdrawals
from training.formats import layout
from training.formats.hashing import data_version
from training.formats.storage import Storage

Log = Callable[[str], None]
REJECTED, SHEET, PAGE = FILES = "rejected.parquet", "sheet.csv", "frames.html"
PAGE_FRAMES, PAGE_SIDE = 4, 224

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("data_source", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("question_type", pa.string()),
        ("duration", pa.float64()),
        ("form", pa.string()),
        ("evidence_clips", pa.list_(pa.int32())),
        ("evidence_start", pa.float64()),
        ("evidence_end", pa.float64()),
        ("reasons", pa.list_(pa.string())),
        ("model", pa.string()),
        ("texts", pa.string()),
        ("prompt_key", pa.string()),
        ("captions", pa.string()),
        ("judged", pa.string()),
    ]
)


@dataclass(slots=True)
class QuestionReport:
    """What was asked.

    Attributes:
        version: of the rows that are used.
        counts: `rows written`, `rows`, of either form, and `set aside: <reason>`.
        config: what shaped them.
        files: relative to the root.
        rates: error rates by a person's verdicts.
        verdicts: of them, by kind.
        places: how often each option is the right one.
        longest: share of rows whose right option is the longest one.
        tasks: a row for each topic and task.
        examples: a few rows.
        answers: what became of the questions to the models.
    """

    version: str
    counts: dict[str, int]
    config: dict[str, Any]
    files: list[str]
    rates: list[ErrorRate] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=dict)
    places: list[dict[str, Any]] = field(default_factory=list)
    longest: float = 0.0
    tasks: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


def ask_about_source(
    storage: Storage, settings: Settings, source: str, captions: str, asker: Asker, log: Log
) -> QuestionReport:
    """Write and check rows about every described video of a source.

    Args:
        captions: version of the captions.

    Raises:
        OperatorError: the budget is spent, a sheet cannot be read; as the backends.
        TransferError: an endpoint did not answer in all tries; what it answered is kept.
    """
    chosen = settings.questions
    texts = read_texts("questions.yaml", QuestionTexts, chosen.prompts)
    withdrawn = Withdrawals.read(storage).videos
    described, durations = read_described(storage, source)
    videos = {one.video: one for one in described if one.video not in withdrawn}
    rows, unwritten = _write(asker, texts, list(videos.values()), durations, settings)
    measure = _check(storage, asker, texts, rows, videos, settings, log)
    place_options(rows)
    on_sheet = sample(rows, chosen.sheet_rows)
    own = own_videos(settings, source, withdrawn, log)
    files = _publish_sheet(storage, settings, source, on_sheet, own)
    rates, verdicts = apply_judgements(rows, read_judgements(chosen.judged, source))
    version = texts_version(texts)
    made_by = {"model": asker.backend.model, "texts": version, "captions": captions}
    used = [table_row(row, made_by) for row in rows if not row.reasons]
    aside = [table_row(row, made_by) for row in rows if row.reasons]
    for name, some in (
        (layout.question_rows(source), used),
        (layout.questions(source, REJECTED), aside),
    ):
        write_table(storage, name, some, SCHEMA)
        files.append(name)
    return QuestionReport(
        version=data_version(used),
        counts=_counts(rows, unwritten),
        config={"writer": asker.backend.model, "texts": version, "duplicates by": measure},
        files=files,
        rates=rates,
        verdicts=dict(verdicts),
        places=places(rows),
        longest=longest_share(rows),
        tasks=_tasks(rows),
        examples=[
            {name: str(row[name]) for name in ("video", "question", "options", "answer")}
            for row in used[:5]
        ],
        answers=dict(asker.counts),
    )


def _write(
    asker: Asker,
    texts: QuestionTexts,
    videos: Sequence[Described],
    durations: dict[str, float],
    settings: Settings,
) -> tuple[list[Row], Counter[str]]:
    """All rows as they were written, by id, each once; and why others were not."""
    chosen = settings.questions
    jobs = [
        partial(write_rows, asker, texts, order, chosen.per_task)
        for video in videos
        for order in orders(texts, video, durations[video.video], chosen.window)
    ]
    progress = asker.progress("prompts for rows", len(jobs))
    found = in_parallel(jobs, asker.backend.concurrency, progress)
    rows = {row.id: row for some, _ in found for row in some}
    return [rows[name] for name in sorted(rows)], Counter(why for _, why in found if why)


def _check(
    storage: Storage,
    asker: Asker,
    texts: QuestionTexts,
    rows: list[Row],
    videos: dict[str, Described],
    settings: Settings,
    log: Log,
) -> str:
    """Give every row that does not pass its reasons, what costs nothing first; returns by what
    duplicates were found.
    """
    chosen = settings.questions
    for row in rows:
        row.reasons += [fault for fault in text_faults(row) if fault not in row.reasons]
    measure: WordLikeness | VectorLikeness = WordLikeness()
    if chosen.embedder is not None:
        measure = VectorLikeness(storage, make_embedder(chosen.embedder), asker.ledger, log)
    mark_duplicates(rows, measure, chosen.checks.similar)
    blind, window = chosen.checks.blind_times, chosen.window
    examiners = {
        name: Examiner(asker, texts, video, blind, window) for name, video in videos.items()
    }
    jobs = [partial(examiners[row.video].examine, row) for row in rows if not row.reasons]
    in_parallel(jobs, asker.backend.concurrency, asker.progress("rows checked", len(jobs)))
    trim_longest(rows, chosen.checks.longest_right)
    return measure.name


def _publish_sheet(
    storage: Storage, settings: Settings, source: str, rows: list[Row], own: list[OwnVideo]
) -> list[str]:
    known = known_contents(storage, source)
    videos = {
        one.video: (one.path, known[one.video].sha256)
        for one in own
        if one.video in known and not one.reason
    }
    names = [layout.questions(source, name) for name in (SHEET, PAGE)]
    look = Look(PAGE_FRAMES, PAGE_SIDE, settings.features.limits.max_pixels)
    with ClipReader(look) as reader:
        contents = [sheet_csv(rows), frames_html(rows, videos, reader)]
    for name, content in zip(names, contents, strict=True):
        storage.write_bytes(name, content)
    return names


def _counts(rows: Sequence[Row], unwritten: Counter[str]) -> dict[str, int]:
    used = [row for row in rows if not row.reasons]
    aside = Counter(f"set aside: {row.reasons[0]}" for row in rows if row.reasons)
    return {
        "rows written": len(rows),
        "rows": len(used),
        "open-ended": sum(row.form == OPEN for row in used),
        "multiple choice": sum(row.form == CHOICE for row in used),
        **dict(sorted(aside.items())),
        **{f"prompts without an answer: {why}": n for why, n in sorted(unwritten.items())},
    }


def _tasks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How many rows of each task were written, and are used."""
    written = Counter((row.topic, row.task) for row in rows)
    used = Counter((row.topic, row.task) for row in rows if not row.reasons)
    return [
        {"topic": topic, "task": task, "written": n, "used": used[topic, task]}
        for (topic, task), n in sorted(written.items())
    ]
