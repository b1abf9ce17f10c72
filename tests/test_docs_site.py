"""The documentation as a site: every page is in its navigation, and strict building passes."""

import functools
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from playwright.sync_api import expect

from tests.pages import REPOSITORY, pages
from tests.pipeline.browser import browser, missing_chromium

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's folder."""
    if MISSING:
        pytest.skip("mkdocs-material is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, check=False
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site: Path):
    diagrams = 0
    for name in IN_DOCS - {"index.md"}:
        shown = Shown()
        shown.feed((site / Path(name).stem / "index.html").read_text())
        diagrams += shown.diagrams
        assert [url for url in shown.loads if urlsplit(url).netloc] == [], name
        # What was not taken for Markdown is left as it was written.
        left = re.findall(r"```|\| ?---|\]\(|^ *\d\. |\*\*", shown.text, re.M)
        assert left == [], name
    written = (REPOSITORY / "docs").glob("*.md")
    assert diagrams == sum(page.read_text().count("```mermaid") for page in written)
    assert (site / "repository/pipeline/examples/own_videos.yaml.txt").is_file()


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_chromium()), reason=str(missing_chromium()))
def test_a_browser_draws_the_diagrams_and_asks_no_other_host(site: Path):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with browser(f"http://127.0.0.1:{server.server_port}") as ui:
            asked: list[str] = []
            ui.page.on("request", lambda request: asked.append(urlsplit(request.url).netloc))
            for name in ("architecture", "model"):
                ui.open(f"/{name}/")
                text = (REPOSITORY / f"docs/{name}.md").read_text()
                drawn = ui.page.locator("div.mermaid")  # a `pre` until then
                expect(drawn).to_have_count(text.count("```mermaid"))
                for diagram in drawn.all():
                    box = diagram.bounding_box()
                    assert box is not None
                    assert box["height"] > 100
            assert set(asked) == {f"127.0.0.1:{server.server_port}"}
            assert ui.problems == []
        server.shutdown()
