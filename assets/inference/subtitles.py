"""Subtitles as part of a question: SRT or WebVTT, read with bounds, and as much of them as the
prompt has room for.

Their text comes from strangers. It is plain text in the prompt and nothing else: markup is taken
out, and so is whatever the tokenizer would read as the end of a turn or the place of a picture.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

SUFFIXES = (".srt", ".vtt")
MAX_BYTES = 4 << 20  # a day of dense subtitles has about a tenth of it
MAX_CUES = 50_000
MAX_CUE_CHARACTERS = 500
HEADER = "This video's subtitles are listed below:"  # as published for Video-MME
_CLOCK = r"(?:\d{1,3}:)?[0-5]?\d:[0-5]\d[.,]\d{3}"
_TIMES = re.compile(rf"\s*(?P<start>{_CLOCK})\s+-->\s+(?P<end>{_CLOCK})(?:\s|$)")
_TAG = re.compile(r"<[^<>\n]{0,100}>|\{\\[^{}\n]{0,100}\}")


@dataclass(frozen=True, slots=True)
class Cue:
    """What is said or shown from one second to another, on one line."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path) -> list[Cue]:
    """The cues of a file in the order of their time; two that say the same in a row are one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not subtitles, or more than a video can have; it names the file.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: subtitles are {' or '.join(SUFFIXES)} files")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        return parse_subtitles(path.read_bytes(), path.suffix.lower())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_subtitles(data: bytes, suffix: str) -> list[Cue]:
    """The same of a file's content.

    Args:
        suffix: `.srt` or `.vtt`.

    Raises:
        ValueError: it says what is wrong.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{len(data):,} bytes of subtitles; at most {MAX_BYTES:,} are read")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"subtitles are UTF-8 text ({error})") from error
    if suffix == ".vtt" and not text.startswith("WEBVTT"):
        raise ValueError("a .vtt file begins with WEBVTT")
    if text.count("-->") > MAX_CUES:
        raise ValueError(f"more than {MAX_CUES:,} cues")
    cues: list[Cue] = []
    for cue in sorted(filter(None, map(_cue, text.split("\n\n"))), key=lambda cue: cue.start):
        if cues and cues[-1].text == cue.text:
            cues[-1] = replace(cues[-1], end=max(cues[-1].end, cue.end))
        else:
            cues.append(cue)
    if not cues:
        raise ValueError(f"no {suffix} subtitles in it")
    return cues


def _cue(block: str) -> Cue | None:
    """The cue that a paragraph of the file holds: a line with two times, and its text below. Notes,
    styles and what says nothing are None.
    """
    lines = block.strip("\n").split("\n")
    for number, line in enumerate(lines[:2]):  # a name of its own may stand above the times
        if times := _TIMES.match(line):
            start, end = (_seconds(times[name]) for name in ("start", "end"))
            said = _plain(" ".join(lines[number + 1 :]))
            return Cue(start, end, said) if said and start <= end else None
    return None


def _seconds(clock: str) -> float:
    parts = [float(part) for part in clock.replace(",", ".").split(":")]
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))


def with_subtitles(
    question: str, cues: Sequence[Cue], tokens: Callable[[str], int], most: int
) -> str:
    """A question below the subtitles of its video, one cue a line.

    Where they are more than the prompt has room for, evenly chosen cues stay, so that no stretch
    of the video is silent.

    Args:
        tokens: length of a text in tokens.
        most: tokens that the subtitles may take.

    Returns:
        the question alone, where not even one cue fits.
    """
    lengths = [tokens(f"{cue.text}\n") for cue in cues]
    room = most - tokens(f"{HEADER}\n")
    kept = len(cues)
    while kept and sum(lengths[at] for at in _spread(kept, len(cues))) > room:
        kept = kept * 9 // 10
    if not kept:
        return question
    lines = [cues[at].text for at in _spread(kept, len(cues))]
    return "\n".join([HEADER, *lines, question])


def _spread(kept: int, total: int) -> list[int]:
    """`kept` of `total` numbers, evenly, from the first on."""
    return [place * total // kept for place in range(kept)]


def _plain(text: str) -> str:
    """One line without markup. `<image>` and `<|im_end|>` are tags, too."""
    untagged = html.unescape(_TAG.sub("", text))
    # What unescaping, or taking out an inner tag, has put together.
    harmless = untagged.replace("<", "\u2039").replace(">", "\u203a")
    printable = "".join(letter if letter.isprintable() else " " for letter in harmless)
    return " ".join(printable.split())[:MAX_CUE_CHARACTERS]
