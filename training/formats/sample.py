"""What a shard holds: one schema, written by the shard writer and read by the data loader.

A row names its video and carries its images; it never embeds features and never holds an absolute
path. Columns use plain MDS encodings only, so any `streaming.StreamingDataset` reads the shards
without this module: `images` is the files' bytes one after another, `image_bytes` the JSON list
of their lengths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

import orjson

from training.formats.kinds import KINDS

SCHEMA_VERSION = 1

Modality = Literal["text", "image", "multi_image", "video"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "multi_image", "video")

IMAGE_TOKEN = "<image>"
ROLES = ("human", "gpt")

# Tokens that steer the model: in a text they would be read as the end of a turn or as a picture.
STRAY_TOKENS = (
    r"<image>|<\|im_start\|>|<\|im_end\|>|<\|endoftext\|>"
    r"|<\|vision_(?:start|end|pad)\|>|<\|(?:image|video)_pad\|>"
)

_STRAY = re.compile(STRAY_TOKENS)

# A marker that one of the collections left in its text. The published system deletes it once while
# it tokenises; what the pieces around it then form was never looked at.
LEFTOVER_MARKER = "QA_GT_caption_based_noisy"

COLUMNS: dict[str, str] = {
    "schema": "int",
    "id": "str",
    "kind": "str",
    "modality": "str",
    "conversations": "json",
    "image_bytes": "json",
    "images": "bytes",
    "video": "str",
    "duration": "float64",
}


@dataclass(slots=True)
class Sample:
    """One multi-turn training sample.

    Attributes:
        id: unique within its kind.
        kind: one of `KINDS`.
        modality: what the `<image>` placeholders stand for.
        conversations: turns `{"from": "human" | "gpt", "value": text}`, human first, alternating.
        images: encoded image files (JPEG or PNG bytes), one for each `<image>` of an image
            sample.
        video: `<source>/<id>` of a long video, or the path of a short one below
            `LLaVA-Video-178K/videos`.
        duration: seconds of video, 0 where unknown or not a video.
    """

    id: str
    kind: str
    modality: Modality
    conversations: list[dict[str, str]]
    images: list[bytes] = field(default_factory=list)
    video: str = ""
    duration: float = 0.0


def encode(sample: Sample) -> dict[str, Any]:
    """The row of `COLUMNS` that stores `sample`; JSON columns come out encoded, in one
    canonical form.

    Raises:
        ValueError: the sample breaks the schema; the message names the sample and the reason.
    """
    check(sample)
    return {
        "schema": SCHEMA_VERSION,
        "id": sample.id,
        "kind": sample.kind,
        "modality": sample.modality,
        "conversations": orjson.dumps(
            [{"from": t["from"], "value": t["value"]} for t in sample.conversations]
        ),
        "image_bytes": orjson.dumps([len(image) for image in sample.images]),
        "images": b"".join(sample.images),
        "video": sample.video,
        "duration": float(sample.duration),
    }


def decode(row: dict[str, Any]) -> Sample:
    """The sample that a row read from a shard stores.

    Raises:
        ValueError: the row was written with another schema, or its image lengths do not add up.
    """
    if row.get("schema") != SCHEMA_VERSION:
        raise ValueError(
            f"row {row.get('id', '?')!r} has sample schema {row.get('schema')!r}, this code reads "
            f"{SCHEMA_VERSION}; write the shards again with this version"
        )
    data, lengths = row["images"], row["image_bytes"]
    if sum(lengths) != len(data):
        raise ValueError(
            f"row {row['id']!r}: {len(data)} bytes of images, their lengths add up to "
            f"{sum(lengths)}"
        )
    images, start = [], 0
    for length in lengths:
        images.append(data[start : start + length])
        start += length
    return Sample(
        id=row["id"],
        kind=row["kind"],
        modality=row["modality"],
        conversations=row["conversations"],
        images=images,
        video=row["video"],
        duration=float(row["duration"]),
    )


def check(sample: Sample) -> None:
    """Raise ValueError where `sample` breaks the schema."""
    reason = broken_rule(sample)
    if reason:
        raise ValueError(f"sample {sample.id!r} of {sample.kind}: {reason}")


def broken_rule(sample: Sample) -> str | None:
    """Why `sample` does not fit the schema, or None when it does."""
    if not sample.id:
        return "empty id"
    if sample.kind not in KINDS:
        return f"unknown kind {sample.kind!r} (known: {', '.join(KINDS)})"
    if sample.modality not in MODALITIES:
        return f"unknown modality {sample.modality!r}"
    turns = sample.conversations
    if len(turns) < 2 or len(turns) % 2:
        return f"{len(turns)} turns; a conversation is pairs of a question and an answer"
    for index, turn in enumerate(turns):
        if turn["from"] != ROLES[index % 2]:
            return f"turn {index} is from {turn['from']!r}; turns alternate, {ROLES[0]} first"
    placeholders = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns)
    expected = len(sample.images) if sample.modality == "multi_image" else 1
    # Without a visual it is text like any other, as in the published system.
    if sample.modality != "text" and placeholders != expected:
        return f"{placeholders} {IMAGE_TOKEN} in the conversation, {expected} expected"
    if sample.modality == "image" and len(sample.images) != 1:
        return f"{len(sample.images)} images in a single-image sample"
    if sample.modality == "multi_image" and len(sample.images) < 2:
        return f"{len(sample.images)} images in a multi-image sample"
    if sample.modality in ("text", "video") and sample.images:
        return f"{len(sample.images)} images in a {sample.modality} sample"
    if (sample.modality == "video") != bool(sample.video):
        return f"video {sample.video!r} in a {sample.modality} sample"
    if sample.video and not is_relative_name(sample.video):
        return f"video {sample.video!r} is not a plain relative name"
    return None


def without_markers(text: str) -> str:
    """The text without any marker, also none that forms where one was taken out."""
    while LEFTOVER_MARKER in text:
        text = text.replace(LEFTOVER_MARKER, "")
    return text


def text_fault(sample: Sample) -> str | None:
    """Why a sample's text cannot be learned from as it is tokenised, or None: a token that steers
    the model stands in it, or an answer is empty.
    """
    for number, turn in enumerate(sample.conversations):
        text = turn["value"].replace(LEFTOVER_MARKER, "")  # once, as when it is tokenised
        answer = turn["from"] == ROLES[1]
        # In a question it is the placeholder, or, without a visual, plain text.
        own = text if answer else text.replace(IMAGE_TOKEN, "")
        if found := _STRAY.search(own):
            return f"turn {number} holds {found.group()} in its text"
        if answer and not text.strip():
            return f"turn {number}, an answer, is empty"
    return None


def is_relative_name(name: str) -> bool:
    """Whether `name` stays below the folder it is resolved in, on any system."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and "\0" not in name
        and name != "."
    )
