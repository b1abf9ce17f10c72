"""The kinds of shards: one row says all that the code needs to know about a kind.

A new kind is a row here, and the annotation files it takes in `assets/collections/mixtures.csv`.
Its parts, its asset, its place in the stages and in the mixture follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What a row of an annotation file must have to become a sample of the kind.
Rows = Literal["images", "text", "any", "short video", "long video"]

# Kinds that the stages read alike, see `STAGES` in training/recipes.py.
Group = Literal["pretraining", "images and text", "short videos", "long videos"]

IMAGE_KIND = "llava_ov_si_onlyimg"
TEXT_KIND = "llavavideo_text"
SINGLE_IMAGE_KIND = "llavavideo_si"
MULTI_IMAGE_KIND = "llavavideo_mi"
SHORT_VIDEO_KIND = "llavavideo_video"
LONG_VIDEO_KIND = "videomarathon_video"


@dataclass(frozen=True, slots=True)
class ShardKind:
    """One kind of shards.

    Attributes:
        name: of its asset; a part lies in `VideoMarathon/sharding/<name>_part<n>`.
        rows: what a row must have; others are left out.
        collection: asset that holds its annotation files.
        group: decides which of its parts each stage reads.
        description: of its asset, for the UI.
    """

    name: str
    rows: Rows
    collection: str
    group: Group
    description: str


_ROWS = (
    ShardKind(
        IMAGE_KIND,
        "images",
        "llava_onevision",
        "pretraining",
        "Single images for stage 1 (LLaVA-OneVision, rows without an image left out).",
    ),
    ShardKind(
        TEXT_KIND,
        "text",
        "llava_onevision",
        "images and text",
        "Text-only conversations (LLaVA-OneVision).",
    ),
    ShardKind(
        SINGLE_IMAGE_KIND,
        "any",
        "llava_onevision",
        "images and text",
        "Single images for stages 2 and 3 (LLaVA-OneVision).",
    ),
    ShardKind(
        MULTI_IMAGE_KIND,
        "any",
        "llava_onevision",
        "images and text",
        "Conversations about several images (LLaVA-OneVision).",
    ),
    ShardKind(
        SHORT_VIDEO_KIND,
        "short video",
        "llava_video",
        "short videos",
        "Short videos (LLaVA-Video-178K); samples name their video, frames are decoded in "
        "training.",
    ),
    ShardKind(
        LONG_VIDEO_KIND,
        "long video",
        "conversations",
        "long videos",
        "Long-video conversations for stage 3 (VideoMarathon); samples name their video, never "
        "embed features.",
    ),
)

# By name, in the order in which the mixture lists them.
KINDS = {kind.name: kind for kind in _ROWS}
LLAVA_KINDS = tuple(name for name, kind in KINDS.items() if kind.group != "long videos")
# Those of them that the mixture of stage 3 holds.
MIXED_KINDS = tuple(name for name in LLAVA_KINDS if KINDS[name].group != "pretraining")


def kinds_of(group: Group) -> tuple[str, ...]:
    """Names of the kinds of a group, in the order of the table."""
    return tuple(name for name, kind in KINDS.items() if kind.group == group)
