"""`hourllava evaluate`: a checkpoint's answers to a file of questions, and its scores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.ask import at_least_one

DESCRIPTION = """\
Ask a checkpoint every question of a file and print the share that it answered right, by kind of
question and by duration.

The file is JSON Lines, an object a line: id, media (video, image or text), path, question, answer,
and where there are some options, candidates, task, duration, subtitles. The benchmarks that
`python -m assets.evaluation.benchmarks --help` lists are turned into such files.

Every prompt and answer is written to --answers. Stopped, the same command goes on where it was."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `hourllava evaluate` takes."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="an export, a released checkpoint, or one of the deployment by name: stage3[lectures]",
    )
    parser.add_argument("questions", type=Path, metavar="QUESTIONS.jsonl", help="what is asked")
    parser.add_argument(
        "--media", type=Path, help="folder that the paths count from (default: the questions' own)"
    )
    parser.add_argument(
        "--answers",
        type=Path,
        default=Path("answers.parquet"),
        help="file of the answers (default: answers.parquet)",
    )
    parser.add_argument("--limit", type=at_least_one, help="ask only the first so many")
    parser.add_argument(
        "--nothing-shown",
        action="store_true",
        help="show grey pictures instead: what can be guessed without looking",
    )
    parser.add_argument("--batch", type=at_least_one, default=8, help="questions at a time (8)")
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="what computes; auto takes a GPU where there is one",
    )


def evaluate(chosen: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    from assets.checkpoints.named import checkpoint_folder
    from assets.evaluation.questions import read_questions
    from assets.inference.checkpoint import find_checkpoint, log_to_terminal
    from pipeline.demo.summary import text_table

    questions = read_questions(chosen.questions)[: chosen.limit]
    media = chosen.media or chosen.questions.parent
    if not media.is_dir():
        raise FileNotFoundError(f"{media}: no such folder")
    folder = checkpoint_folder(chosen.checkpoint, chosen.config)
    export = find_checkpoint(folder, log_to_terminal)
    from assets.evaluation.report import score_rows
    from assets.evaluation.score import score_checkpoint  # imports torch: not before it is needed

    report = score_checkpoint(
        export,
        questions,
        media,
        chosen.answers,
        log_to_terminal,
        name=str(chosen.checkpoint),
        visuals=not chosen.nothing_shown,
        batch=chosen.batch,
        device=chosen.device,
    )
    print(text_table(score_rows(report)))
    problems = [answer for answer in report.answers if answer.problem]
    for answer in problems:
        print(f"not asked: {answer.id}: {answer.problem}", file=sys.stderr)
    print(f"\nevery prompt and answer: {chosen.answers}")
    return 0 if len(problems) < len(report.answers) else 2
