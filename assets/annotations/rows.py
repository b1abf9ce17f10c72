"""One row of any accepted form -> question-answer pairs about one video, under the names that
everything else uses.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from assets.annotations.cells import is_missing, seconds_of, spoken, text_of, with_options
from assets.annotations.video_names import RejectedRow, VideoNames
from assets.fetching.errors import AnnotationError
from assets.fetching.table_json import JsonFaultError, parse_json
from assets.fetching.table_rows import KEY, RawRow, in_brief

# Raise it when the same row would give another result: it is part of the data version.
PARSER_VERSION = 3

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
# One column for each option: "option_a", "Choice 1"; or the letters alone, from A on.
OPTION_COLUMN = re.compile(r"(?:option|choice|candidate)[ _-]?([a-z]|\d{1,2})")
NAMED = 10  # columns that a message names
MOST_UNUSED = 50  # columns that a reading names
REMEMBERED = 1000  # sets of columns; hostile JSON may have another one in each row


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

    Where all rows have the same columns, missing ones are an error that the file's owner has to
    mend. A row of a JSON file, which may have columns of its own, is rejected alone. Columns that
    nobody knows are left out, and named in `unused`.

    Args:
        sources: the configured source names; rows of other sources are rejected.
        columns: column name in the file -> one of `FIELDS`, or None to leave it out.
        same_columns: whether all rows of the file have the same ones.

    Attributes:
        unused: names of columns that are not read, the first ones of a file.
        columns_error: what to raise where no row of the file can be used: the columns that the
            first row without the needed ones had.
        unread: field -> rows whose value of it could not be read and was left out.

    Raises:
        AnnotationError: `columns` names a field that does not exist.
    """

    def __init__(
        self,
        sources: Iterable[str],
        columns: Mapping[str, str | None] | None = None,
        *,
        same_columns: bool = True,
    ) -> None:
        self.videos = VideoNames(sources)
        self.columns = {_plain(name): field for name, field in (columns or {}).items()}
        for name, field in self.columns.items():
            if field is not None and field not in FIELDS:
                raise AnnotationError(
                    f"annotations.columns: {name} -> {field!r}; the fields are {', '.join(FIELDS)}"
                )
        self.unused: list[str] = []
        self.unread: Counter[str] = Counter()
        self.columns_error: AnnotationError | None = None
        self._same_columns = same_columns
        # An alias beside the better one is known, too, and says nothing more.
        self._left_out = {*IGNORED, *self.columns, *(a for names in FIELDS.values() for a in names)}
        self._field_of_columns: dict[tuple[str, ...], dict[str, str]] = {}

    def parse_raw(self, row: RawRow, where: str) -> list[QuestionRow]:
        """As `parse`, of a row as a file has it.

        Raises:
            RejectedRow: also where the row could not be read.
        """
        if row.fault:
            raise RejectedRow(row.fault)
        return self.parse(row.value, where)

    def parse(self, row: dict[str, Any] | str, where: str) -> list[QuestionRow]:
        """The question-answer pairs of one row: one of a flat row, several of a grouped one.

        Args:
            row: column -> value, or the text of a line that is no JSON object.
            where: the file, as messages name it.

        Raises:
            RejectedRow: with the reason.
            AnnotationError: those of the file's columns are missing that are needed.
        """
        if isinstance(row, str):
            raise RejectedRow("not_an_object")
        values = self._fields(row, where)
        named = values.get("video")
        source, identifier = self.videos.find(named, values.get("source"))
        video = f"{source}/{identifier}"
        kind, url = self._optional(values, "question_type"), self._optional(values, "url")
        if url is None and str(named).strip().startswith(("https://", "http://")):
            url = str(named).strip()
        duration = seconds_of(values.get("duration"))
        if duration is None and "duration" in values:
            self.unread["duration"] += 1
        row_id = self._optional(values, "id")

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
        question, answer = spoken(values.get("question")), spoken(values.get("answer"))
        if not question or not answer:
            raise RejectedRow("no_question" if not question else "no_answer")
        question = with_options(question, values.get("options"))
        name = row_id or _digest(video, question, answer)
        return [pair(name, question, answer, None, None)]

    def _optional(self, values: Mapping[str, Any], field: str) -> str | None:
        """The text of a field that a row can do without; one that is no text is left out."""
        try:
            return text_of(values.get(field))
        except RejectedRow:
            self.unread[field] += 1
            return None

    def _fields(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        names = tuple(row)
        field_of = self._field_of_columns.get(names)
        if field_of is None:
            if len(self._field_of_columns) > REMEMBERED:
                self._field_of_columns.clear()
            field_of = self._field_of_columns[names] = self._match(names, where)
        fields: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for name, field in field_of.items():
            value = row[name]
            if is_missing(value):
                continue
            if field.startswith(_OPTION):
                options[field.removeprefix(_OPTION)] = value
            else:
                fields[field] = value
        if options and "options" not in fields:
            fields["options"] = options
        if KEY in row:
            fields.setdefault("video" if "video" not in fields else "id", row[KEY])
        return fields

    def _match(self, names: tuple[str, ...], where: str) -> dict[str, str]:
        """Column name -> field; columns of single options -> `_OPTION` and the option's label.

        Raises:
            AnnotationError: columns are missing; names what was found and is accepted.
            RejectedRow: the same, in a file whose rows may have others.
        """
        known: dict[str, str | None] = {
            alias: field for field, aliases in FIELDS.items() for alias in aliases
        }
        known |= self.columns
        best: dict[str, tuple[int, str]] = {}
        for name in names:
            plain = _plain(name)
            field = known.get(plain)
            if field is None:
                continue
            # What the settings name comes before every alias.
            rank = -1 if plain in self.columns else FIELDS[field].index(plain)
            if field not in best or rank < best[field][0]:
                best[field] = (rank, name)
        found = {name: field for field, (_, name) in best.items()}
        found |= self._single_options(names, found)
        unknown = [
            name
            for name in names
            if name not in found and name != KEY and _plain(name) not in self._left_out
        ]
        if len(self.unused) < MOST_UNUSED:
            self.unused += [n for n in map(in_brief, unknown[:MOST_UNUSED]) if n not in self.unused]
        has_video = "video" in best or KEY in names
        answered = "conversations" in best or {"question", "answer"} <= best.keys()
        if not has_video or not answered:
            self.columns_error = self.columns_error or _columns_error(names, unknown, where)
            if self._same_columns:
                raise self.columns_error
            raise RejectedRow("columns_missing")
        return found

    def _single_options(self, names: tuple[str, ...], found: Mapping[str, str]) -> dict[str, str]:
        """Columns that hold one option each."""
        plain = {_plain(name): name for name in names if name not in found}
        plain = {name: column for name, column in plain.items() if name not in self.columns}
        letters = {name: column for name, column in plain.items() if re.fullmatch("[a-z]", name)}
        options = {
            match[1]: column
            for name, column in plain.items()
            if (match := OPTION_COLUMN.fullmatch(name))
        }
        if not options and {"a", "b"} <= letters.keys():
            options = letters
        return {column: f"{_OPTION}{label}" for label, column in options.items()}


_OPTION = "option "


def _plain(name: str) -> str:
    """A column's name, as names are compared."""
    return name.strip().lower()


def _columns_error(names: tuple[str, ...], unknown: list[str], where: str) -> AnnotationError:
    accepted = "; ".join(f"{field}: {'/'.join(aliases)}" for field, aliases in FIELDS.items())
    not_known = f" Not known: {_some(map(repr, unknown))}." if unknown else ""
    return AnnotationError(
        f"{where}: columns are missing. Found: {_some(names) or 'nothing'}.{not_known} Needed: "
        f"video, and question with answer, or conversations. Accepted: {accepted}. Name others in "
        "the settings: annotations.columns: {their_name: our_name}"
    )


def _some(names: Iterable[str]) -> str:
    """Some names, so that a message can hold them."""
    listed = [in_brief(name, 40) for name in names]
    more = f" and {len(listed) - NAMED:,} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _turns(conversations: Any) -> list[tuple[str, str]]:
    """Question-answer pairs of a conversation.

    Raises:
        RejectedRow: roles that do not alternate or are not known, empty turns, not a list.
    """
    if isinstance(conversations, str):
        try:
            conversations = parse_json(conversations)
        except JsonFaultError:
            raise RejectedRow("conversation_not_json") from None
    if not isinstance(conversations, list):
        raise RejectedRow("conversation_not_a_list")
    texts: list[str] = []
    for message in conversations:
        if not isinstance(message, dict):
            raise RejectedRow("conversation_not_a_list")
        role = ROLES.get(str(text_of(message.get("from", message.get("role")))).lower())
        if role is None:
            raise RejectedRow("unknown_role")
        if role == "system":
            continue
        if role != ("human", "gpt")[len(texts) % 2]:
            raise RejectedRow("roles_do_not_alternate")
        text = spoken(message.get("value", message.get("content")))
        if not text:
            raise RejectedRow("empty_turn")
        texts.append(text)
    if not texts or len(texts) % 2:
        raise RejectedRow("roles_do_not_alternate")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _digest(*texts: str) -> str:
    text = "\0".join(texts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()
