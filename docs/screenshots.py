"""Take the pictures of docs/images/ again, from the demo's deployment: ``make demo``, then ``make
screenshots``.

What the pictures show is what that deployment says: nothing is made up, and only the repository's
own folder is cut from paths.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

from pipeline.demo.instance import REPOSITORY, dagster
from tests.pipeline.browser import Ui, browser, missing_chromium
from tests.pipeline.serving import serving

IMAGES = REPOSITORY / "docs" / "images"
MOST_BYTES = 400_000
WIDTH = 1280  # of the window, in CSS pixels
HIGHEST = 1500
MARGIN = 16  # CSS pixels around what is shown
SCALE = 1.25  # pixels of a picture for each CSS pixel, so that it is sharp on dense displays too

# Boxes are grey until their state has been fetched; assets outside of the deployment have none and
# stay so.
ALL_BOXES_HAVE_A_STATE = """
() => [...document.querySelectorAll('[class*=minimalAssetNodeBox][class*=materializable]')]
      .every(box => !box.style.cssText.includes('--minimal-bg: var(--color-background-light)'))
"""
CUT_PATHS = """
root => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode())
    walker.currentNode.data = walker.currentNode.data.replaceAll(root + '/', '');
}
"""


def main() -> int:
    """Start Dagster on the deployment, take every picture, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m docs.screenshots", description=__doc__)
    parser.add_argument(
        "--home",
        type=Path,
        default=REPOSITORY,
        help="folder with the dagster.yaml and the history of the demo",
    )
    parser.add_argument(
        "--deployment", type=Path, default=REPOSITORY / ".demo", help="folder that the demo wrote"
    )
    chosen = parser.parse_args()
    settings = chosen.deployment.resolve() / "deployment.yaml"
    if reason := missing_chromium():
        print(f"screenshots: {reason}", file=sys.stderr)
        return 2
    if not (settings.parent / "data" / "lineage" / "stage3").is_dir():
        print(
            f"screenshots: {settings.parent} holds no finished demo; run `make demo` first",
            file=sys.stderr,
        )
        return 2
    IMAGES.mkdir(exist_ok=True)
    root = str(settings.parent.parent)
    with dagster(settings, settings.parent / "dagster.log", chosen.home.resolve()) as client:
        # Tall, so that neither the bar above the graph nor the buttons at its lower right cover any
        # of it.
        with browser(client.url, WIDTH, 2100, SCALE) as ui:
            save("asset-graph", asset_graph(ui))
        with browser(client.url, WIDTH, 800, SCALE) as ui:
            save("shards", partition_page(ui, "llavavideo_si", "part0", root))
        with browser(client.url, WIDTH, 800, SCALE) as ui:
            save("stage3", stage3_page(ui, root))
    with (
        serving("--config", str(settings), "--device", "cpu") as url,
        browser(url, WIDTH, 1000) as ui,
    ):
        save("serve", serve_page(ui))
        save("gallery", gallery_page(ui))
    return 0


def asset_graph(ui: Ui) -> bytes:
    """The graph of all assets with every group opened, without the page around it."""
    ui.open()
    ui.open_graph()
    hide_navigation(ui)
    ui.page.get_by_placeholder("Jump to…").locator(
        "xpath=following::button[1]"
    ).click()  # the list at the left
    ui.open_all_groups()
    ui.page.wait_for_function(ALL_BOXES_HAVE_A_STATE)
    boxes = ui.page.locator("svg foreignObject").evaluate_all(
        "boxes => boxes.map(box => box.getBoundingClientRect()).map(r => [r.left, r.top, r.right, "
        "r.bottom])"
    )
    left, top = (min(box[side] for box in boxes) - MARGIN for side in (0, 1))
    right, bottom = (max(box[side] for box in boxes) + MARGIN for side in (2, 3))
    return ui.page.screenshot(
        animations="disabled",
        clip={"x": left, "y": top, "width": right - left, "height": bottom - top},
    )


def partition_page(ui: Ui, asset: str, partition: str, root: str) -> bytes:
    """The page of one partition of an asset, down to the end of its metadata."""
    ui.open()
    ui.open_asset(asset)
    hide_navigation(ui)
    ui.choose_partition(partition)
    ui.metadata()
    ui.page.evaluate(CUT_PATHS, root)
    end = ui.metadata_table().evaluate("table => table.getBoundingClientRect().bottom")
    ui.page.set_viewport_size({"width": WIDTH, "height": min(HIGHEST, round(end) + MARGIN)})
    return ui.page.screenshot(animations="disabled")


def stage3_page(ui: Ui, root: str) -> bytes:
    """The page of stage 3 of the demo's variant, with the curve of its loss opened."""
    partition_page(ui, "stage3", "tiny", root)
    ui.page.set_viewport_size({"width": WIDTH, "height": 800})
    ui.open_picture("loss curve")
    return ui.page.screenshot(animations="disabled")


def serve_page(ui: Ui) -> bytes:
    """The page of `hourllava serve` after a question about the deployment's first video."""
    ui.open("/?checkpoint=stage3[tiny]")
    ui.page.get_by_label("Video", exact=True).click()
    ui.page.get_by_role("option").first.click()
    ui.page.get_by_label("Question").fill("What colour is the square at the end of the video?")
    ui.page.get_by_role("button", name="Ask", exact=True).click()
    ui.page.get_by_test_id("band").wait_for()
    return ui.page.screenshot(animations="disabled")


def gallery_page(ui: Ui) -> bytes:
    """The beginning of the gallery of the variant's evaluation."""
    ui.open("/gallery/tiny")
    return ui.page.screenshot(animations="disabled")


def hide_navigation(ui: Ui) -> None:
    ui.page.get_by_role("button", name="Hide navigation").click()


def save(name: str, png: bytes) -> None:
    """Write a picture with a palette, which a page of text and boxes loses nothing by.

    Raises:
        ValueError: it is too large for the repository.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    size = len(file.getvalue())
    if size > MOST_BYTES:
        raise ValueError(
            f"{name}.png is {size:,} bytes, more than {MOST_BYTES:,}; take a smaller part of the "
            "page"
        )
    (IMAGES / f"{name}.png").write_bytes(file.getvalue())
    print(f"docs/images/{name}.png  {picture.width} x {picture.height}  {size:,} bytes", flush=True)


if __name__ == "__main__":
    sys.exit(main())
