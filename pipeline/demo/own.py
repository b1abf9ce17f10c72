"""The demo of the main road: somebody's own videos and questions, and a checkpoint in the released
names and layout, fine-tuned and scored before and after.

The settings are those of `pipeline/examples/own_videos.yaml` with a tiny model in place of the
large one, so that a CPU does it in minutes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from model.atomic import writing_folder
from pipeline.demo.drawing import invent_film, write_film
from pipeline.demo.instance import REPOSITORY
from pipeline.demo.questions import about_film, as_multiple_choice
from pipeline.demo.tuning import fine_tune

EXAMPLE = REPOSITORY / "pipeline" / "examples" / "own_videos.yaml"
VARIANT = "lectures"
VIDEOS, SECONDS, FPS, MOMENTS = 40, 20, 5, 3


def build_own(folder: Path, seed: str = "own") -> Path:
    """Write videos, rows, the released checkpoint and the settings; returns the settings' file.

    What is there already is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given"
    if not given.exists():
        with writing_folder(given, durable=False) as building:
            _write_videos(building, seed)
            _write_released(building / "released", seed)
    settings = folder / "own_videos.yaml"
    settings.write_text(yaml.safe_dump(_settings(), sort_keys=False))
    return settings


def _write_videos(folder: Path, seed: str) -> None:
    """Forty films, and rows about them as a person would write them: no ids, no source."""
    rows: list[dict[str, str]] = []
    for number in range(VIDEOS):
        name = f"lecture {number:02d}"
        film = invent_film(f"{seed}/{name}", SECONDS, FPS, 2)
        write_film(folder / "videos" / f"{name}.mp4", film)
        for place, question in enumerate(about_film(film, f"{seed}/{name}", MOMENTS)):
            asked = as_multiple_choice(question, name) if place % 5 == 4 else question
            rows.append(
                {
                    "video": f"{name}.mp4",
                    "question": asked.text,
                    "answer": asked.answer,
                    "question_type": question.task,
                }
            )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_released(folder: Path, seed: str) -> None:
    """A tiny checkpoint under the names and in the layout of the released ones."""
    from model.weights.convert import publish
    from model.weights.tiny import build_tiny

    with tempfile.TemporaryDirectory() as scratch:
        build_tiny(Path(scratch) / "export", seed=seed)
        publish(Path(scratch) / "export", folder)


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    start = {"folder": "given/released", "stage": 3}
    settings["variants"] = {VARIANT: {"preset": "tiny", "start": start}}
    settings["annotations"] = {"paths": ["given/rows.jsonl"]}
    settings["sources"]["own"]["folder"] = "given/videos"
    settings["features"] = {"decode_workers": 2, "device": "cpu"}
    settings["download"] = {"min_free_bytes": 1 << 29}
    settings["training"] |= {
        "cpu_threads": 2,
        "overrides": {"stage3": {"epochs": 8, "global_batch": 8, "tensorboard": False}},
    }
    return settings


def run_own_demo(folder: Path = REPOSITORY / ".demo-own", home: Path = REPOSITORY) -> int:
    """Run the demo; returns 0 when the checkpoint was tuned and scored."""
    print("drawing forty videos and writing a checkpoint in the released layout", flush=True)
    config = build_own(folder.resolve())
    return fine_tune(config, VARIANT, folder / "dagster.log", home)
