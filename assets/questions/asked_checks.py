"""Checks of a row for which a model is asked: without the video, once more in other words, and
against what is seen elsewhere in the video. They stop at the first that a row does not pass.
"""

from __future__ import annotations

from typing import TypeVar

from assets.captions.describe import Described, clip_line, windows
from assets.captions.texts import datum, filled
from assets.endpoints.asker import Asker, SetAsideError
from assets.endpoints.json_answers import schema_of
from assets.endpoints.protocol import Prompt
from assets.questions.rows import CHOICE, LETTERS, Row, asked, options_at
from assets.questions.text_checks import NOT_EXCLUSIVE, words
from assets.questions.texts import QuestionTexts
from assets.questions.write import topic_lines
from model.configuration import Section
from training.formats.hashing import stable_hash

T = TypeVar("T", bound=Section)
BLIND = "answerable_without_the_video"
DIFFERS = "second_answer_differs"
CONTRADICTS = "contradicts_another_clip"


class BlindAnswer(Section):
    """A guess."""

    answer: str


class Reworded(Section):
    """A question in other words."""

    question: str


class SecondAnswer(Section):
    """Right options by letter, or an answer in words."""

    choices: list[str]
    answer: str


class Same(Section):
    """Whether two answers say the same."""

    same: bool


class Contradicting(Section):
    """Numbers of clips."""

    clips: list[int]


class Examiner:
    """Examines the rows of one video.

    Args:
        blind_times: how often a row is asked without the video.
        window: clips that one prompt holds at most.
    """

    def __init__(
        self, asker: Asker, texts: QuestionTexts, video: Described, blind_times: int, window: int
    ) -> None:
        self._asker, self._texts, self._video = asker, texts, video
        self._blind_times, self._window = blind_times, window

    def examine(self, row: Row) -> None:
        """Add the first check that a row does not pass to its reasons."""
        try:
            for check in (self._blind, self._second, self._contradiction):
                if reason := check(row):
                    row.reasons.append(reason)
                    return
        except SetAsideError as error:
            row.reasons.append(f"not_checked_{error}")

    def _blind(self, row: Row) -> str:
        """Asked without the video, several times, each with another order of the options."""
        for turn in range(self._blind_times):
            place = (stable_hash("blind", row.id) + turn) % len(LETTERS)
            text = asked(row.question, options_at(row, place))
            said = self._ask("blind", {"question": datum(text)}, BlindAnswer, turn).answer
            if not self._is_right(row, said, place):
                return ""
        return BLIND if self._blind_times else ""

    def _second(self, row: Row) -> str:
        """Asked in other words, of who sees the descriptions of the evidence alone."""
        question = self._ask("reword", {"question": datum(row.question)}, Reworded).question
        place = stable_hash("second", row.id) % len(LETTERS)
        evidence = [seen for seen in self._video.captioned if seen.clip.number in row.clips]
        lines = "\n".join(clip_line(seen, None) for seen in evidence)
        text = asked(question, options_at(row, place))
        said = self._ask("second", {"question": datum(text), "clips": lines}, SecondAnswer)
        if row.form == CHOICE:
            right = {letter.strip().upper()[:1] for letter in said.choices}
            if LETTERS[place] not in right:
                return DIFFERS
            return NOT_EXCLUSIVE if len(right) > 1 else ""
        return "" if self._same(row, said.answer) else DIFFERS

    def _contradiction(self, row: Row) -> str:
        """Whether another clip is described in a way that the row cannot be true with."""
        others = [seen for seen in self._video.captioned if seen.clip.number not in row.clips]
        sees = self._texts.topics[row.topic].sees
        statement = datum(f"{row.question} {row.answer}")
        for some in windows(others, self._window):
            lines = topic_lines(self._video, some, "summary" if sees == "events" else sees)
            found = self._ask(
                "contradiction", {"statement": statement, "clips": lines}, Contradicting
            )
            if {seen.clip.number for seen in some} & set(found.clips):
                return CONTRADICTS
        return ""

    def _is_right(self, row: Row, said: str, place: int) -> bool:
        if row.form != CHOICE:
            return self._same(row, said)
        letter = said.strip().strip("(").upper()[:2].rstrip(".):, ")
        return letter == LETTERS[place] or words(said) == words(row.answer)

    def _same(self, row: Row, said: str) -> bool:
        """Whether an answer in words says what the row's does."""
        if words(said) == words(row.answer):
            return True
        if not words(said):
            return False
        values = {"first": datum(row.answer), "second": datum(said)}
        return self._ask("same", {"question": datum(row.question), **values}, Same).same

    def _ask(self, shape: str, values: dict[str, str], kind: type[T], turn: int = 0) -> T:
        text = filled(getattr(self._texts, shape), values)
        prompt = Prompt(self._texts.system, text, shape, schema_of(kind), turn=turn)
        return self._asker.ask(prompt, kind)
