"""A sample of rows for a person: a sheet to fill in, and a page with pictures of the evidence."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from assets.captions.frames import Clip, ClipReader
from assets.fetching.locked_children import InvalidVideo
from assets.questions.rows import Row, asked
from training.formats.hashing import stable_hash

COLUMNS = (
    *("id", "content", "video", "start", "end", "question", "options", "answer"),
    *("verdict", "right_answer", "note"),
)
# A cell that begins so is run as a formula by table programs.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'">
<title>Rows to judge</title>
<style>body{font-family:sans-serif;max-width:70em;margin:auto}pre{white-space:pre-wrap}
img{width:24%}</style></head><body>
<h1>Rows to judge</h1>
<p>Fill in <code>sheet.csv</code>: verdict is accept, reject or correct; a corrected row needs
right_answer (of multiple choice: a letter).</p>
"""


def sample(rows: Sequence[Row], number: int) -> list[Row]:
    """Rows drawn by a hash of their ids: a row keeps its place in the draw whatever comes."""
    used = [row for row in rows if not row.reasons]
    return sorted(used, key=lambda row: stable_hash("sheet", row.id))[:number]


def sheet_csv(rows: Sequence[Row]) -> bytes:
    """The sheet; texts that a table program would run are marked as texts."""
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(COLUMNS)
    for row in rows:
        options = "\n".join(asked("", row.options).splitlines()[1:])
        seconds = [f"{row.start:.1f}", f"{row.end:.1f}"]
        texts = [row.question, options, row.written_answer]
        cells = [row.id, row.content, row.video, *seconds, *texts, "", "", ""]
        table.writerow([_as_text(cell) for cell in cells])
    return file.getvalue().encode("utf-8-sig")


def frames_html(
    rows: Sequence[Row], videos: Mapping[str, tuple[Path, str]], reader: ClipReader
) -> bytes:
    """The page. Texts are escaped, pictures stand in it, and it may load nothing.

    Args:
        videos: `source/id` -> its file, and the hash of it.
    """
    parts = [_HEAD]
    for row in rows:
        pictures = _pictures(row, videos, lambda *what: next(reader.read(*what))[1].jpegs)
        text = asked(row.question, row.options)
        parts.append(
            f"<h2>{html.escape(row.id)}</h2>\n"
            f"<p>{html.escape(row.video)}, {row.start:.1f} to {row.end:.1f} s</p>\n{pictures}\n"
            f"<pre>{html.escape(text)}</pre>\n<p>Answer: {html.escape(row.written_answer)}</p>\n"
        )
    return ("".join(parts) + "</body></html>\n").encode()


def _pictures(
    row: Row,
    videos: Mapping[str, tuple[Path, str]],
    read: Callable[[Path, str, list[Clip]], tuple[bytes, ...]],
) -> str:
    if row.video not in videos:
        return "<p>The video is not there any more.</p>"
    path, sha256 = videos[row.video]
    try:
        jpegs = read(path, sha256, [Clip(0, row.start, row.end)])
    except InvalidVideo as error:
        return f"<p>No pictures: {html.escape(error.reason)}</p>"
    return "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
        for jpeg in jpegs
    )


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
