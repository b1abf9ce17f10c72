"""The gallery shows what was asked and answered, and obeys nothing of it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from assets.evaluation import gallery
from assets.evaluation.answers import Answer
from assets.evaluation.gallery import gallery_html
from assets.evaluation.report import EvaluationReport

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Tags with their attributes, and the text of each article."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.articles, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self.inside = True
            self.articles.append((dict(attrs)["class"], ""))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "article"

    def handle_data(self, data):
        if self.inside:
            name, text = self.articles[-1]
            self.articles[-1] = name, f"{text} {data}"


def answered(question, correct, said):
    return Answer(
        id=question.id,
        task=question.task,
        form=question.form,
        duration=None,
        prompt="",
        expected=question.answer,
        chosen=said,
        generated=said,
        correct=correct,
        written_correct=correct,
    )


@pytest.fixture
def reports(questions):
    def report(name, right, visuals=True):
        answers = [
            answered(question, question.id in right, f"{name} says {question.id}")
            for question in questions
        ]
        return EvaluationReport(name, visuals, answers, "")

    return [
        report("base_model", {"q0", "q1"}),
        report("stage3", {"q1", "q2"}),
        report("stage3", set(), visuals=False),
    ]


def test_each_question_has_its_frames_and_answers_and_what_became_of_it(questions, reports, media):
    page = Page(gallery_html(questions, reports, media, pytest.fail))
    found = {re.search(r"q\d", text)[0]: (name, text) for name, text in page.articles}
    became = {id: name.split()[0] for id, (name, _) in found.items()}
    assert became == {"q0": "lost", "q1": "kept", "q2": "gained", "q3": "never", "q4": "never"}
    for words in ("What colour is the square?", "blue", "base_model says q1", "stage3 says q1"):
        assert words in found["q1"][1]
    pictures = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(pictures) == 3 * 3 + 1  # three questions about videos, one about an image
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in pictures)
    assert len(set(pictures)) == 2 * 3 + 1  # of two videos


def test_what_questions_and_models_say_stays_text(questions, reports, media):
    hostile = replace(questions[3], question=HOSTILE, task=HOSTILE, id=HOSTILE, answer=HOSTILE)
    for report in reports:
        report.answers[3] = replace(report.answers[3], chosen=HOSTILE, generated=HOSTILE)
    text = gallery_html([*questions[:3], hostile, questions[4]], reports, media, pytest.fail)
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "a", "iframe", "link", "object"})
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert any("<script>alert(1)</script>" in text for _, text in page.articles)
    assert "default-src 'none'" in text


def test_a_filter_for_each_outcome_and_kind_names_what_it_leaves(questions, reports, media):
    text = gallery_html(questions, reports, media, pytest.fail)
    page = Page(text)
    ids = {attrs["id"] for tag, attrs in page.tags if tag == "input" and "id" in attrs}
    for name, _ in page.articles:
        for key in name.split():
            assert f"show-{key}" in ids
            assert f"#show-{key}:checked) article:not(.{key})" in text


def test_media_that_cannot_be_read_cost_their_pictures_only(questions, reports, tmp_path):
    told = []
    page = Page(gallery_html(questions, reports, tmp_path, told.append))
    assert len(page.articles) == 5
    assert {line.split()[4].rstrip(":") for line in told} == {
        "short.mp4",
        "long.mp4",
        "picture.jpg",
    }


def test_where_not_all_have_room_what_changed_stays(questions, reports, media, monkeypatch):
    monkeypatch.setattr(gallery, "MOST", 2)
    text = gallery_html(questions, reports, media, pytest.fail)
    assert {name.split()[0] for name, _ in Page(text).articles} == {"lost", "gained"}
    assert "2 questions; 3 more are not shown" in text
