"""One row of a LLaVA annotation file -> one sample, or the reason why not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from training.formats.kinds import KINDS
from training.formats.sample import (
    IMAGE_TOKEN,
    ROLES,
    STRAY_TOKENS,
    Modality,
    Sample,
    broken_rule,
    is_relative_name,
    text_fault,
    without_markers,
)

ROLE_OF = {"human": ROLES[0], "user": ROLES[0], "gpt": ROLES[1], "assistant": ROLES[1]}
IMAGE_PLACEHOLDER = re.compile(IMAGE_TOKEN)
# In other rows `<video>` is text, an HTML tag as a rule.
VIDEO_PLACEHOLDER = re.compile(rf"{IMAGE_TOKEN}|<video>")
STRAY = re.compile(STRAY_TOKENS)

NOT_AN_IMAGE_ROW = "text row in an image-only kind"
SYSTEM_TURN = "system turn left out"
MARKER = "leftover marker taken out"
EXPECTED_DROPS = frozenset({NOT_AN_IMAGE_ROW})  # left out by design: they never fail a part


class Dropped(ValueError):
    """A row that does not become a sample; `reason` is one of a few fixed phrases, `rows` how many
    question-answer pairs are lost with it.
    """

    def __init__(self, reason: str, detail: str = "", rows: int = 1) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.rows = reason, rows


def row_key(row: dict[str, Any] | None, ordinal: int) -> str:
    """What decides a row's part: its video, else its first image, else its id, else its place.

    Rows about one video or one image thus always share a part.
    """
    if row is None:
        return f"row {ordinal}"
    for name in ("video", "image", "id"):
        value = row.get(name)
        if isinstance(value, list):
            value = value[0] if value else None
        if value not in (None, ""):
            return f"{name} {value}"
    return f"row {ordinal}"


def to_sample(
    row: dict[str, Any] | None,
    kind: str,
    sample_id: str,
    read_image: Callable[[str], bytes],
    video_duration: Callable[[str], float | None],
    changed: Counter[str] | None = None,
) -> Sample:
    """The sample that `row` describes.

    Args:
        read_image: bytes to store for an image's path; may raise `Dropped`.
        video_duration: seconds of a short video (0 where unknown), or None when it is not there.
        changed: counts what of the row's text was left out, by a few fixed phrases.

    Raises:
        Dropped: the row cannot be used; counted by its reason.
    """
    if row is None:
        raise Dropped("row is not valid JSON")
    images, video = _names(row.get("image")), row.get("video") or ""
    needs = KINDS[kind].rows
    if needs == "images" and not images:
        raise Dropped(NOT_AN_IMAGE_ROW)
    if needs == "text" and (images or video):
        raise Dropped("visual row in a text-only kind")
    if needs == "short video" and not video:
        raise Dropped("row without a video")
    if images and video:
        raise Dropped("row with images and a video")
    modality: Modality
    if video:
        modality = "video"
    else:
        modality = "text" if not images else "image" if len(images) == 1 else "multi_image"
    placeholder = VIDEO_PLACEHOLDER if video else IMAGE_PLACEHOLDER
    conversations = _with_placeholders(
        _turns(row.get("conversations"), placeholder, Counter() if changed is None else changed),
        placeholder,
        modality,
        len(images),
    )
    for name in (*images, *([video] if video else [])):
        if not isinstance(name, str) or not is_relative_name(name):
            raise Dropped("path leaves its folder", repr(name)[:80])
    duration = video_duration(video) if video else 0.0
    if duration is None:
        raise Dropped("video missing", video)
    sample = Sample(
        sample_id,
        kind,
        modality,
        conversations,
        [read_image(name) for name in images],
        video,
        duration,
    )
    if broken := broken_rule(sample) or text_fault(sample):
        raise Dropped("row breaks the sample schema", broken)
    return sample


def _names(value: Any) -> list[Any]:
    if value in (None, "", []):
        return []
    return list(value) if isinstance(value, list) else [value]


def _turns(value: Any, placeholder: re.Pattern[str], changed: Counter[str]) -> list[dict[str, str]]:
    """Turns in our roles, question and answer in turn, every one with text.

    A system turn is left out: the model was trained under one system message, and has no other.
    """
    if not isinstance(value, list) or not value:
        raise Dropped("no conversation")
    turns = []
    for number, turn in enumerate(value):
        text = turn.get("value") if isinstance(turn, dict) else None
        if isinstance(turn, dict) and turn.get("from") == "system":
            changed[SYSTEM_TURN] += 1
            continue
        role = ROLE_OF.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(text, str):
            raise Dropped("turn of unknown form", f"turn {number}")
        clean = without_markers(text)
        changed[MARKER] += clean != text
        turns.append({"from": role, "value": clean.strip()})
    if turns and turns[0]["from"] == ROLES[1]:
        turns = turns[1:]  # an answer before any question is nothing to learn from
    if (
        not turns
        or len(turns) % 2
        or any(turn["from"] != ROLES[i % 2] for i, turn in enumerate(turns))
    ):
        raise Dropped("turns do not alternate")
    for turn in turns:
        bare = placeholder.sub("", turn["value"]).strip()
        if STRAY.search(bare):
            raise Dropped("stray token")
        if turn["from"] == ROLES[1]:
            if not bare:
                raise Dropped("empty answer")
            if bare != turn["value"]:
                raise Dropped("stray token in answer")
    return turns


def _with_placeholders(
    turns: list[dict[str, str]], placeholder: re.Pattern[str], modality: Modality, images: int
) -> list[dict[str, str]]:
    """A video or an image gets one `<image>`, opening the first question; several images where
    the row has them. In a text `<image>` is a word like any other.
    """
    found = sum(len(placeholder.findall(turn["value"])) for turn in turns)
    if modality == "text":
        if any(not turn["value"] for turn in turns):
            raise Dropped("empty question")
        return turns
    if modality == "multi_image" and found == images:
        return turns
    if modality == "multi_image" and found == 0:
        return [{**turns[0], "value": f"{IMAGE_TOKEN}\n" * images + turns[0]["value"]}, *turns[1:]]
    if modality == "multi_image" or found > 1:
        raise Dropped("placeholders do not match", f"{found} placeholders")
    bare = [{**turn, "value": placeholder.sub("", turn["value"]).strip()} for turn in turns]
    if any(not turn["value"] for turn in bare[1:]):
        raise Dropped("empty question")
    return [{**bare[0], "value": f"{IMAGE_TOKEN}\n{bare[0]['value']}".strip()}, *bare[1:]]
