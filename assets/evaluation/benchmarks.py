"""Annotation files of public benchmarks in the neutral form of `questions.py`.

| name           | file, as its authors publish it                 | a video is at                |
|----------------|-------------------------------------------------|------------------------------|
| video-mme      | `videomme/test-00000-of-00001.parquet`, or JSON | `<videoID>.mp4`              |
| lvbench        | `video_info.meta.jsonl`                         | `<key>.mp4`                  |
| longvideobench | `lvb_val.json`, or the validation Parquet       | `<video_path>`               |
| mlvu           | `1_plotQA.json` .. `7_topic_reasoning.json`     | `<stem of the file>/<video>` |
| tempcompass    | `multi-choice`, `yes_no`, `caption_matching`    | `<video id>.mp4`             |

The files and the videos are the user's: nothing is downloaded here. Questions that need a judge
model (free descriptions, summaries) are left out, and counted. For the pipeline, write them in the
neutral form beside the videos and name that file in the setting `evaluation.questions`:

    python -m assets.evaluation.benchmarks lvbench video_info.meta.jsonl --videos videos/lvbench

`--subtitles FOLDER` puts each video's `<video>.srt` above its questions, as for the scores
that are published for Video-MME with subtitles.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assets.evaluation.questions import LETTERS, EvaluationQuestion, write_questions
from assets.fetching.table_files import read_rows
from assets.inference.subtitles import SUFFIXES

YES_NO_REQUEST = "Please answer yes or no:"
# A line that opens an option inside a question: "A. red", "(B) blue", "C) green", "Caption A: ...",
# "Option 2: ...".
_OPTION = re.compile(
    r"^\s*(?:\(?(?P<letter>[A-Z])[.):]|(?:Caption|Option)\s+(?P<label>[A-Z0-9])\s*:)"
    r"\s*(?P<text>.+?)\s*$"
)
_PREFIX = re.compile(r"^\s*\(?[A-Z][.):]\s*")


@dataclass(slots=True)
class BenchmarkQuestions:
    """A benchmark's questions, and how many rows were left out for which reason."""

    questions: list[EvaluationQuestion] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def load_benchmark(name: str, path: Path) -> BenchmarkQuestions:
    """Read an annotation file, or a folder of them (MLVU, TempCompass).

    Raises:
        ValueError: an unknown benchmark, or a file that is not of the form its authors publish.
        FileNotFoundError: no such file.
    """
    try:
        rows = BENCHMARKS[name]
    except KeyError:
        raise ValueError(
            f"unknown benchmark {name!r} (known: {', '.join(sorted(BENCHMARKS))})"
        ) from None
    loaded = BenchmarkQuestions()
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        try:
            for row in rows(file):
                _add(loaded, row)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"{file}: not an annotation file of {name}: {error!r}") from error
    if not loaded.questions:
        raise ValueError(
            f"{path}: no questions of {name} (left out: {dict(loaded.left_out) or 'nothing'})"
        )
    return loaded


def _add(loaded: BenchmarkQuestions, row: dict[str, Any] | str) -> None:
    """Take a row up as a question, or count why it is left out."""
    if isinstance(row, str):
        loaded.left_out[row] += 1
        return
    try:
        loaded.questions.append(EvaluationQuestion(media="video", **row))
    except ValueError as error:
        # Without the question's id and what stands in quotes, so that equal reasons are one.
        reason = str(error).partition(":")[2] or str(error)
        loaded.left_out[re.sub(r"'[^']*'", "...", reason).strip()] += 1


def _video_mme(path: Path) -> Iterator[dict[str, Any] | str]:
    for row in _rows(path):
        for question in row.get("questions", [row]):  # the JSON nests questions in videos
            options = [_PREFIX.sub("", option) for option in question["options"]]
            yield {
                "id": question["question_id"],
                "path": f"{row['videoID']}.mp4",
                "question": question["question"],
                "options": tuple(options),
                "answer": options[_letter(question["answer"])],
                "task": f"{row['duration']}: {question['task_type']}",
            }


def _lvbench(path: Path) -> Iterator[dict[str, Any] | str]:
    for row in _rows(path):
        minutes = row.get("video_info", {}).get("duration_minutes")
        for asked in row["qa"]:
            text, options = split_options(asked["question"])
            yield {
                "id": f"{row['key']}/{asked['uid']}",
                "path": f"{row['key']}.mp4",
                "question": text,
                "options": options,
                "answer": options[_letter(asked["answer"])],
                "task": ", ".join(asked["question_type"]),
                "duration": None if minutes is None else 60.0 * float(minutes),
            }


def _longvideobench(path: Path) -> Iterator[dict[str, Any] | str]:
    for row in _rows(path):
        # The Parquet spreads the candidates over columns and fills up with "N/A".
        given = row["candidates"] if "candidates" in row else [row[f"option{i}"] for i in range(5)]
        candidates = tuple(option for option in given if option != "N/A")
        if row.get("correct_choice") is None or int(row["correct_choice"]) < 0:
            yield "no answer is published"
            continue
        yield {
            "id": str(row["id"]),
            "path": row["video_path"],
            "question": row["question"],
            "options": candidates,
            "answer": candidates[int(row["correct_choice"])],
            "task": row["question_category"],
            "duration": float(row["duration"]),
        }


def _mlvu(path: Path) -> Iterator[dict[str, Any] | str]:
    for number, row in enumerate(_rows(path)):
        if not row.get("candidates"):
            yield "an open description, which needs a judge"
            continue
        candidates = tuple(map(str, row["candidates"]))
        yield {
            "id": f"{path.stem}/{number}",
            # Names of videos repeat between the tasks' folders, so the folder belongs to the name.
            "path": f"{path.stem}/{row['video']}",
            "question": row["question"],
            "options": candidates,
            "answer": str(row["answer"]),
            "task": row["question_type"],
            "duration": float(row["duration"]) if row.get("duration") else None,
        }


def _tempcompass(path: Path) -> Iterator[dict[str, Any] | str]:
    for video, dimensions in json.loads(path.read_text(encoding="utf-8")).items():
        for dimension, asked in dimensions.items():
            for number, row in enumerate(asked):
                if "mc_question" in row or path.stem == "captioning":
                    yield "an open description, which needs a judge"
                    continue
                fields = {"id": f"{path.stem}/{video}/{dimension}/{number}", "path": f"{video}.mp4"}
                answer = str(row["answer"]).strip()
                if answer.lower() in ("yes", "no"):
                    fields |= {
                        "question": f"{row['question']}\n{YES_NO_REQUEST}",
                        "answer": answer.lower(),
                    }
                    yield fields | {"candidates": ("yes", "no"), "task": f"yes or no: {dimension}"}
                    continue
                text, options = split_options(row["question"])
                match = _OPTION.match(answer)
                right = match["text"] if match else answer
                yield fields | {
                    "question": text,
                    "options": options,
                    "answer": right,
                    "task": f"{path.stem}: {dimension}",
                }


BENCHMARKS: dict[str, Callable[[Path], Iterator[dict[str, Any] | str]]] = {
    "video-mme": _video_mme,
    "lvbench": _lvbench,
    "longvideobench": _longvideobench,
    "mlvu": _mlvu,
    "tempcompass": _tempcompass,
}


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """A question whose last lines are its options, as the question alone and the options' texts."""
    lines = text.strip().split("\n")
    options: list[str] = []
    while lines and (match := _OPTION.match(lines[-1])):
        options.insert(0, match["text"])
        lines.pop()
    return "\n".join(lines).strip(), tuple(options)


def _letter(answer: str) -> int:
    """The index of a right answer given by letter."""
    return LETTERS.index(answer.strip().strip("().")[0])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for row in read_rows(path, path.name):
        if not isinstance(row.value, dict):
            raise ValueError(f"row {row.number}: {row.fault}: {row.value[:80]}")
        yield row.value


def main(arguments: list[str] | None = None) -> int:
    """Write a benchmark's questions as `<videos>/<name>.jsonl`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.evaluation.benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument(
        "annotations",
        type=Path,
        help="the file as its authors publish it, or a folder of such files",
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder that the videos lie in")
    parser.add_argument(
        "--subtitles",
        type=Path,
        help="folder of <video>.srt or .vtt files to put above the questions",
    )
    chosen = parser.parse_args(arguments)
    try:
        loaded = load_benchmark(chosen.name, chosen.annotations)
    except (ValueError, FileNotFoundError) as error:
        print(f"not written: {error}")
        return 2
    out = chosen.videos / f"{chosen.name}.jsonl"
    there = [question for question in loaded.questions if (chosen.videos / question.path).is_file()]
    if chosen.subtitles is not None:
        there = [_subtitled(question, chosen.subtitles, chosen.videos) for question in there]
    if not there:
        print(
            f"not written: none of the videos is below {chosen.videos}; the first is "
            f"{loaded.questions[0].path}"
        )
        return 2
    write_questions(out, there)
    print(
        f"{out}: {len(there)} questions; {len(loaded.questions) - len(there)} about videos that "
        "are not there"
    )
    if chosen.subtitles is not None:
        print(f"{sum(bool(question.subtitles) for question in there)} of them with subtitles")
    for reason, count in loaded.left_out.items():
        print(f"left out: {count}, {reason}")
    return 0


def _subtitled(question: EvaluationQuestion, folder: Path, videos: Path) -> EvaluationQuestion:
    """The question with its video's subtitles, where there are any."""
    for suffix in SUFFIXES:
        file = folder / f"{Path(question.path).stem}{suffix}"
        if file.is_file():
            return replace(question, subtitles=os.path.relpath(file, videos))
    return question


if __name__ == "__main__":
    raise SystemExit(main())
