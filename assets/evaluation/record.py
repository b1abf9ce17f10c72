"""Answers on disk: a journal while questions are asked, a Parquet file when all are answered."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from assets.evaluation.report import Answer
from model.atomic import writing_file


class Journal:
    """Answers so far, one JSON line each, after a first line that says what they answer."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.answers: dict[str, Answer] = {}

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read()
        self._file = open(self.path, "r+b" if kept else "wb")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._line({"identity": self.identity})
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self.answers[answer.id] = answer
            self._line(asdict(answer))
        self._file.flush()
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        self.path.unlink()

    def _line(self, value: Any) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")

    def _read(self) -> int:
        """Take over an earlier journal of the same identity; the number of its bytes that are whole
        lines.
        """
        if not self.path.exists():
            return 0
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        if not whole or json.loads(whole[0]) != {"identity": self.identity}:
            return 0
        for line in whole[1:]:
            answer = _answer(json.loads(line))
            self.answers[answer.id] = answer
        return sum(len(line) + 1 for line in whole)


def _answer(values: dict[str, Any]) -> Answer:
    return Answer(
        **{**values, "choices": tuple(values["choices"]), "scores": tuple(values["scores"])}
    )


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "form")]
    + [("duration", pa.float64())]
    + [(name, pa.string()) for name in ("prompt", "expected", "chosen", "generated")]
    + [("correct", pa.bool_()), ("written_correct", pa.bool_())]
    + [
        ("choices", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("problem", pa.string()),
    ]
)


def write_answers(path: Path, answers: Sequence[Answer], identity: str) -> None:
    """Publish finished answers under their final name."""
    table = pa.Table.from_pylist([asdict(answer) for answer in answers], SCHEMA)
    with writing_file(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"identity": identity}), temporary)


def read_answers(path: Path, identity: str) -> list[Answer] | None:
    """Finished answers to the same questions by the same checkpoint; None where there are none."""
    if not path.exists():
        return None
    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"identity") != identity.encode():
        return None
    return [_answer(row) for row in table.to_pylist()]
