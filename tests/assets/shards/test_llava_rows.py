"""LLaVA rows become samples that fit the schema, or are dropped for a reason that helps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from assets.shards.llava_rows import Dropped, to_sample
from tests.assets.shards.roots import turns
from training.formats.sample import LEFTOVER_MARKER, Sample, broken_rule


def made(row: Any, kind: str = "llavavideo_si") -> Sample:
    return to_sample(
        row, kind, "set#0", lambda name: name.encode(), lambda name: None if "gone" in name else 0.0
    )


def test_an_image_row_opens_with_its_placeholder_wherever_it_stood():
    for question in ("<image>\nWhat?", "What?\n<image>", "What?", " <image>What?"):
        sample = made({"image": "a.jpg", "conversations": turns(question, " It. ")})
        assert sample.conversations == turns("<image>\nWhat?", "It.")
        assert (sample.modality, sample.images, broken_rule(sample)) == ("image", [b"a.jpg"], None)


def test_several_images_keep_their_places_and_get_them_where_they_have_none():
    row = {"image": ["a", "b"], "conversations": turns("<image> or <image>?", "b")}
    assert made(row).conversations[0]["value"] == "<image> or <image>?"
    row["conversations"] = turns("Which?", "b")
    assert made(row).conversations[0]["value"] == "<image>\n<image>\nWhich?"
    assert made(row).modality == "multi_image"


def test_a_video_row_takes_either_placeholder_and_a_text_row_may_speak_of_html():
    for question in ("<video>\nWhat?", "<image>\nWhat?"):
        sample = made(
            {"video": "a/b.mp4", "conversations": turns(question, "It.")}, "llavavideo_video"
        )
        assert (sample.video, sample.conversations[0]["value"]) == ("a/b.mp4", "<image>\nWhat?")
    text = made(
        {"conversations": turns("How do I write <video>?", "With <video src>.")}, "llavavideo_text"
    )
    assert text.conversations == turns("How do I write <video>?", "With <video src>.")


def test_roles_of_other_tools_are_understood_and_a_leading_answer_is_left_out():
    row = {
        "conversations": [
            {"from": "gpt", "value": "Hello"},
            {"from": "user", "value": "Hi"},
            {"from": "assistant", "value": "Yo"},
        ]
    }
    assert made(row).conversations == turns("Hi", "Yo")


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("llavavideo_si", None, "row is not valid JSON"),
        ("llavavideo_si", {}, "no conversation"),
        ("llavavideo_si", {"conversations": "text"}, "no conversation"),
        (
            "llavavideo_si",
            {"conversations": [{"from": "robot", "value": "x"}]},
            "turn of unknown form",
        ),
        (
            "llavavideo_si",
            {"conversations": [{"from": "human", "value": 3}]},
            "turn of unknown form",
        ),
        ("llavavideo_si", {"conversations": turns("a", "b")[:1]}, "turns do not alternate"),
        (
            "llavavideo_si",
            {"conversations": turns("a", "b") + turns("c", "d")[1:]},
            "turns do not alternate",
        ),
        ("llavavideo_si", {"conversations": turns("a", " ")}, "empty answer"),
        ("llavavideo_si", {"conversations": turns("", "b")}, "empty question"),
        ("llavavideo_si", {"conversations": turns("a", "b<|im_end|>")}, "stray token"),
        (
            "llavavideo_si",
            {"image": "a", "conversations": turns("<image>a", "b <image>")},
            "stray token in answer",
        ),
        (
            "llavavideo_si",
            {"conversations": turns("a", "<image> stands for a picture")},
            "stray token in answer",
        ),
        (
            "llavavideo_si",
            {"image": "a", "conversations": turns("<image><image>a", "b")},
            "placeholders do not match",
        ),
        (
            "llavavideo_mi",
            {"image": ["a", "b"], "conversations": turns("<image>a", "b")},
            "placeholders do not match",
        ),
        (
            "llavavideo_si",
            {"image": "../../etc/passwd", "conversations": turns("a", "b")},
            "path leaves its folder",
        ),
        (
            "llavavideo_si",
            {"image": "/etc/passwd", "conversations": turns("a", "b")},
            "path leaves its folder",
        ),
        (
            "llavavideo_si",
            {"image": {"bytes": 1}, "conversations": turns("a", "b")},
            "path leaves its folder",
        ),
        ("llavavideo_video", {"conversations": turns("a", "b")}, "row without a video"),
        (
            "llavavideo_video",
            {"video": "gone.mp4", "conversations": turns("a", "b")},
            "video missing",
        ),
        (
            "llavavideo_si",
            {"video": "a", "image": "b", "conversations": []},
            "row with images and a video",
        ),
        (
            "llava_ov_si_onlyimg",
            {"conversations": turns("a", "b")},
            "text row in an image-only kind",
        ),
        (
            "llavavideo_text",
            {"image": "a", "conversations": turns("a", "b")},
            "visual row in a text-only kind",
        ),
    ],
)
def test_rows_that_cannot_be_used_have_a_reason(kind, row, reason):
    with pytest.raises(Dropped) as dropped:
        made(row, kind)
    assert dropped.value.reason == reason


def test_a_text_row_may_speak_of_the_placeholder():
    row = {"conversations": turns("What does <image> mean in a prompt?", "A picture.")}
    sample = made(row, "llavavideo_text")
    assert sample.modality == "text"
    assert sample.conversations[0]["value"] == "What does <image> mean in a prompt?"


MARKER = "QA_GT_caption_based_noisy"


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("a", f"b <|im_{MARKER}end|> c", "stray token"),
        (f"<ima{MARKER}ge> and <image>", "b", "placeholders do not match"),
        ("<image>a", f"b <ima{MARKER}ge>", "stray token in answer"),
        ("a", MARKER, "empty answer"),
        ("a", f"{MARKER[:5]}{MARKER}{MARKER[5:]}", "empty answer"),
        ("a", f"<|im_{MARKER[:5]}{MARKER}{MARKER[5:]}start|>", "stray token"),
    ],
)
def test_text_is_checked_after_markers_are_taken_out_of_it(question, answer, reason):
    with pytest.raises(Dropped) as dropped:
        made({"image": "a", "conversations": turns(question, answer)})
    assert dropped.value.reason == reason


def test_a_marker_in_good_text_is_taken_out_and_counted():
    changed = Counter()
    row = {"conversations": turns(f"What? {MARKER}", f"This {MARKER}one.")}
    sample = to_sample(row, "llavavideo_si", "x", lambda name: b"", lambda name: None, changed)
    assert [turn["value"] for turn in sample.conversations] == ["What?", "This one."]
    assert changed == {"leftover marker taken out": 2}


@pytest.mark.parametrize("place", [0, 2])
def test_a_system_turn_costs_no_row(place):
    changed = Counter()
    conversations = turns("What?", "This.") + turns("And?", "That.")
    expected = list(conversations)
    conversations.insert(place, {"from": "system", "value": "Answer in one word."})
    row = {"conversations": conversations}
    sample = to_sample(row, "llavavideo_si", "x", lambda name: b"", lambda name: None, changed)
    assert sample.conversations == expected
    assert changed["system turn left out"] == 1
    with pytest.raises(Dropped, match="turns do not alternate"):
        made({"conversations": [{"from": "system", "value": "Nothing else."}]}, "llavavideo_si")


def test_the_marker_is_the_one_that_the_model_takes_out():
    from model import conversation

    assert conversation.LEFTOVER_MARKER == LEFTOVER_MARKER == MARKER
