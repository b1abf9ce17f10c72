"""Questions about long videos that are never trained on, made of the deployment's own rows.

Which videos these are is decided by a hash of their names (`is_held_out`). Their rows are cleaned
as those that are trained on. A row with lettered options in its text is asked with them. Any other
is asked with the answers of other rows of its kind to choose from, where there are any: what counts
is whether its own answer is the likeliest, which needs no judge.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq

from assets.annotations.catalogue import PresentVideo, present_videos
from assets.conversations.cleaning import clean
from assets.conversations.part_rows import PartRows
from assets.deployment.parts import is_held_out, part_index
from assets.deployment.settings import Settings
from assets.evaluation.questions import LETTERS, EvaluationQuestion, write_questions
from training.formats import layout
from training.formats.hashing import hash_file, stable_hash
from training.formats.storage import Storage

OTHER_ANSWERS = 3  # to choose from, besides the right one
_OPTION = re.compile(r"^\s*\(?(?P<letter>[A-Z])[.):]\s+(?P<text>\S.*?)\s*$")
_CHOSEN = re.compile(r"^\s*\(?(?P<letter>[A-Z])(?:[.):]+\s*(?P<text>.*?))?\s*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class HeldOutReport:
    """The questions.

    Attributes:
        version: hash of their file.
        counts: `questions`, `videos`, and questions by form.
        videos: a row for each video: its name, minutes and questions.
    """

    version: str
    counts: dict[str, int]
    videos: list[dict[str, str | int | float]]


def write_held_out(storage: Storage, settings: Settings, parts: Sequence[str]) -> HeldOutReport:
    """Write `layout.HELD_OUT`: the questions about held-out videos that are there.

    Paths in it count from the root. They stand in the order of a hash, so that the first so many
    are about many videos.

    Raises:
        ValueError: no question is left; says what to do.
    """
    questions: list[EvaluationQuestion] = []
    for part in parts:
        there = {
            video.video: video
            for video in present_videos(storage, settings, part)
            if is_held_out(video.video, settings.held_out_share)
        }
        questions += _questions(storage, part_index(part), there, settings.shards.seed)
    if not questions:
        raise ValueError(
            f"no question is held out: no video that is there, with usable rows, is among the "
            f"{settings.held_out_share:.0%} of evaluation.held_out_share; raise it, or name a "
            "questions file in evaluation.questions"
        )
    questions.sort(key=lambda question: (stable_hash("held out", question.id), question.id))
    questions = with_choices(questions)
    with storage.writing(layout.HELD_OUT) as temporary:
        write_questions(temporary, questions)
        version = hash_file(temporary)
    by_video: dict[str, list[EvaluationQuestion]] = defaultdict(list)
    for question in questions:
        by_video[question.path].append(question)
    forms = {f"with {form}": 0 for form in ("options", "candidates")} | {"open": 0}
    for question in questions:
        forms[question.form if question.form == "open" else f"with {question.form}"] += 1
    rows: list[dict[str, str | int | float]] = [
        {"video": path, "minutes": round((asked[0].duration or 0) / 60, 1), "questions": len(asked)}
        for path, asked in sorted(by_video.items())
    ]
    return HeldOutReport(
        version, {"questions": len(questions), "videos": len(by_video), **forms}, rows
    )


def _questions(
    storage: Storage, part: int, there: Mapping[str, PresentVideo], seed: str
) -> Iterator[EvaluationQuestion]:
    """The usable rows about some videos of a part, without anything to choose from but the options
    in their text.
    """
    path = storage.local(layout.ANNOTATIONS)
    durations = {name: video.duration for name, video in there.items()}
    with pq.ParquetFile(path) as source:
        rows = PartRows(path, source, part)
        order = np.array([stable_hash("held out", name) for name in rows.names], np.uint64)
        for table in rows.buckets(order):
            kept, _ = clean(table, durations, rows.names, seed)
            for number in kept.order.tolist():
                video = there[rows.names[kept.codes[number]]]
                name = kept.question_ids[number] or str(number)
                text, answer = kept.questions[number], kept.answers[number]
                stem, options, chosen = split_options(text, answer)
                yield EvaluationQuestion(
                    id=f"{video.video}: {name}",
                    media="video",
                    path=video.rel,
                    question=stem,
                    answer=chosen,
                    options=options,
                    task=kept.kinds[number] or "",
                    duration=video.duration,
                )


def split_options(text: str, answer: str) -> tuple[str, tuple[str, ...], str]:
    """(the question, its lettered options, the right one of them) of a row whose text ends with
    them; what it was, without options, where it does not or the answer is none of them.
    """
    lines = text.strip().splitlines()
    options: list[str] = []
    for start in range(1, len(lines)):
        found = [_OPTION.match(line) for line in lines[start:]]
        letters = "".join(match["letter"] for match in found if match)
        if len(letters) == len(found) > 1 and LETTERS.startswith(letters):
            options = [match["text"] for match in found if match]
            break
    chosen = _CHOSEN.match(answer)
    if options and chosen and len(set(options)) == len(options):
        place = LETTERS.index(chosen["letter"])
        if place < len(options) and (chosen["text"] or options[place]) == options[place]:
            return "\n".join(lines[:start]), tuple(options), options[place]
    return text, (), answer


def with_choices(questions: Sequence[EvaluationQuestion]) -> list[EvaluationQuestion]:
    """The questions, those without options with answers of others of their kind to choose from."""
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for question in questions:
        if not question.options:
            answers[question.task].setdefault(question.answer.casefold(), question.answer)
    return [
        question if question.options else _with_candidates(question, answers[question.task])
        for question in questions
    ]


def _with_candidates(
    question: EvaluationQuestion, answers: Mapping[str, str]
) -> EvaluationQuestion:
    others = [text for key, text in answers.items() if key != question.answer.casefold()]
    others.sort(key=lambda text: stable_hash("candidate", question.id, text))
    if not others:
        return question
    chosen = [question.answer, *others[:OTHER_ANSWERS]]
    chosen.sort(key=lambda text: stable_hash("place", question.id, text))
    return replace(question, candidates=tuple(chosen))
