"""The starting point and the three stages side by side, on held-out questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from assets.evaluation.difference import what_was_different
from assets.evaluation.earlier import Scores, compared_with, earlier_scores, previous_scores
from assets.evaluation.gallery import GALLERY, gallery_html
from assets.evaluation.media import STAMPS
from assets.evaluation.questions import EvaluationQuestion, read_questions
from assets.evaluation.report import (
    EvaluationReport,
    accuracy_table,
    example_question,
    interval_text,
)
from assets.evaluation.score import score_checkpoint
from assets.inference.decoders import VideoDecoders
from assets.records.lineage import Lineage, origin_name, product
from training.formats import layout
from training.formats.hashing import data_version, hash_file
from training.formats.storage import Storage

LAST = "stage3"  # every variant ends with it


@dataclass(slots=True)
class Comparison:
    """What the evaluation asset tells.

    Attributes:
        version: hash of the checkpoints, the questions and their media, and which could be asked.
        folder: where the answers and the summary lie below the storage root.
        files: these, relative to the root.
        origins: the questions file and its hash.
        counts: questions, asked, not askable, about damaged videos.
        table: accuracies, a row for each checkpoint and kind of question.
        example: one question with the last checkpoint's own words, row by row.
        accuracy: share that the last checkpoint answered right.
        blind_accuracy: the same with nothing shown.
        previous: the last checkpoint against the one before it, on the same questions; empty where
            there is none.
        interval: of `accuracy`.
        difference: what the checkpoint before was made from otherwise.
    """

    version: str
    folder: str
    files: list[str]
    origins: dict[str, str]
    counts: dict[str, int]
    table: list[dict[str, Any]]
    example: list[dict[str, Any]]
    accuracy: float
    blind_accuracy: float
    previous: list[dict[str, Any]]
    interval: str = ""
    difference: list[dict[str, Any]] = field(default_factory=list)


def compare_checkpoints(
    storage: Storage,
    variant: str,
    checkpoints: Sequence[str],
    questions_file: Path | None,
    log: Callable[[str], None],
    *,
    below_root: bool = False,
    limit: int | None = None,
    device: str = "auto",
    scratch: Path,
) -> Comparison:
    """Ask checkpoints of a variant the held-out questions, and the last one also with nothing
    to see.

    Answers go to `evaluation/<variant>/<checkpoint>[_blind].parquet`, accuracies to `summary.json`
    and a page of the questions and their answers (`gallery.html`) beside them.

    Args:
        checkpoints: the assets that hold them, `LAST` at the end.
        questions_file: its media lie beside it.
        below_root: the questions' paths count from the root instead.
        limit: ask only the first so many.
        device: `auto`, `cpu` or `cuda`.
        scratch: local folder for answers in progress, where the storage is remote.

    Raises:
        ValueError: the settings name no questions, or the file is not one.
        FileNotFoundError: a checkpoint is not there yet.
    """
    questions_file, questions, media = open_questions(storage, questions_file, below_root, limit)
    folder = layout.evaluation(variant)
    records = {name: Lineage.read(storage, product(name, variant)) for name in checkpoints}
    reports, files = [], []
    decoders = VideoDecoders()
    for (name, visuals), local in answer_files(storage, variant, checkpoints, scratch).items():
        # A remote export is fetched when its turn comes.
        export = storage.local_folder(f"{records[name].folder}/export")
        report = score_checkpoint(
            export,
            questions,
            media,
            local,
            log,
            name=name,
            visuals=visuals,
            write=visuals and name == LAST,
            device=device,
            decoders=decoders,
            stamps=local_root(storage, scratch) / STAMPS,
        )
        if not storage.is_local:
            storage.write_bytes(f"{folder}/{local.name}", local.read_bytes())
        log(f"{report.label}: {report.accuracy:.1%} right, chance {report.chance:.1%}")
        reports.append(report)
        files.append(f"{folder}/{local.name}")
    page = gallery_html(questions, reports, media, log)
    storage.write_bytes(f"{folder}/{GALLERY}", page.encode())
    files.append(f"{folder}/{GALLERY}")
    checkpoint = records[LAST].version
    return _summarise(storage, folder, files, questions_file, questions, reports, checkpoint)


def local_root(storage: Storage, scratch: Path) -> Path:
    """Where files of an evaluation are while it runs: the storage's own folder, or `scratch` where
    the storage is remote.
    """
    return Path(storage.root) if storage.is_local else scratch


def answer_files(
    storage: Storage, variant: str, checkpoints: Sequence[str], scratch: Path
) -> dict[tuple[str, bool], Path]:
    """The local files that take the answers, in the order in which they are made: of which
    checkpoint, and whether it sees something.

    Args:
        scratch: local folder for them, where the storage is remote.
    """
    local = local_root(storage, scratch) / layout.evaluation(variant)
    seeing = {(name, True): local / f"{name}.parquet" for name in checkpoints}
    return seeing | {(LAST, False): local / f"{LAST}_blind.parquet"}


def open_questions(
    storage: Storage, questions_file: Path | None, below_root: bool, limit: int | None
) -> tuple[Path, list[EvaluationQuestion], Path]:
    """The questions file, what is asked of it, and the folder that its media's paths count from.

    Raises:
        ValueError: the settings name no questions, or the file is not one.
    """
    if questions_file is None:
        raise ValueError(
            "the settings name no questions; set evaluation.questions to a questions file"
        )
    questions = read_questions(questions_file)[:limit]
    media = Path(storage.root) if below_root and storage.is_local else questions_file.parent
    if below_root and not storage.is_local:
        questions = [replace(asked, path=str(storage.local(asked.path))) for asked in questions]
    return questions_file, questions, media


def _summarise(
    storage: Storage,
    folder: str,
    files: Sequence[str],
    questions_file: Path,
    questions: Sequence[EvaluationQuestion],
    reports: Sequence[EvaluationReport],
    checkpoint: str,
) -> Comparison:
    """Write `summary.json`, which also remembers what earlier checkpoints scored.

    Args:
        files: with the answers, relative to the root.
        reports: of the checkpoints, and the blind one last.
        checkpoint: version of the last checkpoint's weights.
    """
    *seen, blind = reports
    last = seen[-1]
    rows = accuracy_table(seen, blind)
    now = Scores(
        checkpoint=checkpoint,
        questions=data_version([answer.version for answer in last.asked]),
        accuracy={row["questions"]: row[LAST] for row in rows},
    )
    name = f"{folder}/summary.json"
    earlier = earlier_scores(storage.read_json(name) if storage.exists(name) else None, now)
    before = previous_scores(earlier, now)
    comparison = Comparison(
        version=data_version([report.version for report in reports]),
        folder=folder,
        files=[*files, name],
        origins={origin_name(storage, questions_file): hash_file(questions_file)},
        counts={
            "questions": len(questions),
            "asked": len(last.asked),
            "not askable": len(questions) - len(last.asked),
            "about damaged videos": sum(bool(answer.damage) for answer in last.asked),
        },
        table=rows,
        example=example_question(last.asked),
        accuracy=last.accuracy,
        blind_accuracy=blind.accuracy,
        previous=compared_with(before, now) if before else [],
        interval=interval_text(sum(answer.correct for answer in last.asked), len(last.asked)),
        difference=what_was_different(storage, before.checkpoint, checkpoint) if before else [],
    )
    summary = {
        "version": comparison.version,
        "questions": questions_file.name,
        "accuracy": rows,
        "example": comparison.example,
        "scores": asdict(now),
        "earlier": [asdict(scores) for scores in earlier],
    }
    storage.write_json(name, summary)
    return comparison
