"""`hourllava serve` as a person uses it: Chromium asks a tiny checkpoint about a drawn film."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from pipeline.demo.drawing import invent_film, write_film
from tests.pipeline.browser import Ui, browser, missing_chromium
from tests.pipeline.serving import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_chromium()), reason=str(missing_chromium())),
]

QUESTION = "What <b>colour</b> is *the* square?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tiny checkpoints that say different things, and two films."""
    from model.weights import tiny

    folder = tmp_path_factory.mktemp("serve")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("first", 0.15), ("second", 0.2)):
            patch.setattr(tiny, "STD", size)
            tiny.build_tiny(folder / name)
    (folder / "films").mkdir()
    write_film(folder / "films" / "drawn.mp4", invent_film("drawn", 40, 10, 3))
    write_film(folder / "mine.mp4", invent_film("mine", 18, 10, 2))
    (folder / "mine.srt").write_text("00:00:01,000 --> 00:00:02,000\nThe square is red\n")
    return folder


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    """The address of the command, which runs as a process of its own."""
    options = ["--no-deployment", "--device", "cpu", "--upload-mib", "1"]
    for name in ("first", "second"):
        options += ["--checkpoint", str(folder / name)]
    with serving(*options, "--videos", str(folder / "films")) as address:
        yield address


@pytest.fixture
def ui(url) -> Iterator[Ui]:
    with browser(url) as ui:
        yield ui
        assert ui.problems == []


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()


def test_an_answer_streams_as_text_and_the_band_leads_the_player(ui):
    page = ui.page
    ui.open("/?checkpoint=first&video=films/drawn.mp4")
    ask(page, QUESTION)
    expect(page.get_by_test_id("talk")).to_contain_text(QUESTION)
    expect(page.get_by_test_id("told")).to_contain_text("first token")
    answer = page.get_by_test_id("answer").inner_text()
    assert answer
    assert page.get_by_test_id("talk").locator("b, em, i, p").count() == 0
    band = page.get_by_test_id("band")
    assert band.locator("rect").count() == 40 + 1  # a bar for each of the film's seconds
    width = band.bounding_box()["width"]
    band.click(position={"x": width * 0.75, "y": 10})
    page.wait_for_function("Math.abs(document.querySelector('video').currentTime - 30) < 1")
    page.get_by_test_id("bands").get_by_role("button").first.click()
    page.wait_for_function("Math.abs(document.querySelector('video').currentTime - 30) > 1")

    ask(page, "And before?")  # the second question knows the first one
    expect(page.get_by_test_id("told").nth(1)).to_contain_text("first token")
    follow_up = page.get_by_test_id("answer").nth(1).inner_text()
    page.get_by_role("button", name="Begin anew").click()
    ask(page, "And before?")
    expect(page.get_by_test_id("told").first).to_contain_text("first token")
    assert page.get_by_test_id("answer").first.inner_text() != follow_up


def test_an_answer_that_nobody_waits_for_makes_room_for_the_next(ui):
    page = ui.page
    ui.open("/?checkpoint=first&video=films/drawn.mp4")
    ask(page, QUESTION)
    expect(page.get_by_test_id("told")).to_contain_text("writing")
    page.get_by_role("button", name="Begin anew").click()
    expect(page.get_by_test_id("answer")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    ask(page, "And before?")
    expect(page.get_by_test_id("told")).to_contain_text("first token")
    expect(page.get_by_test_id("band")).to_have_count(1)


def test_how_it_is_asked_is_chosen_in_a_section_that_is_closed_at_first(ui):
    page = ui.page
    ui.open("/?checkpoint=first&video=films/drawn.mp4")
    frames = page.get_by_label("Frames that stay as queries")
    expect(frames).to_be_hidden()
    page.get_by_test_id("options").get_by_text("Options").click()
    page.get_by_label("Memory that MemAug looks up").click()
    page.get_by_role("option", name="1/4").click()
    frames.fill("2")
    ask(page, QUESTION)
    expect(page.get_by_test_id("told")).to_contain_text("memory_scale 0.25, kept_frames 2")
    assert page.get_by_test_id("band").locator("rect").count() == 10 + 1  # a quarter of 40 frames


def test_two_checkpoints_answer_side_by_side(ui):
    page = ui.page
    ui.open("/?checkpoint=first&video=films/drawn.mp4")
    page.get_by_label("Checkpoint").click()
    page.get_by_role("option", name="second").click()
    page.keyboard.press("Escape")
    ask(page, QUESTION)
    for place in (0, 1):
        expect(page.get_by_test_id("told").nth(place)).to_contain_text("first token")
    first, second = page.get_by_test_id("answer").all_inner_texts()
    assert first != second
    expect(page.get_by_test_id("band")).to_have_count(2)


def test_an_uploaded_film_is_asked_with_its_subtitles(ui, folder):
    page = ui.page
    ui.open("/?checkpoint=first")
    page.get_by_test_id("upload").locator("input[type=file]").set_input_files(folder / "mine.mp4")
    expect(page.get_by_test_id("player")).to_be_visible()
    ask(page, QUESTION)
    expect(page.get_by_test_id("told")).to_contain_text("first token")
    alone = page.get_by_test_id("answer").inner_text()
    page.get_by_test_id("subtitles").locator("input[type=file]").set_input_files(
        folder / "mine.srt"
    )
    expect(page.get_by_text("1 subtitles stand above the next questions")).to_be_visible()
    ask(page, QUESTION)
    expect(page.get_by_test_id("told")).to_contain_text("first token")
    assert page.get_by_test_id("answer").inner_text() != alone


def test_what_is_no_video_and_what_must_not_be_fetched_is_told(ui, folder):
    page = ui.page
    ui.open("/?checkpoint=first")
    page.get_by_test_id("upload").locator("input[type=file]").set_input_files(folder / "mine.srt")
    page.get_by_label("or its URL").fill("http://169.254.169.254/latest/meta-data")
    page.get_by_role("button", name="Fetch").click()
    expect(page.get_by_text(re.compile("not a public address"))).to_be_visible()
    expect(page.get_by_test_id("player")).to_be_hidden()
