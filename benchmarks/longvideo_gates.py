"""Whether the long-video benchmark shows what it is for, over several seeds.

    python -m benchmarks.longvideo_gates docs/results/longvideo-first-1.json ...-2.json ...-3.json

Reads the results of runs of `benchmarks.longvideo`, a seed each, and puts their questions together.
A gate compares two columns on the same questions. It is passed where the difference is above three
standard errors; questions about one film count as one draw, because they may fail together.

| gate                                 | questions                                    |
| ------------------------------------ | -------------------------------------------- |
| blind is chance                      | all                                          |
| stage 3 above blind                  | brief evidence that the 64 frames miss       |
| stage 3 above 64 frames (trained)    | the same                                     |

Below them stand the same differences by length and by where the evidence is.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.longvideo_corpus import Held

ERRORS = 3.0
BRIEF = "brief evidence: not in the 64 frames"
SPLITS = ("all", "length", "evidence", "brief evidence")

Answered = Mapping[str, Any]  # `id`, `film`, `labels`, `chance`, and `right` by column


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean over questions, and its standard error over films; None for a single film."""

    asked: int
    mean: float
    error: float | None

    @property
    def above(self) -> bool:
        """Whether it is larger than chance can tell."""
        return self.error is not None and self.mean > ERRORS * self.error

    def __str__(self) -> str:
        error = "?" if self.error is None else f"{self.error:.3f}"
        return f"{self.mean:+.3f} (standard error {error}, {self.asked} questions)"


def balanced(held: Sequence[Held]) -> set[str]:
    """Names of held-out questions among which, in each kind, every answer is right equally often.
    So who always gives the same answer is at chance.
    """
    kinds: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in held:
        for number, asked in enumerate(one.questions):
            kinds[asked.task][asked.answer].append(f"{one.film.name}/{number}")
    chosen: set[str] = set()
    for task, answers in kinds.items():
        least = min(map(len, answers.values()))
        for answer, names in answers.items():
            random.Random(f"balanced/{task}/{answer}").shuffle(names)
            chosen |= set(names[:least])
    return chosen


def difference(questions: Sequence[Answered], value: Callable[[Answered], float]) -> Difference:
    """The mean of a value of questions, with the standard error of a mean over films."""
    films: dict[str, list[float]] = defaultdict(list)
    for asked in questions:
        films[asked["film"]].append(value(asked))
    count = len(questions)
    mean = sum(map(sum, films.values())) / max(count, 1)
    if len(films) < 2:
        return Difference(count, mean, None)
    rest = sum(sum(one - mean for one in values) ** 2 for values in films.values())
    return Difference(count, mean, math.sqrt(rest * len(films) / (len(films) - 1)) / count)


def against(column: str, other: str) -> Callable[[Answered], float]:
    """What one column has right more than another one."""
    return lambda asked: float(asked["right"][column]) - float(asked["right"][other])


def gates(questions: Sequence[Answered], few: str = "64 frames") -> list[tuple[str, bool, str]]:
    """Each gate: its name, whether it is passed, and the numbers."""
    brief = [asked for asked in questions if BRIEF in asked["labels"]]
    guessed = difference(questions, lambda asked: float(asked["right"]["blind"]) - asked["chance"])
    chance = guessed.error is not None and abs(guessed.mean) <= ERRORS * guessed.error
    found = [("blind is chance", chance, str(guessed))]
    for other in ("blind", few):
        gain = difference(brief, against("stage3", other))
        found.append((f"stage 3 above {other}", gain.above, str(gain)))
    return found


def by_label(questions: Sequence[Answered], few: str = "64 frames") -> list[str]:
    """The gains by length and by where the evidence is, as rows of a page's table."""
    labels = sorted({label for asked in questions for label in asked["labels"]})
    lines = ["| questions | asked | above blind | above 64 frames |", "|---|---|---|---|"]
    for label in labels:
        if label.partition(":")[0] not in SPLITS:
            continue
        own = [asked for asked in questions if label in asked["labels"]]
        gains = [difference(own, against("stage3", other)) for other in ("blind", few)]
        shown = [
            f"{gain.mean:+.3f} +- {'?' if gain.error is None else f'{gain.error:.3f}'}"
            for gain in gains
        ]
        lines.append(f"| {label} | {len(own)} | {' | '.join(shown)} |")
    return lines


def read_results(paths: Sequence[Path]) -> list[Answered]:
    """The questions of several runs together.

    Raises:
        ValueError: two of them are of one seed, whose films are the same.
    """
    runs = [json.loads(path.read_text()) for path in paths]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the results are of the seeds {seeds}; each seed counts once")
    return [asked for run in runs for asked in run["questions"]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON files, one of each seed")
    questions = read_results(parser.parse_args().results)
    passed = gates(questions)
    for name, good, says in passed:
        print(f"{'passed' if good else 'FAILED'}  {name}: {says}")
    print("\n".join(["", *by_label(questions)]))
    return 0 if all(good for _, good, _ in passed) else 1


if __name__ == "__main__":
    sys.exit(main())
