"""The demo of the main road: somebody's own videos and questions, and a checkpoint in the released
names and layout, fine-tuned and scored before and after.

The settings are those of `pipeline/examples/own_videos.yaml` with a tiny model in place of the
large one, so that a CPU does it in minutes. Its weights are random numbers, so the start scores
chance; what it is asked can be learned from two dozen videos, and only by looking.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from assets.deployment.parts import is_held_out
from model.atomic import writing_folder
from pipeline.demo.drawing import COLOURS, invent_film, write_film
from pipeline.demo.tuning import fine_tune
from pipeline.instance_folder import REPOSITORY

EXAMPLE = REPOSITORY / "pipeline" / "examples" / "own_videos.yaml"
VARIANT = "lectures"
VIDEOS, SECONDS, FPS = 40, 20, 5
# Of the videos, held out: of the example's share of forty, an interval would say nothing.
SHARE = 0.25
EPOCHS = 40  # of 54 short samples: 240 steps, after which colours are seen


def build_own(folder: Path, seed: str = "own") -> Path:
    """Write videos, rows, the released checkpoint and the settings; returns the settings' file.

    What is there already is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "given"
    if not given.exists():
        with writing_folder(given, durable=False) as building:
            _write_videos(building, seed)
            write_released(building / "released", seed)
    settings = folder / "own_videos.yaml"
    settings.write_text(yaml.safe_dump(tiny_settings(EXAMPLE), sort_keys=False))
    return settings


def _write_videos(folder: Path, seed: str) -> None:
    """Forty films, and rows about them as a person would write them: no ids, no source."""
    rows: list[dict[str, str]] = []
    for name, (background, square) in invent_colours().items():
        film = invent_film(f"{seed}/{name}", SECONDS, FPS, 1)
        film = replace(film, background=background, changes=((0, square),))
        write_film(folder / "videos" / f"{name}.mp4", film)
        rows += [
            {
                "video": f"{name}.mp4",
                "question": question,
                "answer": answer,
                "question_type": kind,
            }
            for kind, question, answer in (
                ("background", "What is the colour of the background?", background),
                ("square", "What colour is the square?", square),
            )
        ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def invent_colours() -> dict[str, tuple[str, str]]:
    """A film's name -> the colours of its background and square.

    Among those that are held out and among those that are not, every colour is the right answer as
    often as every other, as nearly as their number allows: an answer without a look is a guess.
    """
    names = [f"lecture {number:02d}" for number in range(VIDEOS)]
    colours, found = list(COLOURS), dict[str, tuple[str, str]]()
    for out in (True, False):
        group = [name for name in names if is_held_out(f"own/{name}", SHARE) == out]
        for place, name in enumerate(group):
            further = 1 + place // len(colours) % (len(colours) - 1)
            square = colours[(place + further) % len(colours)]
            found[name] = colours[place % len(colours)], square
    return found


def write_released(folder: Path, seed: str) -> None:
    """A tiny checkpoint under the names and in the layout of the released ones."""
    from model.weights.convert import publish
    from model.weights.tiny import build_tiny

    with tempfile.TemporaryDirectory() as scratch:
        build_tiny(Path(scratch) / "export", seed=seed)
        publish(Path(scratch) / "export", folder)


def tiny_settings(example: Path) -> dict[str, Any]:
    """The settings of an example with a tiny model that starts from `given/released`."""
    settings: dict[str, Any] = yaml.safe_load(example.read_text())
    start = {"folder": "given/released", "stage": 3}
    settings["variants"] = {VARIANT: {"preset": "tiny", "start": start}}
    if "annotations" in settings:
        settings["annotations"] = {"paths": ["given/rows.jsonl"]}
    settings["sources"]["own"]["folder"] = "given/videos"
    # A question is asked alone when it is scored; of so few samples no other order can be learned.
    settings["shards"] = {"turns_per_sample": 1}
    settings["features"] = {"decode_workers": 2, "device": "cpu"}
    settings["download"] = {"min_free_bytes": 1 << 29}
    settings["training"] |= {
        # Threads of so small a model wait for each other wherever another program wants the core.
        "cpu_threads": 1,
        "overrides": {"stage3": {"epochs": EPOCHS, "global_batch": 8, "tensorboard": False}},
    }
    settings["evaluation"] = {"held_out_share": SHARE}
    return settings


def run_own_demo(folder: Path, home: Path) -> int:
    """Run the demo; returns 0 when the checkpoint was tuned and scored."""
    print("drawing forty videos and writing a checkpoint in the released layout", flush=True)
    config = build_own(folder.resolve())
    return fine_tune(config, VARIANT, folder / "dagster.log", home)
