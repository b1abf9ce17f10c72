"""What a checkpoint answered: one answer, the journal while questions are asked, and the Parquet
file when all are answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from model.atomic import writing_file


@dataclass(frozen=True, slots=True)
class Answer:
    """What a checkpoint answered to one question.

    Attributes:
        id: the question's.
        task: the question's, as is `form`, the `expected` answer and the `choices`.
        duration: seconds of the video; None without one.
        prompt: the human turn as the model read it, with its chat template.
        chosen: the most likely choice, or the generated text of an open question.
        generated: what the model wrote by itself; its start where it is long.
        correct: whether `chosen` is right.
        written_correct: whether what it wrote is the right answer, read by the rules of
            `grading.py`.
        scores: log-probability of each choice; empty for open questions.
        problem: why the question could not be asked; it then counts neither way.
        damage: what is wrong with the video; empty where nothing shows.
        version: hash of what it answers: the question and the bytes of its media.
    """

    id: str
    task: str
    form: str
    duration: float | None
    prompt: str
    expected: str
    chosen: str
    generated: str
    correct: bool
    written_correct: bool
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    problem: str = ""
    damage: str = ""
    version: str = ""


SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("form", pa.string()),
        ("duration", pa.float64()),
        ("prompt", pa.string()),
        ("expected", pa.string()),
        ("chosen", pa.string()),
        ("generated", pa.string()),
        ("correct", pa.bool_()),
        ("written_correct", pa.bool_()),
        ("choices", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("problem", pa.string()),
        ("damage", pa.string()),
        ("version", pa.string()),
    ]
)


def journal_of(answers_file: Path) -> Path:
    """Where answers are kept until a file of them is finished."""
    return answers_file.with_suffix(".journal.jsonl")


def answered(files: Iterable[Path]) -> list[tuple[int, int]]:
    """How far files of answers are: when each was finished, in ns, and how many answers its journal
    holds. It is another value as soon as something is answered.
    """

    def look_up(file: Path) -> tuple[int, int]:
        journal = journal_of(file)
        lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        return file.stat().st_mtime_ns if file.exists() else 0, max(0, lines - 1)

    return [look_up(file) for file in files]


class AnswerJournal:
    """Answers so far, one JSON line each, after a first line that says what they answer.

    Args:
        identity: hash of the checkpoint and of how it is asked; a journal of another identity is
            begun anew.

    Attributes:
        answers: by the id of their question, the last one to it.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.answers: dict[str, Answer] = {}

    def __enter__(self) -> AnswerJournal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read()
        self._file = open(self.path, "r+b" if kept else "wb")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._write_line({"identity": self.identity})
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answers: Iterable[Answer]) -> None:
        """Append answers; they are on the disk when this returns."""
        for answer in answers:
            self.answers[answer.id] = answer
            self._write_line(asdict(answer))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """Delete the file, once its answers are published."""
        self.path.unlink()

    def _write_line(self, value: Any) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")

    def _read(self) -> int:
        """Take over an earlier journal of the same identity; the number of its bytes that are whole
        lines.
        """
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        # A kill in the middle of a write leaves half a line at the end.
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        if not whole or json.loads(whole[0]) != {"identity": self.identity}:
            return 0
        for line in whole[1:]:
            answer = _answer(json.loads(line))
            self.answers[answer.id] = answer
        return sum(len(line) + 1 for line in whole)


def write_answers(path: Path, answers: Sequence[Answer], identity: str) -> None:
    """Publish finished answers under their final name."""
    table = pa.Table.from_pylist([asdict(answer) for answer in answers], SCHEMA)
    with writing_file(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"identity": identity}), temporary)


def read_answers(path: Path, identity: str) -> list[Answer]:
    """Finished answers of the same checkpoint, asked in the same way; none where there are none."""
    if not path.exists():
        return []
    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"identity") != identity.encode():
        return []
    return [_answer(row) for row in table.to_pylist()]


def _answer(values: dict[str, Any]) -> Answer:
    lists = {name: tuple(values[name]) for name in ("choices", "scores")}
    return Answer(**{**values, **lists})
