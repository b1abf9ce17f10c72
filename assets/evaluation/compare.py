"""The starting point and the three stages side by side, on the questions that the deployment names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from assets.deployment.settings import Settings
from assets.evaluation.earlier import Scores, as_json, comparison, earlier_scores, previous
from assets.evaluation.questions import read_questions
from assets.evaluation.report import Answer, EvaluationReport
from assets.evaluation.score import score_checkpoint
from assets.records.lineage import Lineage, product
from training.formats import layout
from training.formats.hashing import data_version, hash_file
from training.formats.storage import Storage

CHECKPOINTS = ("base_model", "stage1", "stage2", "stage3")


@dataclass(slots=True)
class Comparison:
    """What the evaluation asset tells.

    Attributes:
        folder: where the answers and the summary lie below the storage root.
        origins: the questions file and its hash.
        table: accuracies, a row for each checkpoint and kind of question.
        example: one question with the last checkpoint's own words, as Markdown.
        accuracy: checkpoint -> share answered right; ``<checkpoint> blind`` with nothing shown.
        previous: the last checkpoint against the one before it, on the same questions; empty where
            there is none.
    """

    version: str
    folder: str
    origins: dict[str, str]
    counts: dict[str, int]
    table: list[dict[str, Any]]
    example: str
    accuracy: dict[str, float] = field(default_factory=dict)
    previous: list[dict[str, Any]] = field(default_factory=list)


def compare_checkpoints(
    storage: Storage, settings: Settings, variant: str, log: Callable[[str], None]
) -> Comparison:
    """Ask all checkpoints of a variant the held-out questions, and the last one also with nothing
    to see.

    Answers go to ``evaluation/<variant>/<checkpoint>[_blind].parquet``, accuracies to
    ``summary.json`` beside them.

    Raises:
        ValueError: the settings name no questions, or the file is not one.
        FileNotFoundError: a checkpoint is not there yet.
    """
    path = settings.evaluation.questions
    if path is None:
        raise ValueError(
            "the settings name no questions; set evaluation.questions to a questions file"
        )
    questions = read_questions(path)[: settings.evaluation.limit]
    folder = layout.evaluation(variant)
    seen: list[EvaluationReport] = []
    blind: list[EvaluationReport] = []
    for name in CHECKPOINTS:
        export = storage.local_folder(
            f"{Lineage.read(storage, product(name, variant)).folder}/export"
        )
        for visuals, reports in (
            (True, seen),
            *([(False, blind)] if name == CHECKPOINTS[-1] else []),
        ):
            rel = f"{folder}/{name}{'' if visuals else '_blind'}.parquet"
            file = Path(storage.path(rel)) if storage.is_local else settings.training.scratch / rel
            report = score_checkpoint(
                export,
                questions,
                path.parent,
                file,
                log,
                name=name,
                visuals=visuals,
                write=visuals and name == CHECKPOINTS[-1],
                device=settings.features.device,
            )
            if not storage.is_local:
                storage.write_bytes(rel, file.read_bytes())
            reports.append(report)
            log(
                f"{name}{'' if visuals else ', nothing shown'}: {report.accuracy:.1%} right, "
                f"chance {report.chance:.1%}"
            )
    rows = table(seen, blind[-1])
    version = data_version([report.version for report in (*seen, *blind)])
    asked = seen[-1].asked
    shown = example(asked)
    now = Scores(
        Lineage.read(storage, product(CHECKPOINTS[-1], variant)).version,
        data_version([asdict(question) for question in questions]),
        {row["questions"]: row[CHECKPOINTS[-1]] for row in rows},
    )
    name = f"{folder}/summary.json"
    earlier = earlier_scores(storage.read_json(name) if storage.exists(name) else None, now)
    before = previous(earlier, now)
    summary = {"version": version, "questions": path.name, "accuracy": rows, "example": shown}
    storage.write_json(name, {**summary, "scores": asdict(now), "earlier": as_json(earlier)})
    return Comparison(
        version=version,
        folder=folder,
        origins={str(path): hash_file(path)},
        counts={
            "questions": len(questions),
            "asked": len(asked),
            "not askable": len(questions) - len(asked),
        },
        table=rows,
        example=shown,
        accuracy={report.name: report.accuracy for report in seen}
        | {f"{report.name} blind": report.accuracy for report in blind},
        previous=comparison(before, now) if before else [],
    )


def table(seen: Sequence[EvaluationReport], blind: EvaluationReport) -> list[dict[str, Any]]:
    """A row for each kind of question and each duration, and one for all; a column for each
    checkpoint.

    ``nothing shown`` is the last checkpoint without its visuals, ``gain`` the last one's lead over
    the first.
    """

    def row(
        what: str, parts: Sequence[EvaluationReport], unseeing: EvaluationReport
    ) -> dict[str, Any]:
        return {
            "questions": what,
            "gain": round(parts[-1].accuracy - parts[0].accuracy, 3),
            "asked": len(parts[-1].asked),
            "chance": round(parts[-1].chance, 3),
            **{part.name: round(part.accuracy, 3) for part in parts},
            "nothing shown": round(unseeing.accuracy, 3),
            "written": round(parts[-1].written_accuracy, 3),
        }

    rows = [row("all", seen, blind)]
    for split in (EvaluationReport.by_task, EvaluationReport.by_duration):
        groups = [split(report) for report in seen]
        unseeing = split(blind)
        rows += [
            row(name, [group[name] for group in groups], unseeing[name]) for name in groups[-1]
        ]
    return rows


def example(answers: Sequence[Answer]) -> str:
    """One video question with what the model wrote, preferably one that it got right."""
    videos = [answer for answer in answers if answer.duration is not None] or list(answers)
    if not videos:
        return "No question could be asked."
    shown = next((answer for answer in videos if answer.written_correct), videos[0])
    lines = [
        f"**{shown.id}** ({shown.task})",
        "",
        "```",
        shown.prompt,
        "```",
        "",
        f"answers: {shown.generated!r}",
    ]
    if shown.scores:
        ranked = sorted(zip(shown.scores, shown.choices, strict=True), reverse=True)
        lines += [
            "",
            "likeliest: " + ", ".join(f"{choice} ({score:.1f})" for score, choice in ranked[:3]),
        ]
    lines += ["", f"right answer: {shown.expected}"]
    return "\n".join(lines)
