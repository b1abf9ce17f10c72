"""What strangers wrote, as the UI shows it: letter by letter. A Markdown parser is the judge."""

import re
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from assets.evaluation.answers import Answer
from assets.evaluation.report import example_question
from assets.records.rendering import (
    code,
    code_block,
    description,
    product_links,
    samples,
    table,
)

REPOSITORY = Path(__file__).parents[3]
MUTATION = "/graphql?query=mutation{terminateRuns(runIds:[]){__typename}}"
HOSTILE = {
    "picture": f"![x]({MUTATION})",
    "picture by reference": f"![x][1]\n\n[1]: {MUTATION}",
    "link": f"[l]({MUTATION})",
    "link by reference": f"[l]\n\n[l]: {MUTATION}",
    "HTML": f'<img src="{MUTATION}"><script>alert(1)</script><a href=x>y</a>',
    "comment": f"<!-- --> <img src={MUTATION}>",
    "autolink": "<https://evil.example/x> <a@evil.example>",
    "address": "https://evil.example www.evil.example a@evil.example",
    "cell's end": f"| a |\n|---|\n| ![x]({MUTATION}) |",
    "code's end": f"a` ![x]({MUTATION}) `b",
    "fence's end": f"```\n![x]({MUTATION})\n~~~\n![y]({MUTATION})\n````\n<img src=x>",
    "other line ends": f"a\r\r![x]({MUTATION})\r\n\r\n<img src=x>",
    "backslash": f"\\![x]({MUTATION})\\",
    "heading, quote, rule": "# a\n> b\n***\nc\n===",
}
PICTURES_AND_LINKS = {"image", "link_open", "html_inline", "html_block"}
ACTIVE = ("image", "link_open", "html_inline", "html_block", "heading_open", "table_open", "hr")
# What GitHub's dialect makes links of, after backslashes are gone, unless it is code or a link.
ADDRESS = re.compile(r"https?://|www\.|\S@\S", re.IGNORECASE)


def tokens(markdown):
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for token in parser.parse(markdown):
        yield from token.children or [token]


def active(markdown):
    """What a page would hold of a text besides text."""
    found = list(tokens(markdown))
    bare = [t.content for t in found if t.type == "text" and ADDRESS.search(t.content)]
    return [token.type for token in found if token.type in ACTIVE] + bare


def shown(markdown):
    return "".join(t.content for t in tokens(markdown) if t.type in ("text", "code_inline"))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_the_judge_finds_what_is_not_escaped(text):
    assert active(text) or active(f"`{text}`")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_name_that_is_markup_is_shown_as_it_is(text):
    assert active(code(text)) == []
    assert shown(code(text)) == re.sub(r"[\r\n]+", " ", text)
    links = product_links([text, f"videos[{text}]", "videos[part0]", text])
    found = [token for token in tokens(links.value) if token.type in ACTIVE]
    assert {token.type for token in found} == {"link_open"}
    assert all(token.attrs["href"].startswith("/assets/videos?partition=") for token in found)
    assert [token.type for token in tokens(code_block(text).value)] == ["fence"]


@given(st.text("`![]()<>|\\&;: \t\r\n#*_~=-.@/wahtps1\0", max_size=40))
def test_no_text_is_obeyed(text):
    assert active(code(text)) == []
    assert not PICTURES_AND_LINKS & set(active(description(text)))
    assert [token.type for token in tokens(code_block(text).value)] == ["fence"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_check_says_of_a_stranger_s_name_is_no_markup(text):
    said = description(f"3 of 4 videos are not there, such as {text}")
    assert not PICTURES_AND_LINKS & set(active(said))
    assert not ADDRESS.search("".join(t.content for t in tokens(said) if t.type == "text"))
    assert text.split()[-1] in shown(said).split() or "===" in text


def test_a_check_without_any_is_shown_as_it_was_written():
    said = "videos[part0|web]: 3 of 4 files are whole; `a*b` is not (see stage3[tiny])"
    assert description(said) == said


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_row_or_a_model_says_is_a_table_of_text(text):
    answer = Answer(
        id=text, task=text, form="open", duration=1.0, prompt=text, expected=text, chosen=text,
        generated=text, correct=True, written_correct=True, scores=[1.0], choices=[text],
    )  # fmt: skip
    rows = [{"id": text, "conversation": f"human: {text}\ngpt: {text}"}]
    entries = {**samples(rows), "one question": table(example_question([answer]))}
    assert len(entries) == 3
    for entry in entries.values():
        assert isinstance(entry, dg.TableMetadataValue)
        assert any(text in str(cell) for row in entry.records for cell in row.data.values())


def test_markdown_is_made_in_one_file_alone():
    found = {
        str(path.relative_to(REPOSITORY))
        for room in ("assets", "pipeline", "training", "model")
        for path in (REPOSITORY / room).rglob("*.py")
        if re.search(r"MetadataValue\.md\(|MarkdownMetadataValue\(", path.read_text())
    }
    assert found == {"assets/records/rendering.py"}
