"""What MkDocs needs to know of these pages, which are written to be read in the repository as well.

MkDocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+)\)")  # a file of the repository that is not in docs/
COPIES = "repository"  # folder of the site with copies of such files
# The name behind a fence's language is for the tests (`diff source`); MkDocs would not take it.
NAMED_FENCE = re.compile(r"^(\s*```\w+) +\w+$", re.M)
STEP = re.compile(r"\d\. ")
# Material would load Mermaid from another host, unless a page brings its own. NiceGUI's package
# holds one.
DIAGRAMS = "assets/mermaid"
OWN_MERMAID = """import { mermaid } from "./index.js";
window.mermaid = mermaid;
"""


def on_files(files: Any, config: Any) -> Any:
    """Take the files into the site that pages link to and that lie outside of docs/, and what draws
    their diagrams.
    """
    from mkdocs.structure.files import File

    pages = [file for file in files if file.src_uri.endswith(".md")]
    for name in sorted({name for page in pages for name in OUTSIDE.findall(page.content_string)}):
        text = (REPOSITORY / name).read_text()
        # A browser shows text, whatever the suffix before it.
        files.append(File.generated(config, f"{COPIES}/{name}.txt", content=text))
    nicegui = find_spec("nicegui")
    assert nicegui is not None  # the extra `docs` has it
    assert nicegui.origin is not None
    drawing = Path(nicegui.origin).parent / "elements" / "mermaid" / "dist"
    scripts = {path.name: path.read_text() for path in sorted(drawing.glob("*.js"))}
    for name, text in {**scripts, "own.mjs": OWN_MERMAID}.items():
        files.append(File.generated(config, f"{DIAGRAMS}/{name}", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page as MkDocs reads Markdown."""
    linked = OUTSIDE.sub(lambda match: f"]({COPIES}/{match[1]}.txt)", markdown)
    return _indented(NAMED_FENCE.sub(r"\1", linked))


def _indented(markdown: str) -> str:
    """What belongs to a numbered step, by four spaces in place of three."""
    lines, inside = [], False
    for line in markdown.split("\n"):
        inside = bool(STEP.match(line)) or (inside and (not line or line.startswith("   ")))
        lines.append(f" {line}" if inside and line.startswith("   ") else line)
    return "\n".join(lines)
