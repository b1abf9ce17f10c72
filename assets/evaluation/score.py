"""One checkpoint's answers to questions: batched, resumable, every prompt and answer on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from assets.evaluation.answers import Answer, AnswerJournal, journal_of, read_answers, write_answers
from assets.evaluation.grading import is_right, same_answer
from assets.evaluation.media import question_versions
from assets.evaluation.questions import EvaluationQuestion
from assets.evaluation.report import EvaluationReport
from assets.inference.checkpoint import checkpoint_hash
from assets.inference.decoders import VideoDecoders
from assets.inference.prompts import Prompt, RememberedVideo
from assets.inference.session import Session
from assets.inference.subtitles import read_subtitles
from model.conversation import IMAGE
from training.formats.hashing import data_version
from training.progress import Progress

METHOD = 3  # raise when the way of scoring changes: earlier answers are then not continued
BATCH = 8
# Tokens that are generated, by the form of the question.
LONGEST_ANSWER = {"options": 32, "candidates": 16, "open": 64}


def score_checkpoint(
    export: Path,
    questions: Sequence[EvaluationQuestion],
    media: Path,
    answers_file: Path,
    log: Callable[[str], None],
    *,
    name: str = "",
    visuals: bool = True,
    write: bool = True,
    batch: int = BATCH,
    device: str = "auto",
    decoders: VideoDecoders | None = None,
    stamps: Path | None = None,
) -> EvaluationReport:
    """Ask a checkpoint every question and write the answers to a Parquet file.

    What was answered before, in this file or in the journal that an interruption leaves beside it,
    is not asked again while the checkpoint, the question and the bytes of its media are the same.
    What could not be asked is asked again.

    Args:
        export: an export folder, or a released checkpoint.
        media: folder that the questions' paths count from.
        name: of the checkpoint, in the log and the report.
        visuals: False shows grey pictures in place of the real ones, to tell seeing from guessing.
        write: let the model also write its answers, beside rating the given ones.
        batch: questions that pass the model together; those about one video follow each other.
        device: `auto`, `cpu` or `cuda`.
        decoders: of its videos, which several checkpoints may share; its own by default.
        stamps: file of what is remembered of the media, which several checkpoints may share; one
            beside the answers by default.

    Raises:
        ValueError: not a checkpoint. Media that cannot be read are problems of their questions.
    """
    identity = data_version([METHOD, checkpoint_hash(export), visuals, write])
    label = f"{name or export.parent.name}{'' if visuals else ', nothing shown'}"
    stamps = stamps or answers_file.with_suffix(".stamps.json")
    versions = question_versions(questions, media, stamps)
    finished = read_answers(answers_file, identity)
    with AnswerJournal(journal_of(answers_file), identity) as journal:
        known = {
            answer.id: answer
            for answer in (*finished, *journal.answers.values())
            if not answer.problem and answer.version == versions.get(answer.id)
        }
        unanswered = [question for question in questions if question.id not in known]
        if not unanswered:
            log(f"{label}: already answered")
        else:
            if known:
                log(f"{label}: {len(known)} of {len(questions)} answers found from an earlier run")
            session = Session(export, device, decoders)
            progress = Progress(log, len(unanswered), f"answers of {label}")
            # Cut before what is known is left out: who goes on asks in the same batches.
            for group in _batches(questions, batch):
                if left := [question for question in group if question.id not in known]:
                    asked = ask_together(session, left, media, visuals=visuals, write=write)
                    found = [replace(one, version=versions[one.id]) for one in asked]
                    journal.add(found)
                    known |= {answer.id: answer for answer in found}
                    progress.advance(len(left))
    answers = [known[question.id] for question in questions]
    if answers != finished:
        write_answers(answers_file, answers, identity)
    journal.remove()
    told = [[answer.version, bool(answer.problem)] for answer in answers]
    return EvaluationReport(name, visuals, answers, data_version([identity, told]))


def ask_together(
    session: Session,
    questions: Sequence[EvaluationQuestion],
    media: Path,
    *,
    visuals: bool = True,
    write: bool = True,
) -> list[Answer]:
    """Answers to a batch of questions, in their order. The prompts pass the model once.

    A medium that cannot be read is a problem of its questions only, and so is a question that is
    too long for the model.

    Args:
        media: folder that the questions' paths count from.
        visuals: False shows grey pictures of the same number and size.
        write: let the model also write an answer of its own; open questions have no other.
    """
    prompts: dict[str, Prompt] = {}
    answers: dict[str, Answer] = {}
    videos: dict[str, RememberedVideo | None] = {}
    for question in questions:
        try:
            prompt, videos[question.id] = question_prompt(session, question, media, visuals)
            session.check(prompt)
        except (ValueError, OSError) as error:
            answers[question.id] = _unasked(question, f"{question.path}: {error}".lstrip(": "))
        else:
            prompts[question.id] = prompt
    if prompts:
        asked = [question for question in questions if question.id in prompts]
        cached = session.read(list(prompts.values()))
        writing = [question for question in asked if write or question.form == "open"]
        longest = max((LONGEST_ANSWER[question.form] for question in writing), default=0)
        written = cached.generate(longest)
        # An open question has no choices: one stand-in keeps the batch in shape, and its score is
        # dropped again.
        rated = [
            [[*session.ids(text), session.end] for text in question.answer_texts] or [[session.end]]
            for question in asked
        ]
        for question, ids, scores in zip(asked, written, cached.scores(rated), strict=True):
            answers[question.id] = _graded(
                question,
                prompt=session.prompt_text(prompts[question.id]),
                generated=session.text(ids).strip() if question in writing else "",
                scores=scores if question.choices else [],
                video=videos[question.id],
            )
    return [answers[question.id] for question in questions]


def question_prompt(
    session: Session, question: EvaluationQuestion, media: Path, visuals: bool = True
) -> tuple[Prompt, RememberedVideo | None]:
    """The question as a prompt, and its video.

    Raises:
        ValueError: the medium cannot be used.
        OSError: it cannot be read.
    """
    if question.media == "text":
        return session.prompt(question.prompt, id=question.id), None
    path, text = media / question.path, f"{IMAGE}\n{question.prompt}"
    if question.media == "image":
        return session.prompt(text, images=[path], grey=not visuals, id=question.id), None
    video = session.video(path, grey=not visuals)
    if question.subtitles:
        cues = read_subtitles(media / question.subtitles)
        text = f"{IMAGE}\n{session.subtitled(question.prompt, video, cues)}"
    return session.prompt(text, video=video, id=question.id), video


def _graded(
    question: EvaluationQuestion,
    *,
    prompt: str,
    generated: str,
    scores: Sequence[float],
    video: RememberedVideo | None,
) -> Answer:
    duration = None if video is None else video.duration
    if scores:
        chosen = question.choices[max(range(len(scores)), key=scores.__getitem__)]
        correct = chosen == question.answer
    else:
        chosen, correct = generated, same_answer(generated, question.answer)
    return Answer(
        id=question.id,
        task=question.task,
        form=question.form,
        duration=duration if question.duration is None else question.duration,
        prompt=prompt,
        expected=question.answer,
        chosen=chosen,
        generated=generated,
        correct=correct,
        written_correct=is_right(question, generated),
        choices=question.choices,
        scores=tuple(scores),
        damage="" if video is None else video.damage,
    )


def _unasked(question: EvaluationQuestion, problem: str) -> Answer:
    return Answer(
        id=question.id,
        task=question.task,
        form=question.form,
        duration=question.duration,
        prompt="",
        expected=question.answer,
        chosen="",
        generated="",
        correct=False,
        written_correct=False,
        choices=question.choices,
        problem=problem,
    )


def _batches(questions: Sequence[EvaluationQuestion], size: int) -> list[list[EvaluationQuestion]]:
    """Questions about one medium stand together, so that it is read once."""
    ordered = sorted(questions, key=lambda question: question.path)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
