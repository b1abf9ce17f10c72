"""One checkpoint's answers to questions: batched, resumable, every prompt and answer on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from assets.evaluation.answers import chosen_option, same_answer
from assets.evaluation.questions import Question
from assets.evaluation.record import Journal, read_answers, write_answers
from assets.evaluation.report import Answer, EvaluationReport
from assets.inference.checkpoint import fingerprint
from training.formats.hashing import data_version
from training.progress import Progress

if TYPE_CHECKING:
    from assets.evaluation.examiner import Examiner

METHOD = 2  # raise when the way of scoring changes: earlier answers are then not continued
BATCH = 8


def score_checkpoint(
    export: Path,
    questions: Sequence[Question],
    media: Path,
    answers_file: Path,
    log: Callable[[str], None],
    *,
    name: str = "",
    visuals: bool = True,
    write: bool = True,
    batch: int = BATCH,
    device: str = "auto",
) -> EvaluationReport:
    """Ask a checkpoint every question and write the answers to a Parquet file.

    What was answered before an interruption is kept in a journal beside the file and not asked
    again. A finished file of the same checkpoint and questions is read back.

    Args:
        export: an export folder, or a released checkpoint.
        media: folder that the questions' paths count from.
        visuals: False shows grey pictures in place of the real ones, to tell seeing from guessing.
        write: let the model also write its answers, beside rating the given ones.
        batch: questions that pass the model together; those about one video follow each other.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: not a checkpoint. Media that cannot be read are problems of their questions.
    """
    from assets.evaluation.examiner import Examiner

    identity = data_version(
        [METHOD, fingerprint(export), [asdict(question) for question in questions], visuals, write],
    )
    label = f"{name or export.parent.name}{'' if visuals else ', nothing shown'}"
    if (finished := read_answers(answers_file, identity)) is not None:
        log(f"{label}: already answered")
        return EvaluationReport(name, visuals, finished, identity)
    with Journal(answers_file.with_suffix(".journal.jsonl"), identity) as journal:
        open_questions = [question for question in questions if question.id not in journal.answers]
        if journal.answers:
            log(
                f"{label}: {len(journal.answers)} of {len(questions)} answers found from an "
                "interrupted run"
            )
        if open_questions:
            examiner = Examiner(export, media, visuals=visuals, device=device)
            progress = Progress(log, len(open_questions), f"answers of {label}")
            for group in _batches(open_questions, batch):
                journal.add(_ask(examiner, group, write))
                progress.advance(len(group))
    answers = [journal.answers[question.id] for question in questions]
    write_answers(answers_file, answers, identity)
    journal.remove()
    return EvaluationReport(name, visuals, answers, identity)


def _ask(examiner: Examiner, group: Sequence[Question], write: bool) -> list[Answer]:
    replies = examiner.ask(group, write)
    answers = []
    for question, reply in zip(group, replies, strict=True):
        chosen, correct = reply.generated, same_answer(reply.generated, question.answer)
        if question.choices and reply.scores:
            chosen = question.choices[max(range(len(reply.scores)), key=reply.scores.__getitem__)]
            correct = chosen == question.answer
        answers.append(
            Answer(
                id=question.id,
                task=question.task,
                form=question.form,
                duration=reply.duration if question.duration is None else question.duration,
                prompt=reply.prompt,
                expected=question.answer,
                chosen=chosen,
                generated=reply.generated,
                correct=correct and not reply.problem,
                written_correct=_written_correct(question, reply.generated) and not reply.problem,
                choices=question.choices,
                scores=tuple(reply.scores),
                problem=reply.problem,
            )
        )
    return answers


def _written_correct(question: Question, text: str) -> bool:
    if question.form == "options":
        index = chosen_option(text, question.options)
        return index is not None and question.options[index] == question.answer
    return same_answer(text, question.answer)


def _batches(questions: Iterable[Question], size: int) -> list[list[Question]]:
    """Questions about one medium stand together, so that it is decoded once."""
    ordered = sorted(questions, key=lambda question: question.path)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
