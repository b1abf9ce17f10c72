"""How videos and rows are dealt to parts: by a hash of their name, so that order never matters."""

from __future__ import annotations

from training.formats.hashing import stable_hash

# Every kind of the LLaVA collections has so many parts: the stages name them one by one.
LLAVA_PARTS = 10

# What the videos of the first landing are dealt to where the settings do not say: a part is what is
# fetched, made and given up at a time, and a dozen videos are none the better for ten of them.
MOST_PARTS = 10
VIDEOS_PER_PART = 100


def parts_for(videos: int) -> int:
    """How many parts so many videos are worth: one for each hundred, from one to ten."""
    return min(max(videos // VIDEOS_PER_PART, 1), MOST_PARTS)


def part_of(key: str, parts: int) -> int:
    """The part, 0 .. parts-1, that `key` (a video, or a sample's id) belongs to."""
    return stable_hash("part", key) % parts


def is_held_out(video: str, share: float) -> bool:
    """Whether a video (`source/id`) is one of the share that is never trained on.

    Its name alone decides: it stays so whatever else comes or goes, and a larger share holds all
    that a smaller one does.
    """
    return stable_hash("held out", video) < share * 2.0**64


def part_name(index: int) -> str:
    """`part7` for 7."""
    return f"part{index}"


def part_index(name: str) -> int:
    """The number in `part7`.

    Raises:
        ValueError: the name is not of that form.
    """
    if not (name.startswith("part") and name[4:].isdigit()):
        raise ValueError(f"{name!r} is not the name of a part; parts are called part0, part1, ...")
    return int(name[4:])
