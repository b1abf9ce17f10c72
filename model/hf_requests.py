"""What users give the processor for transformers: messages, or texts with their media."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from model.conversation import END, IMAGE, START, SYSTEM

FROM = {"system": SYSTEM, "user": "human", "assistant": "gpt"}
SPECIAL = re.compile(r"<\|(?:im_start|im_end|endoftext)\|>")


@dataclass(slots=True)
class Request:
    """One conversation and what it is about."""

    turns: list[dict[str, str]]
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)
    duration: float | None = None
    add_generation_prompt: bool = True


def request_of_messages(
    messages: Sequence[Any], add_generation_prompt: bool, *, with_sources: bool = True
) -> Request:
    """The conversation that messages are.

    Args:
        with_sources: whether each visual must say where it is; for a prompt's text alone, which
            the processor is then given with the visuals beside it, it need not.

    Raises:
        ValueError: a message means nothing; it is told by number.
    """
    request = Request([], add_generation_prompt=add_generation_prompt)
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is {message!r:.80}, no {{'role', 'content'}}")
        role, content = message.get("role"), message.get("content")
        if role not in FROM:
            raise ValueError(f"message {number} has the role {role!r}; known: {', '.join(FROM)}")
        if role == "system" and number:
            raise ValueError(f"message {number}: a system message may only be the first")
        if isinstance(content, str):
            value = content
        elif isinstance(content, Sequence):
            value = _joined(content, request, number, with_sources)
        else:
            raise ValueError(f"message {number}: its content is neither text nor parts")
        request.turns.append({"from": FROM[role], "value": value})
    return request


def _joined(parts: Sequence[Any], request: Request, number: int, with_sources: bool) -> str:
    """The text of a message's parts, with a placeholder for each visual, which `request` notes."""
    text = ""
    for place, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise ValueError(f"message {number}: a part of type 'text' has no text")
            text += part["text"]
            continue
        if kind not in ("image", "video"):
            raise ValueError(
                f"message {number}: a part of type {kind!r}; known: text, image, video"
            )
        sources = [part[key] for key in (kind, "path", "url") if part.get(key) is not None]
        if len(sources) != 1 and (sources or with_sources):
            raise ValueError(f"message {number}: its {kind} needs one of {kind!r}, 'path', 'url'")
        if kind == "image":
            request.images += sources
        else:
            if any(turn["from"] == "human" for turn in request.turns):
                raise ValueError(f"message {number}: a video belongs in the first user message")
            request.videos += sources
            request.duration = seconds_of(part.get("duration"))
        text += IMAGE + ("\n" if place + 1 < len(parts) else "")
    return text


def seconds_of(duration: Any) -> float | None:
    """A duration as a number, or None.

    Raises:
        ValueError: it is something else.
    """
    if duration is None or (isinstance(duration, int | float) and not isinstance(duration, bool)):
        return duration
    if isinstance(duration, np.number):
        return float(duration)
    raise ValueError(f"duration is {duration!r}; it must be a number of seconds")


def turns_of_text(text: str) -> tuple[list[dict[str, str]], bool]:
    """The turns of a prompt's text, and whether an answer is to follow."""
    if not text.startswith(START):
        return [{"from": "human", "value": text}], True
    turns = []
    prompted = text.endswith(f"{START}assistant\n")
    body = text.removesuffix(f"{START}assistant\n") if prompted else text
    for message in body.split(START)[1:]:
        role, newline, content = message.partition("\n")
        if role not in FROM or not newline or not content.endswith(f"{END}\n"):
            raise ValueError(f"text is no prompt of apply_chat_template: {message[:80]!r}")
        content = content.removesuffix(f"{END}\n")
        turns.append({"from": FROM[role], "value": content})
    refuse_special_tokens(turns)
    return turns, prompted


def refuse_special_tokens(turns: Sequence[Mapping[str, str]]) -> None:
    for number, turn in enumerate(turns):
        if found := SPECIAL.search(turn["value"]):
            raise ValueError(
                f"message {number} holds {found.group()}, which would end it in a prompt's text; "
                "apply_chat_template(tokenize=True) takes it as plain text"
            )


def _is_picture(value: Any) -> bool:
    """Whether it is one picture rather than a list of them."""
    return not isinstance(value, list | tuple)


def pictures_for_each(texts: Sequence[str], given: Any, single: bool, name: str) -> list[list[Any]]:
    """What belongs to each text, as lists."""
    if given is None:
        return [[] for _ in texts]
    if single:
        found = [given] if _is_picture(given) else list(given)
        # One text may come with a batch of one.
        if len(found) == 1 and not _is_picture(found[0]):
            found = list(found[0])
        return [found]
    if _is_picture(given) or len(given) != len(texts):
        count = 1 if _is_picture(given) else len(given)
        raise ValueError(
            f"{len(texts)} texts and {count} {name}: give a list with the {name} of each text"
        )
    return [[one] if _is_picture(one) else list(one) for one in given]


def videos_for_each(texts: Sequence[str], given: Any, single: bool) -> list[list[Any]]:
    if given is None:
        return [[] for _ in texts]
    if not isinstance(given, list | tuple) or _is_frames(given):
        return [[given] for _ in texts]  # the same for all
    if single:
        return [list(given)]
    if len(given) != len(texts):
        raise ValueError(
            f"{len(texts)} texts and {len(given)} videos: give one of each text, or one for all"
        )
    return [
        [one] if not isinstance(one, list | tuple) or _is_frames(one) else list(one)
        for one in given
    ]


def _is_frames(value: Sequence[Any]) -> bool:
    """Whether a list is the pictures of one video."""
    return bool(value) and all(
        isinstance(one, Image.Image) or (isinstance(one, np.ndarray) and one.ndim == 3)
        for one in value
    )
