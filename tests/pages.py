"""Pages of the documentation as data: fenced blocks, tables, links. Tests hold them against the
code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

REPOSITORY = Path(__file__).parents[1]

_FENCE = re.compile(
    r"^(?P<indent>[ ]*)```(?P<language>[\w-]*)(?:[ \t]+(?P<title>\S[^\n]*))?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_RULE = re.compile(r"^\|(?:\s*:?-+:?\s*\|)+$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what stands behind the language, and its text."""

    page: str
    language: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file; ``name`` is its path below the repository."""

    name: str
    text: str

    def blocks(self, *languages: str) -> list[Block]:
        return [
            Block(self.name, match["language"], match["title"] or "", dedent(match["text"]))
            for match in _FENCE.finditer(self.text)
            if not languages or match["language"] in languages
        ]

    def links(self) -> list[str]:
        """Targets of links and images outside of fenced blocks."""
        return [match["target"] for match in _LINK.finditer(_FENCE.sub("", self.text))]

    def section(self, title: str) -> Page:
        """What stands below one heading, up to the next of its level or above.

        Raises:
            ValueError: there is no such heading.
        """
        lines = self.text.splitlines(keepends=True)
        marks = _headings(lines)
        for place, (start, level, text) in enumerate(marks):
            if text == title:
                later = [line for line, depth, _ in marks[place + 1 :] if depth <= level]
                return Page(self.name, "".join(lines[start + 1 : later[0] if later else None]))
        raise ValueError(
            f"{self.name} has no heading {title!r}; it has {', '.join(text for *_, text in marks)}"
        )

    def headings(self) -> list[str]:
        return [text for *_, text in _headings(self.text.splitlines(keepends=True))]

    def tables(self) -> list[list[list[str]]]:
        """Every table as rows of cells, its heading first, without Markdown's rule."""
        tables: list[list[list[str]]] = []
        rows: list[list[str]] = []
        for line in [*_FENCE.sub("", self.text).splitlines(), ""]:
            if line.startswith("|"):
                if not _RULE.match(line):
                    rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            elif rows:
                tables.append(rows)
                rows = []
        return tables


def page(name: str) -> Page:
    return Page(name, (REPOSITORY / name).read_text(encoding="utf-8"))


def pages() -> list[Page]:
    """What lies at the root, the README among it, and everything in `docs/`."""
    files = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").glob("*.md"))]
    return [page(str(file.relative_to(REPOSITORY))) for file in files]


def names_in(cell: str) -> list[str]:
    """The code words of a cell, without what stands around them."""
    return re.findall(r"`([^`]+)`", cell)


def _headings(lines: list[str]) -> list[tuple[int, int, str]]:
    """(line, level, text) of each heading outside of fenced blocks."""
    found, fenced = [], False
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and (match := re.match(r"(#+) (.*)", line)):
            found.append((number, len(match[1]), match[2].strip()))
    return found
