"""Prompts of a benchmark harness are answered as the model would answer them alone."""

from __future__ import annotations

import pytest
from PIL import Image

from assets.inference.respond import Responder, cut


@pytest.fixture(scope="module")
def responder(export):
    return Responder(export, "cpu", batch=3)


def test_videos_images_and_text_go_through_one_call(responder, media):
    asked = [
        ("What is it?", [str(media / "short.mp4")], {"max_new_tokens": 6}),
        ("Which?", [Image.open(media / "picture.jpg")], {"max_new_tokens": 4}),
        ("Same?", [media / "picture.jpg", media / "picture.jpg"], {}),
        ("2 + 2?", [], {"max_new_tokens": 3}),
    ]
    together = responder.generate(asked)
    alone = [responder.generate([one])[0] for one in asked]
    assert together == alone
    for prompt, visuals, settings in (asked[0], asked[3]):
        sample = responder.sample(prompt, visuals)
        ids = responder.model.generate(samples=sample, max_new_tokens=settings["max_new_tokens"])[0]
        expected = responder.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert responder.generate([(prompt, visuals, settings)]) == [expected]


def test_likelihood_tells_whether_the_answer_is_what_would_be_written(responder, media):
    video = [str(media / "short.mp4")]
    ids = responder.model.generate(
        samples=responder.sample("What is it?", video), max_new_tokens=3
    )[0]
    written = responder.processor.tokenizer.decode(ids)
    results = responder.likelihood([("What is it?", video, written), ("What is it?", video, "qqq")])
    if responder.processor.tokenizer(written, add_special_tokens=False).input_ids == ids.tolist():
        assert results[0][1]
    assert not results[1][1]
    assert results[0][0] > results[1][0]


def test_placeholders_fit_the_visuals(responder, media):
    picture = Image.open(media / "picture.jpg")
    for prompt in ("Same?", "<image> Same?", "<image>\n<image>\nSame?"):
        sample = responder.sample(prompt, [picture, picture])
        assert sum(visual.placeholders for visual in sample.visuals) == 2


def test_an_answer_ends_before_its_stop_text():
    assert cut("A\n\nB. more", ["\n\n"]) == "A"
    assert cut("red. blue", ".") == "red"
    assert cut(" all ", ()) == "all"


def test_sampling_is_refused(responder):
    with pytest.raises(ValueError, match="greedy"):
        responder.generate([("Hello?", [], {"do_sample": True})])
