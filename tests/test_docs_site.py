"""The documentation as a site: every page is in its navigation, and strict building passes."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.pages import REPOSITORY, pages

SITE = REPOSITORY / "mkdocs.yml"
MISSING = find_spec("mkdocs") is None or find_spec("material") is None
IN_DOCS = {Path(shown.name).name for shown in pages() if shown.name.startswith("docs/")}


class _AnyTag(yaml.SafeLoader):
    """Reads the file's Python names as nothing, so that reading runs no code."""


_AnyTag.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
CONFIG = yaml.load(SITE.read_text(), Loader=_AnyTag)


def files_of(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav
    return [file for item in inner for file in files_of(item)]


def test_every_page_stands_in_the_navigation_once():
    named = files_of(CONFIG["nav"])
    assert sorted(named) == sorted(IN_DOCS)


def test_the_home_page_and_the_readme_lead_to_every_page():
    for name in ("README.md", "docs/index.md"):
        (shown,) = [one for one in pages() if one.name == name]
        led = {Path(urlsplit(link).path).name for link in shown.links()}
        # What is rarely looked for is one step further from the home page.
        further = {"contributing.md", "encoders.md", "estimate.md", "model.md"}
        further |= {"transformers.md", "videos.md"}
        assert IN_DOCS - led - {"index.md"} <= (further if name == "docs/index.md" else set())


class Shown(HTMLParser):
    """The text of a page outside of code, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.loads, self.diagrams, self._code = "", [], 0, 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self._code += tag in ("code", "pre", "script", "style")
        self.diagrams += tag == "pre" and given.get("class") == "mermaid"
        if tag in ("script", "img", "link", "iframe"):
            self.loads.append(given.get("src") or given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text += data


@pytest.mark.slow
@pytest.mark.skipif(MISSING, reason="mkdocs-material is not installed: pip install '.[docs]'")
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    diagrams = 0
    for name in IN_DOCS - {"index.md"}:
        shown = Shown()
        shown.feed((tmp_path / Path(name).stem / "index.html").read_text())
        diagrams += shown.diagrams
        assert [url for url in shown.loads if urlsplit(url).netloc] == [], name
        # What was not taken for Markdown is left as it was written.
        left = re.findall(r"```|\| ?---|\]\(|^ *\d\. |\*\*", shown.text, re.M)
        assert left == [], name
    written = (REPOSITORY / "docs").glob("*.md")
    assert diagrams == sum(page.read_text().count("```mermaid") for page in written)
    assert (tmp_path / "repository/pipeline/examples/own_videos.yaml.txt").is_file()
