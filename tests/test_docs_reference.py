"""docs/settings.md and docs/commands.md are what the settings and the parser say."""

from pathlib import Path

import pytest

from assets.deployment.settings import Settings
from docs.reference import DOCS, PAGES, commands_page, settings_page, written
from model.configuration import parse
from pipeline.cli import build_parser
from pipeline.convert import FORMS
from tests.pages import Page, names_in, page


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_code_says(name: str):
    assert (DOCS / name).read_text() == written(name), "python -m docs.reference --write"


def keys_of(title: str) -> set[str]:
    (table,) = page("docs/settings.md").section(title).tables()
    return {name for row in table[1:] for name in names_in(row[0])}


def test_the_page_has_the_keys_that_an_unknown_key_is_told():
    """The reader of settings names the known keys by itself: an independent list."""
    valid = {"root": "data", "sources": {}, "landing": "new"}
    for title in ("download", "features", "features.limits", "training", "shards", "automation"):
        values: dict[str, object] = {"nothing_like_it": 1}
        for step in reversed(title.split(".")):
            values = {step: values}
        with pytest.raises(ValueError, match=r"known: (.*)\)") as caught:
            parse(Settings, valid | values)
        known = str(caught.value).rpartition("(known: ")[2].rstrip(")")
        assert keys_of(title) == set(known.split(", ")), title


def test_every_command_has_a_heading_and_its_options():
    shown = Page("commands", commands_page())
    usage = build_parser().format_usage()
    commands = usage.rpartition("{")[2].partition("}")[0].replace("\n", "").replace(" ", "")
    headings = shown.headings()
    of_commands = [heading for heading in headings if heading.count(" ") == 1]
    assert of_commands == [f"hourllava {name}" for name in sorted(commands.split(","))]
    forms = [heading for heading in headings if heading.startswith("hourllava convert ")]
    assert forms == [f"hourllava convert {form}" for form in FORMS]
    told = shown.section("hourllava withdraw").text
    assert all(f"`{option}" in told for option in ("video", "--reason", "--dry-run", "--config"))


def test_bounds_and_allowed_values_stand_beside_a_key():
    text = settings_page()
    assert "| `connections` | whole number, at least 1, at most 16 | `4` |" in text
    assert "| `reencode` | `png`, `jpeg` | `png` |" in text
    assert "| `keep` | whole number, at least 2 | `2` |" in text
    assert "| `max_bytes` | whole number | `8589934592` (8 GiB) |" in text


def test_environment_variables_that_the_page_names_are_read_by_the_code():
    (table,) = page("docs/settings.md").section("Environment").tables()
    named = {name for row in table[1:] for name in names_in(row[0])}
    outside = {"DAGSTER_HOME", "DAGSTER_PG_URL", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY"}
    rooms = [Path(__file__).parents[1] / room for room in ("pipeline", "assets", "training")]
    source = "\n".join(file.read_text() for room in rooms for file in room.rglob("*.py"))
    assert {name for name in named - outside if f'"{name}"' not in source} == set()
