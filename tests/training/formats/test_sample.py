"""The sample schema: what is written is what is read, and what does not fit is refused with its
name.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.formats.sample import (
    COLUMNS,
    SCHEMA_VERSION,
    Sample,
    broken_rule,
    decode,
    encode,
    is_relative_name,
)

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
IMAGE = Sample("set#1", "llavavideo_si", "image", TURNS, [b"jpeg"])
VIDEO = Sample("panda/a#0-0", "videomarathon_video", "video", TURNS, video="panda/a", duration=61.5)
TEXT = Sample(
    "set#2",
    "llavavideo_text",
    "text",
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
)


def stored(sample: Sample) -> dict:
    """The row as a reader sees it: JSON columns parsed."""
    row = encode(sample)
    assert row.keys() == COLUMNS.keys()
    return {
        name: json.loads(value) if COLUMNS[name] == "json" else value for name, value in row.items()
    }


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=5), st.text(), st.floats(0, 1e6))
def test_a_sample_comes_back_as_it_was(images, text, duration):
    turns = [
        {"from": "human", "value": "<image>" * len(images)},
        {"from": "gpt", "value": text.replace("<image>", "")},
    ]
    sample = Sample("a", "llavavideo_mi", "multi_image", turns, images, duration=duration)
    assert decode(stored(sample)) == sample
    for other in (IMAGE, VIDEO, TEXT):
        assert decode(stored(other)) == other


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (replace(IMAGE, id=""), "empty id"),
        (replace(IMAGE, kind="video"), "unknown kind 'video'"),
        (replace(IMAGE, conversations=TURNS[:1]), "1 turns"),
        (replace(IMAGE, conversations=TURNS[::-1]), "turn 0 is from 'gpt'"),
        (replace(IMAGE, images=[]), "0 images in a single-image sample"),
        (replace(IMAGE, conversations=TEXT.conversations), "0 <image> in the conversation, 1 exp"),
        (
            replace(IMAGE, modality="multi_image", images=[b"a", b"b"]),
            "1 <image> in the conversation, 2 expected",
        ),
        (replace(VIDEO, video=""), "video ''"),
        (replace(VIDEO, video="/data/a.mp4"), "not a plain relative name"),
        (replace(VIDEO, video="../a.mp4"), "not a plain relative name"),
        (replace(VIDEO, images=[b"x"]), "1 images in a video sample"),
    ],
)
def test_a_sample_that_breaks_the_schema_is_refused(sample, message):
    assert message in str(broken_rule(sample))
    with pytest.raises(ValueError, match="sample '"):
        encode(sample)


def test_a_row_of_another_schema_says_what_to_do():
    row = {**stored(TEXT), "schema": SCHEMA_VERSION + 1}
    with pytest.raises(ValueError, match="write the shards again"):
        decode(row)


def test_images_that_do_not_add_up_are_noticed():
    with pytest.raises(ValueError, match="lengths add up to"):
        decode({**stored(IMAGE), "images": b"jpe"})


@pytest.mark.parametrize("name", ["/a", "a/../../b", "..", "a\\b", "a\0b", "."])
def test_names_that_leave_their_folder_are_not_relative(name):
    assert not is_relative_name(name)
    assert is_relative_name("panda/a.b-c_d")
