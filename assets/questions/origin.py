"""Where one written row comes from: its clips, the prompts, the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from assets.captions.tables import CLIPS
from assets.questions.build import REJECTED
from training.formats import layout
from training.formats.storage import Storage

MARK = "#"  # stands in the id of each written row, and in no product's name


def find_row(storage: Storage, identifier: str) -> dict[str, Any] | None:
    """A row that was written about a video, used or set aside; None where there is none."""
    source = identifier.partition("/")[0]
    for rel in (layout.question_rows(source), layout.questions(source, REJECTED)):
        if not storage.exists(rel):
            continue
        found = pq.read_table(storage.local(rel), filters=[("id", "=", identifier)]).to_pylist()
        if found:
            return dict(found[0])
    return None


def origin_lines(storage: Storage, row: dict[str, Any]) -> Iterator[str]:
    """What a row was made from, nearest first. What a model wrote stands in quotes, as JSON does,
    so that nothing of it steers a terminal.
    """
    source, video = row["data_source"], f"{row['data_source']}/{row['video']}"
    reasons = ", ".join(row["reasons"])
    yield f"{row['id']}  {f'set aside: {reasons}' if reasons else 'used'}"
    yield f"  question {json.dumps(row['question'])}, answer {json.dumps(row['answer'])}"
    yield f"  written by {row['model']}, prompts {row['texts']}"
    yield f"  prompt and answer: {storage.path(layout.model_answer(row['prompt_key']))}"
    yield f"  from captions[{source}] {row['captions']}"
    clips = pq.read_table(
        storage.local(layout.captions(source, CLIPS)), filters=[("video", "=", video)]
    ).to_pylist()
    for clip in clips:
        if clip["clip"] in row["evidence_clips"]:
            where = f"clip {clip['clip']} of {video}, {clip['start']:.1f} to {clip['end']:.1f} s"
            yield f"  {where}: {json.dumps(clip['summary'])}"
            yield f"    described by {clip['model']}, prompts {clip['texts']}"
            if clip["prompt_key"]:
                place = storage.path(layout.model_answer(clip["prompt_key"]))
                yield f"    prompt and answer: {place}"
