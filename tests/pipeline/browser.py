"""The Dagster UI in headless Chromium: what a user clicks and reads. The tests and
docs/screenshots.py share it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Locator, Page, Response, expect, sync_playwright

CHROMIUM = "chromium"  # the program, and Debian's package
TIMEOUT_MS = 60_000  # of one step, on a machine that is busy
expect.set_options(timeout=TIMEOUT_MS)
_LAUNCHED = re.compile("Launched run ([0-9a-f]{8})")


def missing_chromium() -> str | None:
    """Why there can be no browser here and what to do about it; None when there can."""
    if shutil.which(CHROMIUM):
        return None
    return f"no {CHROMIUM} on this machine; `make browser` installs Debian's package {CHROMIUM}"


@dataclass(frozen=True, slots=True)
class Ui:
    """One browser window on a running Dagster.

    Attributes:
        problems: what went wrong behind the pages: console errors, exceptions, answers that are
            errors.
    """

    page: Page
    url: str
    problems: list[str]

    def open(self, path: str = "/") -> None:
        """Go to an address of the webserver."""
        self.page.goto(self.url + path)

    def open_asset(self, asset: str) -> None:
        """From wherever the window is: to the asset's page, by the search that every page has."""
        self.page.get_by_role("button", name="Search").click()
        self.page.get_by_placeholder("Search assets, jobs").fill(asset)
        self.page.get_by_role("link", name=f"{asset} Asset in").click()
        self.tab("Overview").wait_for()

    def tab(self, title: str) -> Locator:
        """A tab of an asset's page."""
        return self.page.get_by_role("tab", name=title, exact=True)

    def choose_partition(self, *keys: str) -> None:
        """On an asset's page: choose a partition in its tab, by one key for each dimension."""
        self.tab("Partitions").click()
        for key in keys:
            self.page.get_by_text(key, exact=True).first.click()
        self.page.get_by_text("Latest materialization").wait_for()

    def materialize(self) -> str:
        """On an asset's page with a partition chosen: launch a run for it, and go to that run's
        page.

        Returns:
            The first eight characters of the run's id.
        """
        self.page.get_by_role("button", name="Materialize…").first.click()
        self.page.get_by_role("button", name="Launch 1 run").click()
        said = self.page.get_by_text(_LAUNCHED)
        said.wait_for()
        launched = _LAUNCHED.search(said.inner_text())
        assert launched
        self.page.get_by_text("View", exact=True).click()
        self.page.wait_for_url(f"**/runs/{launched[1]}*")
        return launched[1]

    def end_of_run(self) -> str:
        """On a run's page: wait until the run is over and return its status, as it stands there."""
        status = self.page.get_by_text(re.compile("^(Success|Failure|Canceled)$")).first
        status.wait_for(timeout=3 * TIMEOUT_MS)
        return status.inner_text()

    def metadata_table(self) -> Locator:
        """On an asset's page with a partition chosen: the table of metadata."""
        return self.page.get_by_text("Metadata", exact=True).locator("xpath=following::table[1]")

    def metadata(self) -> dict[str, str]:
        """On an asset's page with a partition chosen: each key of the metadata and its value, as
        text.
        """
        rows = self.metadata_table().locator("xpath=./tbody/tr")
        rows.locator("td:nth-child(2)").first.wait_for()  # until then it says that there is none
        cells = rows.evaluate_all(
            "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return {row[0]: row[1] for row in cells}

    def open_picture(self, key: str) -> Locator:
        """On an asset's page with a partition chosen: the picture that is behind a key of the
        metadata.
        """
        row = self.page.get_by_role("row").filter(
            has=self.page.get_by_role("cell", name=key, exact=True)
        )
        row.get_by_text("[Show Markdown]").click()
        picture = self.page.get_by_role("dialog").locator("img")
        picture.wait_for()
        return picture

    def open_graph(self) -> None:
        """From wherever the window is: to the graph of all assets, which shows groups only."""
        self.page.get_by_role("link", name=re.compile("Lineage$")).click()
        self.graph_nodes().first.wait_for()

    def open_all_groups(self) -> None:
        """In the graph of all assets: show every group's assets, fit the graph into the window."""
        self.page.keyboard.press("Alt+e")
        self.small_nodes().first.wait_for()

    def graph_nodes(self) -> Locator:
        """In a lineage graph: the boxes with a text, be they groups or assets."""
        return self.page.locator("svg foreignObject").filter(has_text=re.compile(r"\S"))

    def small_nodes(self) -> Locator:
        """In a zoomed-out lineage graph: the boxes of assets, which hold a name and no facts."""
        return self.page.locator("svg foreignObject [class*=minimalAssetNodeBox]")


@contextmanager
def browser(url: str, width: int = 1400, height: int = 900, scale: float = 1) -> Iterator[Ui]:
    """A window on the webserver at ``url``, closed when the block ends.

    Args:
        width, height: size of the window in CSS pixels.
        scale: pixels of a screenshot for each of them.
    """
    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=shutil.which(CHROMIUM),
            args=[
                "--no-sandbox"
            ],  # as root, in a container, Chromium does not start with a sandbox
        )
        context = program.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=scale,
            timezone_id="UTC",
            locale="en-US",
            color_scheme="light",
        )
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        problems: list[str] = []
        page.on(
            "console",
            lambda said: problems.append(f"console: {said.text}") if said.type == "error" else None,
        )
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on("response", lambda response: problems.extend(_problems_of(response)))
        try:
            yield Ui(page, url, problems)
        finally:
            program.close()


def _problems_of(response: Response) -> list[str]:
    if response.status >= 400:
        return [f"HTTP {response.status}: {response.url}"]
    return []
