"""What share of known errors the checks of written rows find.

Drawn films, an endpoint that describes them and errs at known rates (`question_world.py`), and the
captions and questions that the pipeline makes of its answers. No model takes part: the numbers say
what the checks do with an examiner that reads captions rightly, and nothing about a real one.

    python -m benchmarks.questions --preset tiny      # seconds, on any CPU
    python -m benchmarks.questions --preset small
    python -m benchmarks.questions --preset tiny --writer http://localhost:8000/v1 --model NAME

With a writer, a real model has the text steps: events, questions and their checks. What is wrong
with its rows nobody knows; what became of them is told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from assets.captions.answerers import askers
from assets.captions.build import describe_source
from assets.deployment.settings import load_settings
from assets.questions.build import ask_about_source
from benchmarks.model_server import ModelServer
from benchmarks.question_world import Painter
from pipeline.demo.drawing import invent_film, write_film
from training.formats import layout
from training.formats.storage import Storage

PRESETS = {"tiny": 2, "small": 10}  # films
ROW_ERRORS, CAPTION_ERRORS = 0.25, 0.1
NO_ERROR = "nothing"


def run(films: int, folder: Path, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make captions and questions about drawn films; what became of the rows, by what is wrong.

    Args:
        more: of the section `questions` of the settings.
    """
    for number in range(films):
        # Each film has its own length, so that no two have a question in common.
        film = invent_film(f"film{number}", 40 + number, 2, 3)
        write_film(folder / "videos" / f"film{number}.mp4", film)
    painter = Painter(ROW_ERRORS, CAPTION_ERRORS)
    started = time.monotonic()
    with ModelServer(painter) as server:
        storage, captioned, report = _ask(folder, server.url, more or {})
        requests = len(server.requests)
    captions = pq.read_table(storage.local(layout.captions("own", "clips.parquet"))).to_pylist()
    summaries = {(row["video"], row["clip"]): row["summary"] for row in captions}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name in ("rows.parquet", "rejected.parquet"):
        for row in pq.read_table(storage.local(layout.questions("own", name))).to_pylist():
            clip = next(iter(row["evidence_clips"]), None)  # a real model names any, or none
            seen = summaries.get((f"own/{row['video']}", clip), "")
            kind = painter.wrong.get(row["question"])
            kind = kind or painter.wrong_captions.get(seen, NO_ERROR)
            found[kind][row["reasons"][0] if row["reasons"] else "used"] += 1
    return {
        "rows": report.counts["rows written"],
        "counts": {**captioned.counts, **report.counts},
        "answers": report.answers,
        "spent": storage.read_json(layout.spent("own")),
        "requests": requests,
        "seconds": time.monotonic() - started,
        "found": found,
    }


def _ask(folder: Path, url: str, more: Mapping[str, Any]) -> tuple[Storage, Any, Any]:
    describer = {"kind": "endpoint", "url": url, "model": "painter"}
    chosen = {"sources": ["own"], "describer": describer, "clip_s": 10, "frames": 4, "side": 160}
    settings = {
        "root": "root",
        "sources": {"own": {"kind": "drop", "folder": "videos"}},
        "questions": {**chosen, "sheet_rows": 1, **more},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(settings))
    given = load_settings(path)
    storage = Storage(given.root)
    describer_asker, writer = askers(storage, given, "own", print)
    captions = describe_source(storage, given, "own", describer_asker, writer, print)
    report = ask_about_source(storage, given, "own", captions.version, writer, print)
    return storage, captions, report


def table(found: dict[str, Counter[str]]) -> str:
    """A row for each error: how many rows had it, how many were set aside, for which reasons."""
    lines = ["| what is wrong with a row | rows | set aside | reasons |", "|---|---|---|---|"]
    for kind, counts in sorted(found.items(), key=lambda entry: entry[0]):
        aside = counts.total() - counts["used"]
        reasons = ", ".join(f"{why} {n}" for why, n in counts.most_common() if why != "used")
        share = f"{aside} ({aside / counts.total():.0%})"
        lines.append(f"| {kind} | {counts.total()} | {share} | {reasons} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--writer", help="address of an endpoint for the text steps")
    parser.add_argument("--model", help="its model")
    parser.add_argument("--longest", type=int, default=512, help="tokens of its answers")
    parser.add_argument("--concurrency", type=int, default=4, help="its prompts at a time")
    parser.add_argument("--prompts", help="folder with other prompts (questions.prompts)")
    given = parser.parse_args()
    more: dict[str, Any] = {"prompts": str(Path(given.prompts).resolve())} if given.prompts else {}
    if given.writer:
        writer = {"kind": "endpoint", "url": given.writer, "model": given.model}
        size = {"longest_answer": given.longest, "concurrency": given.concurrency}
        more["writer"] = {**writer, **size, "timeout_s": 600}
    with tempfile.TemporaryDirectory(prefix="hourllava-questions-") as folder:
        result = run(PRESETS[given.preset], Path(folder), more)
    print(
        f"{result['rows']:,} rows of {PRESETS[given.preset]} films, {result['requests']:,} "
        f"requests, {result['seconds']:.0f} s\n\n{table(result['found'])}"
    )
    for what in ("counts", "answers", "spent"):
        print(f"\n{what}: {result[what]}")


if __name__ == "__main__":
    main()
