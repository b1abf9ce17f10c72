"""One row of any accepted form -> question-answer pairs about one video, under the names that
everything else uses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import orjson

from assets.annotations.video_names import RejectedRow, VideoNames
from assets.fetching.errors import AnnotationError

# Raise it when the same row would give another result: it is part of the data version.
PARSER_VERSION = 2

# Names in the wild -> ours, in order of preference, compared without case.
FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "qid", "sample_id"),
    "video": ("video", "video_path", "video_name", "video_id", "file_name", "filename", "path"),
    "source": ("data_source", "source", "dataset", "video_source"),
    "url": ("url", "video_url", "link"),
    "question": ("question", "prompt", "q"),
    "answer": ("answer", "response", "a"),
    "question_type": ("question_type", "type", "task_type", "task"),
    "options": ("options", "choices", "candidates"),
    "conversations": ("conversations", "messages", "conversation"),
    "duration": ("duration", "video_duration"),
}
IGNORED = frozenset({"__index_level_0__", "unnamed: 0", ""})  # what table libraries leave behind
ROLES = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "model": "gpt",
    "system": "system",
}
PLACEHOLDER = re.compile(r"<(?:image|video)>\s*")
LISTED_OPTION = re.compile(r"(?:^|\n)\s*\(?A[).:]")


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """One question-answer pair.

    Attributes:
        video: `source/id`.
        question_id: unique within the video.
        url: where the video can be fetched, where the row says so.
        sample_id: the sample, for rows that come grouped; else None.
        turn: the place in that sample.
        duration: of the video, in seconds, as the row states it.
        row_id: the id that the row came with, for the identity of the row; None without one.
    """

    video: str
    source: str
    id: str
    question_id: str
    question: str
    answer: str
    question_type: str | None
    url: str | None
    sample_id: str | None
    turn: int | None
    duration: float | None
    row_id: str | None


class RowParser:
    """Turns the rows of one file into question-answer pairs.

    The columns of the first row count as those of the file: unknown or missing ones are an error
    that the file's owner has to mend. A later row with other columns, as JSON files may have, is
    rejected alone.

    Args:
        sources: the configured source names; rows of other sources are rejected.
        columns: column name in the file -> one of `FIELDS`, or None to leave it out.

    Raises:
        AnnotationError: `columns` names a field that does not exist.
    """

    def __init__(
        self, sources: Iterable[str], columns: Mapping[str, str | None] | None = None
    ) -> None:
        self.videos = VideoNames(sources)
        self.columns = {name.lower(): field for name, field in (columns or {}).items()}
        for name, field in self.columns.items():
            if field is not None and field not in FIELDS:
                raise AnnotationError(
                    f"annotations.columns: {name} -> {field!r}; the fields are {', '.join(FIELDS)}"
                )
        self._field_of_columns: dict[tuple[str, ...], dict[str, str]] = {}

    def parse(self, row: dict[str, Any] | str, where: str) -> list[QuestionRow]:
        """The question-answer pairs of one row: one of a flat row, several of a grouped one.

        Args:
            row: column -> value, or the text of a line that is no JSON object.
            where: the file, as messages name it.

        Raises:
            RejectedRow: with the reason.
            AnnotationError: the file's columns are not known, or those are missing that are needed.
        """
        if isinstance(row, str):
            raise RejectedRow("not_an_object")
        values = self._fields(row, where)
        source, identifier = self.videos.find(values.get("video"), values.get("source"))
        video = f"{source}/{identifier}"
        kind, url = _text(values.get("question_type")), _text(values.get("url"))
        duration = _seconds(values.get("duration"))
        row_id = _text(values.get("id"))

        def pair(
            name: str, question: str, answer: str, sample: str | None, turn: int | None
        ) -> QuestionRow:
            return QuestionRow(
                video=video,
                source=source,
                id=identifier,
                question_id=name,
                question=question,
                answer=answer,
                question_type=kind,
                url=url,
                sample_id=sample,
                turn=turn,
                duration=duration,
                row_id=row_id,
            )

        if "conversations" in values:
            turns = _turns(values["conversations"])
            texts = (text for turn in turns for text in turn)
            sample = row_id or _digest(video, *texts)
            return [pair(f"{sample}#{n}", *turn, sample, n) for n, turn in enumerate(turns)]
        question, answer = _clean(values.get("question")), _clean(values.get("answer"))
        if not question or not answer:
            raise RejectedRow("no_question" if not question else "no_answer")
        question = _with_options(question, values.get("options"))
        name = row_id or _digest(video, question, answer)
        return [pair(name, question, answer, None, None)]

    def _fields(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        names = tuple(row)
        field_of = self._field_of_columns.get(names)
        if field_of is None:
            field_of = self._field_of_columns[names] = self._match(names, where)
        fields: dict[str, Any] = {}
        for name, field in field_of.items():
            value = row[name]
            if value is not None and value != "" and value == value:  # NaN is not itself
                fields[field] = value
        return fields

    def _match(self, names: tuple[str, ...], where: str) -> dict[str, str]:
        """Column name -> field.

        Raises:
            AnnotationError: unknown or missing columns in the file's first row; names what was
                found and is accepted.
            RejectedRow: unknown columns in a later row. Missing ones are like empty ones.
        """
        known: dict[str, str | None] = {
            alias: field for field, aliases in FIELDS.items() for alias in aliases
        }
        known |= self.columns
        unknown = [n for n in names if n.lower() not in known and n.lower() not in IGNORED]
        best: dict[str, tuple[int, str]] = {}
        for name in names:
            field = known.get(name.lower())
            if field is None:
                continue
            # What the settings name comes before every alias.
            rank = -1 if name.lower() in self.columns else FIELDS[field].index(name.lower())
            if field not in best or rank < best[field][0]:
                best[field] = (rank, name)
        is_first_row = not self._field_of_columns
        if unknown and not is_first_row:
            raise RejectedRow("other_columns")
        answered = "conversations" in best or {"question", "answer"} <= best.keys()
        if is_first_row and (unknown or "video" not in best or not answered):
            raise _columns_error(names, unknown, where)
        return {name: field for field, (_, name) in best.items()}


def _columns_error(names: tuple[str, ...], unknown: list[str], where: str) -> AnnotationError:
    problem = "columns are missing"
    if unknown:
        problem = f"unknown columns {', '.join(map(repr, unknown))}"
    accepted = "; ".join(f"{field}: {'/'.join(aliases)}" for field, aliases in FIELDS.items())
    return AnnotationError(
        f"{where}: {problem}. Found: {', '.join(names) or 'nothing'}. Accepted: {accepted}. "
        "Needed: video, and question with answer, or conversations. Name others in the settings: "
        "annotations.columns: {their_name: our_name}, or {their_name: null} to leave one out"
    )


def _turns(conversations: Any) -> list[tuple[str, str]]:
    """Question-answer pairs of a conversation.

    Raises:
        RejectedRow: roles that do not alternate or are not known, empty turns, not a list.
    """
    if isinstance(conversations, str):
        try:
            conversations = orjson.loads(conversations)
        except orjson.JSONDecodeError:
            raise RejectedRow("conversation_not_json") from None
    if not isinstance(conversations, list):
        raise RejectedRow("conversation_not_a_list")
    texts: list[str] = []
    for message in conversations:
        if not isinstance(message, dict):
            raise RejectedRow("conversation_not_a_list")
        role = ROLES.get(str(message.get("from", message.get("role"))).lower())
        if role is None:
            raise RejectedRow("unknown_role")
        if role == "system":
            continue
        if role != ("human", "gpt")[len(texts) % 2]:
            raise RejectedRow("roles_do_not_alternate")
        text = _clean(message.get("value", message.get("content")))
        if not text:
            raise RejectedRow("empty_turn")
        texts.append(text)
    if not texts or len(texts) % 2:
        raise RejectedRow("roles_do_not_alternate")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _with_options(question: str, options: Any) -> str:
    """The question with its options as lines, unless they stand in it already."""
    if isinstance(options, str) and options.lstrip().startswith("["):
        try:
            options = orjson.loads(options)
        except orjson.JSONDecodeError:
            raise RejectedRow("options_not_json") from None
    if not isinstance(options, list) or not options or LISTED_OPTION.search(question):
        return question
    if len(options) > len(ascii_uppercase):
        raise RejectedRow("too_many_options")
    letters = zip(ascii_uppercase, options, strict=False)
    lines = (f"{letter}. {_clean(text)}" for letter, text in letters)
    return "\n".join([question, *lines])


def _clean(value: Any) -> str:
    """Text without the placeholders that stand for visual input; the grouping step sets its own."""
    if isinstance(value, list):  # content as a list of parts
        value = "".join(str(part.get("text", "")) for part in value if isinstance(part, dict))
    return PLACEHOLDER.sub("", str(value)).strip() if value is not None else ""


def _text(value: Any) -> str | None:
    text = str(value).strip() if value is not None else ""
    return text or None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < 1e6 else None


def _digest(*texts: str) -> str:
    text = "\0".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()
