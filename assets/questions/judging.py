"""What a person says of a sample of rows: accept, reject or correct, read back from a sheet.

A verdict counts for the row as it was when it was judged; a row that says something else now was
not judged.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assets.fetching.errors import OperatorError
from assets.questions.rows import CHOICE, LETTERS, OPEN, Row
from assets.questions.text_checks import words
from assets.records.intervals import wilson

ACCEPT, REJECT, CORRECT = VERDICTS = ("accept", "reject", "correct")
NO_LONGER = "of rows that are no longer so"
REJECTED = "rejected_by_a_person"
PUBLISHED_WRONG = 0.213  # of the published set's multiple-choice labels, by its authors' sample
LARGEST_SHEET = 64 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Judgement:
    """One line of a sheet.

    Attributes:
        content: of the row as it was judged.
        right_answer: in place of the row's, where the verdict is `correct`.
    """

    id: str
    content: str
    verdict: str
    right_answer: str


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """How many of the judged rows of a form were wrong, with the 95 % interval of Wilson."""

    form: str
    judged: int
    wrong: int

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.wrong, self.judged)

    @property
    def sentence(self) -> str:
        """`multiple choice: 4 of 50 wrong, 8.0 % (3.2 to 18.8 %)`."""
        name = "multiple choice" if self.form == CHOICE else "open-ended"
        low, high = self.interval
        share = self.wrong / self.judged
        counted = f"{self.wrong:,} of {self.judged:,} wrong"
        return f"{name}: {counted}, {share:.1%} ({low:.1%} to {high:.1%})"


def read_judgements(folder: Path | None, source: str) -> list[Judgement]:
    """The filled-in lines of a source's sheet; none where there is no sheet.

    Raises:
        OperatorError: it cannot be read; the sentence names the line.
    """
    if folder is None or not (path := folder / f"{source}.csv").is_file():
        return []
    if path.stat().st_size > LARGEST_SHEET:
        raise OperatorError(f"{path}: {path.stat().st_size:,} bytes are no sheet of this project")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        needed = {"id", "content", "verdict", "right_answer"}
        if missing := needed - set(reader.fieldnames or []):
            raise OperatorError(f"{path}: columns are missing: {', '.join(sorted(missing))}")
        found = []
        for raw in reader:
            verdict = (raw["verdict"] or "").strip().lower()
            if not verdict:
                continue
            if verdict not in VERDICTS:
                raise OperatorError(
                    f"{path}, line {reader.line_num}: the verdict is {verdict[:40]!r}; it is one "
                    f"of {', '.join(VERDICTS)}, or empty"
                )
            found.append(
                Judgement(raw["id"], raw["content"], verdict, (raw["right_answer"] or "").strip())
            )
    return found


def apply_judgements(
    rows: Sequence[Row], judgements: Sequence[Judgement]
) -> tuple[list[ErrorRate], Counter[str]]:
    """Reject and correct rows as a person said; the error rates before, and verdicts by kind.

    Raises:
        OperatorError: a correction says nothing that the row's answer could be.
    """
    by_id = {row.id: row for row in rows if not row.reasons}
    counts: Counter[str] = Counter()
    judged: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for one in judgements:
        row = by_id.get(one.id)
        if row is None or row.content != one.content or row.judged:
            counts[NO_LONGER] += 1
            continue
        counts[one.verdict] += 1
        judged[row.form] += 1
        wrong[row.form] += one.verdict != ACCEPT
        row.judged = one.verdict
        if one.verdict == REJECT:
            row.reasons.append(REJECTED)
        elif one.verdict == CORRECT:
            _correct(row, one.right_answer)
    rates = [ErrorRate(form, judged[form], wrong[form]) for form in (CHOICE, OPEN) if judged[form]]
    return rates, counts


def _correct(row: Row, answer: str) -> None:
    """Another right answer; the options stay in their order."""
    if row.form == OPEN:
        if not answer:
            raise OperatorError(f"{row.id}: corrected, and right_answer is empty")
        row.answer = answer
        return
    options = row.options
    plain = [words(text) for text in options]
    if len(answer) == 1 and answer.upper() in LETTERS:
        place = LETTERS.index(answer.upper())
    elif words(answer) in plain:
        place = plain.index(words(answer))
    else:
        raise OperatorError(
            f"{row.id}: right_answer is {answer[:80]!r}; give the letter of an option, or reject "
            "the row where none is right"
        )
    row.place, row.answer = place, options[place]
    row.distractors = [text for n, text in enumerate(options) if n != place]
