"""One row of any accepted schema -> questions about one video, under the names everything else
uses.

``videos/panda/x.mp4``, ``panda/x.mp4`` and ``x.mp4`` with the source panda are the same video:
``panda/x``.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from assets.fetching.errors import AnnotationError
from assets.sources.base import VIDEO_SUFFIXES

NORMALISER = (
    2  # raise it when the same row would give another result: it is part of the data version
)

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
SOURCE_NAMES = {
    "anet": "activitynet",
    "activitynetqa": "activitynet",
    "moviechat-1k": "moviechat",
    "moviechat1k": "moviechat",
    "panda70m": "panda",
    "panda-70m": "panda",
    "youcookii": "youcook2",
}
NAME_SUFFIXES = (*VIDEO_SUFFIXES, ".pt", "")  # what an id loses: also of a feature file
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
LONGEST_NAME = 200


class Reject(Exception):
    """A row that cannot be used; the text is the reason under which it is counted."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question-answer pair.

    Attributes:
        sample_id, turn: the sample and the place in it, for files that come grouped; else None.
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


class Normaliser:
    """Turns raw rows of one file into questions.

    The first row's columns are taken for the file's: what is wrong with them stops the file, for
    its owner to mend. A later row with other columns (JSON has such) is that row's own fault.

    Args:
        sources: the configured source names; rows of other sources are rejected.
        columns: column name in the file -> one of ``FIELDS``, or None to leave it out.

    Raises:
        AnnotationError: ``columns`` names a field that does not exist.
    """

    def __init__(
        self, sources: Iterable[str], columns: Mapping[str, str | None] | None = None
    ) -> None:
        names = list(sources)
        self.only = names[0] if len(names) == 1 else None
        self.sources = {name.lower(): name for name in names}
        self.sources |= {
            alias: self.sources[name]
            for alias, name in SOURCE_NAMES.items()
            if name in self.sources
        }
        self.columns = {name.lower(): field for name, field in (columns or {}).items()}
        for name, field in self.columns.items():
            if field is not None and field not in FIELDS:
                raise AnnotationError(
                    f"annotations.columns: {name} -> {field!r}; the fields are {', '.join(FIELDS)}"
                )
        self._layouts: dict[tuple[str, ...], dict[str, str]] = {}
        self._videos: dict[tuple[Any, Any], tuple[str, str]] = {}

    def questions(self, row: dict[str, Any] | str, where: str) -> list[Question]:
        """The questions of one row, one for a flat row, several for a grouped one.

        Raises:
            Reject: with the reason.
            AnnotationError: the file's columns are not known, or those are missing that are needed.
        """
        if isinstance(row, str):
            raise Reject("not_an_object")
        values = self._fields(row, where)
        source, identifier = self._video(values.get("video"), values.get("source"))
        common = (f"{source}/{identifier}", source, identifier)
        kind, url = _text(values.get("question_type")), _text(values.get("url"))
        duration = _seconds(values.get("duration"))
        if "conversations" in values:
            turns = _turns(values["conversations"])
            sample = _text(values.get("id")) or _digest(
                common[0], *(text for turn in turns for text in turn)
            )
            return [
                Question(*common, f"{sample}#{n}", question, answer, kind, url, sample, n, duration)
                for n, (question, answer) in enumerate(turns)
            ]
        question = _clean(values.get("question"))
        answer = _clean(values.get("answer"))
        if not question or not answer:
            raise Reject("no_question" if not question else "no_answer")
        question = _with_options(question, values.get("options"))
        identity = _text(values.get("id")) or _digest(common[0], question, answer)
        return [Question(*common, identity, question, answer, kind, url, None, None, duration)]

    def _fields(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        names = tuple(row)
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._layouts[names] = self._layout(names, where)
        fields: dict[str, Any] = {}
        for name, field in layout.items():
            value = row[name]
            if value is not None and value != "" and value == value:  # NaN is not itself
                fields[field] = value
        return fields

    def _layout(self, names: tuple[str, ...], where: str) -> dict[str, str]:
        """Column name -> field.

        Raises:
            AnnotationError: unknown or missing columns in the file's first row; names what was
                found and is accepted.
            Reject: unknown columns in a later row. Missing ones are like empty ones.
        """
        known = {
            alias: field for field, aliases in FIELDS.items() for alias in aliases
        } | self.columns
        unknown = [n for n in names if n.lower() not in known and n.lower() not in IGNORED]
        best: dict[str, tuple[int, str]] = {}
        for name in names:
            field = known.get(name.lower())
            if field is None:
                continue
            aliases = FIELDS[field]
            rank = -1 if name.lower() in self.columns else aliases.index(name.lower())
            if field not in best or rank < best[field][0]:
                best[field] = (rank, name)
        enough = "video" in best and (
            "conversations" in best or {"question", "answer"} <= best.keys()
        )
        if self._layouts:
            if unknown:
                raise Reject("other_columns")
        elif unknown or not enough:
            problem = (
                f"unknown columns {', '.join(map(repr, unknown))}"
                if unknown
                else "columns are missing"
            )
            accepted = "; ".join(
                f"{field}: {'/'.join(aliases)}" for field, aliases in FIELDS.items()
            )
            raise AnnotationError(
                f"{where}: {problem}. Found: {', '.join(names) or 'nothing'}. Accepted: "
                f"{accepted}. Needed: video, and question with answer, or conversations. Name "
                f"others in the settings: annotations.columns: {{their_name: our_name}}, or "
                f"{{their_name: null}} to leave one out"
            )
        return {name: field for field, (_, name) in best.items()}

    def _video(self, video: Any, source: Any) -> tuple[str, str]:
        key = (video, source)
        if not isinstance(video, str | int) or isinstance(video, bool):
            raise Reject("no_video")
        found = self._videos.get(key)
        if found is None:
            if len(self._videos) > 100_000:
                self._videos.clear()
            found = self._videos[key] = self._parse_video(str(video), source)
        return found

    def _parse_video(self, video: str, source: Any) -> tuple[str, str]:
        """Source and id.

        Raises:
            Reject: an unknown source, a path that leaves its folder, a name that no file could
                have.
        """
        text = video.replace("\\", "/")
        steps = [step for step in text.split("/") if step not in ("", ".")]
        if text.startswith("/") or ".." in steps or not steps:
            raise Reject("unsafe_video_path")
        stated = self.sources.get(str(source).strip().lower()) if source is not None else None
        if source is not None and stated is None:
            raise Reject("unknown_source")
        for index, step in enumerate(steps[:-1]):
            inside = self.sources.get(step.lower())
            if inside:
                if stated and inside != stated:
                    raise Reject("source_conflict")
                stated, steps = inside, steps[index + 1 :]
                break
        name = stated or self.only
        if name is None:
            raise Reject("unknown_source")
        stem, suffix = posixpath.splitext(steps[-1])
        steps[-1] = stem if suffix.lower() in NAME_SUFFIXES else steps[-1]
        if any(not _safe_name(step) for step in steps):
            raise Reject("unsafe_video_path")
        return name, "/".join(steps)


def _safe_name(name: str) -> bool:
    return (
        0 < len(name.encode()) <= LONGEST_NAME and not name.startswith(".") and name.isprintable()
    )


def _turns(conversations: Any) -> list[tuple[str, str]]:
    """Question-answer pairs of a conversation.

    Raises:
        Reject: roles that do not alternate or are not known, empty turns, not a list.
    """
    if isinstance(conversations, str):
        try:
            conversations = orjson.loads(conversations)
        except orjson.JSONDecodeError:
            raise Reject("conversation_not_json") from None
    if not isinstance(conversations, list):
        raise Reject("conversation_not_a_list")
    texts: list[str] = []
    for message in conversations:
        if not isinstance(message, dict):
            raise Reject("conversation_not_a_list")
        role = ROLES.get(str(message.get("from", message.get("role"))).lower())
        if role is None:
            raise Reject("unknown_role")
        if role == "system":
            continue
        if role != ("human", "gpt")[len(texts) % 2]:
            raise Reject("roles_do_not_alternate")
        text = _clean(message.get("value", message.get("content")))
        if not text:
            raise Reject("empty_turn")
        texts.append(text)
    if not texts or len(texts) % 2:
        raise Reject("roles_do_not_alternate")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _with_options(question: str, options: Any) -> str:
    """The question with its options as lines, unless they stand in it already."""
    if isinstance(options, str) and options.lstrip().startswith("["):
        try:
            options = orjson.loads(options)
        except orjson.JSONDecodeError:
            raise Reject("options_not_json") from None
    if not isinstance(options, list) or not options or LISTED_OPTION.search(question):
        return question
    if len(options) > 26:
        raise Reject("too_many_options")
    lines = (
        f"{letter}. {_clean(text)}"
        for letter, text in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options, strict=False)
    )
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
    except (TypeError, ValueError):
        return None
    return seconds if 0 < seconds < 1e6 else None


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
