"""A page to judge a run by eye: each question with frames of what it is about, the right answer,
and what every checkpoint said.

One HTML file without a script and without an address in it: pictures lie inside, filters are style
alone, and what comes from questions and models is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from assets.evaluation.answers import Answer
from assets.evaluation.questions import EvaluationQuestion
from assets.evaluation.report import EvaluationReport

if TYPE_CHECKING:
    from PIL import Image

GALLERY = "gallery.html"
MOST = 300  # questions; a page of more is slow to open
FRAMES, SIDE, QUALITY = 3, 144, 70
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
OUTCOMES = {
    "gained": "wrong before, right now",
    "lost": "right before, wrong now",
    "kept": "right before and now",
    "never": "wrong before and now",
    "unasked": "could not be asked",
}
_STYLE = """
body{font:15px sans-serif;margin:1rem auto;max-width:62rem;color:#222}
fieldset{border:1px solid #ccc;margin:.4rem 0}label{margin-right:1rem;white-space:nowrap}
article{border:1px solid #ddd;border-left:.4rem solid #bbb;margin:.8rem 0;padding:.5rem .8rem}
.gained{border-left-color:#15803d}.lost{border-left-color:#b91c1c}.kept{border-left-color:#86efac}
.never{border-left-color:#fca5a5}img{margin-right:.3rem}pre{white-space:pre-wrap;font:inherit}
td,th{text-align:left;padding:.1rem .8rem .1rem 0;vertical-align:top}small{color:#666}
"""


def gallery_html(
    questions: Sequence[EvaluationQuestion],
    reports: Sequence[EvaluationReport],
    media: Path,
    log: Callable[[str], None],
) -> str:
    """The page.

    Args:
        questions: those that were asked.
        reports: the checkpoints in their order, the same with nothing shown at last; each has an
            answer to every question.
        media: folder that the questions' paths count from.
        log: told which media gave no picture.
    """
    *seen, _ = reports
    entries = [
        (question, [report.answers[at] for report in reports])
        for at, question in enumerate(questions)
    ]
    # Where not all have room, those in which something changed come first.
    changed = [e for e in entries if outcome(e[1][0], e[1][len(seen) - 1]) in ("gained", "lost")]
    shown = changed[:MOST]
    shown += [entry for entry in entries if entry not in changed][: MOST - len(shown)]
    shown.sort(key=lambda entry: entry[0].path)  # a video's frames are read once
    tasks = sorted({question.task or "all" for question, _ in shown})
    labels = [report.label for report in reports]
    pictures: dict[str, str] = {}
    parts = []
    for question, answers in shown:
        if question.path not in pictures:
            pictures[question.path] = _pictures(question, media, log)
        told = outcome(answers[0], answers[len(seen) - 1])
        classes = f"{told} t{tasks.index(question.task or 'all')}"
        parts.append(_entry(question, answers, labels, classes, pictures[question.path]))
    left_out = f"; {len(entries) - len(shown):,} more are not shown" if len(entries) > MOST else ""
    return "".join(
        (
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>Answers of {escape(seen[-1].name)}</title>",
            f"<style>{_STYLE}{_filter_style(tasks)}</style>",
            f"<h1>Answers of {escape(seen[-1].name)}</h1>",
            f"<p>{len(shown):,} questions{left_out}. Before: {escape(seen[0].name)}.</p>",
            _filters("outcome", list(OUTCOMES.items())),
            _filters("kind", [(f"t{at}", task) for at, task in enumerate(tasks)]),
            *parts,
            "</html>\n",
        )
    )


def outcome(before: Answer, now: Answer) -> str:
    """One of OUTCOMES."""
    if now.problem:
        return "unasked"
    if now.correct:
        return "kept" if before.correct else "gained"
    return "lost" if before.correct else "never"


def _filters(name: str, values: Sequence[tuple[str, str]]) -> str:
    """A choice of one value, or of all."""
    boxes = [f'<label><input type=radio name="{name}" checked> all</label>']
    boxes += [
        f'<label><input type=radio name="{name}" id="show-{key}"> {escape(text)}</label>'
        for key, text in values
    ]
    return f"<fieldset><legend>{name}</legend>{' '.join(boxes)}</fieldset>"


def _filter_style(tasks: Sequence[str]) -> str:
    """A value that is chosen hides what has another one."""
    keys = [*OUTCOMES, *(f"t{at}" for at in range(len(tasks)))]
    return "".join(
        f"body:has(#show-{key}:checked) article:not(.{key}){{display:none}}" for key in keys
    )


def _entry(
    question: EvaluationQuestion,
    answers: Sequence[Answer],
    labels: Sequence[str],
    classes: str,
    pictures: str,
) -> str:
    rows = "".join(
        f"<tr><th>{escape(label)}<td>{'right' if answer.correct else 'wrong'}"
        f"<td>{escape(answer.chosen)}<td>{escape(answer.generated)}"
        for label, answer in zip(labels, answers, strict=True)
        if not answer.problem
    )
    notes = [f"could not be asked: {answers[0].problem}"] if answers[0].problem else []
    notes += [f"damaged: {answers[0].damage}"] if answers[0].damage else []
    return (
        f'<article class="{classes}"><small>{escape(question.id)} · {escape(question.task)} · '
        f"{escape(question.path)}</small><div>{pictures}</div>"
        f"<pre>{escape(question.prompt)}</pre><p>right answer: <b>{escape(question.answer)}</b></p>"
        f"<table><tr><th>checkpoint<th><th>chose<th>wrote{rows}</table>"
        f"<small>{escape('; '.join(notes))}</small></article>"
    )


def _pictures(question: EvaluationQuestion, media: Path, log: Callable[[str], None]) -> str:
    """Pictures of what a question is about, as they stand in the page."""
    path = media / question.path
    try:
        if question.media == "video":
            found = _frames(path)
        elif question.media == "image":
            found = [_small_image(path)]
        else:
            found = []
    except (ValueError, OSError) as error:
        log(f"gallery: no picture of {question.path}: {error}")
        return "<small>no picture</small>"
    return "".join(
        f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="">'
        for jpeg in found
    )


def _frames(path: Path) -> list[bytes]:
    """Evenly chosen frames of a video; none of a feature file."""
    from PIL import Image

    from model.media.reader import decode
    from model.media.sampling import linspace_indices
    from model.media.timeline import read_timeline
    from training.formats.feature_file import SUFFIX

    if path.suffix == SUFFIX:
        return []
    line = read_timeline(path)
    # The first and the last frame are often black.
    inner = linspace_indices(line.frames, FRAMES + 2)[1:-1]
    return [_jpeg(Image.fromarray(frame)) for frame in decode(line, inner, size=SIDE)]


def _small_image(path: Path) -> bytes:
    from model.images import load_image

    image = load_image(path)
    image.thumbnail((2 * SIDE, SIDE))
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
