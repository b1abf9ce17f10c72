"""Video-MME with and without subtitles, on a set that is drawn here in Video-MME's own form, by the
evaluation asset's own code: annotations as its authors publish them, an SRT file for each video.

    python -m benchmarks.subtitles                  # a minute or two of a CPU
    python -m benchmarks.subtitles --preset tiny    # to see that it runs

Of half of the videos the subtitles say which option is right, of the others they chatter. The
checkpoint is the tiny one, taught by other drawn questions to do what the subtitles say. So what it
should score is known: all of it where they are shown and say it, a guess (a quarter) elsewhere.
`start` is the same checkpoint before that. A share of 1 needs that each prompt holds the subtitles
of its own video, whole and in their place.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from assets.evaluation import benchmarks
from assets.evaluation.compare import LAST, compare_checkpoints
from assets.evaluation.questions import EvaluationQuestion
from assets.inference.prompts import RememberedVideo
from assets.inference.session import Session
from assets.inference.subtitles import Cue
from assets.records.lineage import Lineage, product
from model.conversation import IMAGE
from model.inputs import SampleInputs
from model.weights.tiny import build_tiny
from pipeline.demo.drawing import invent_film, write_film
from training.formats.storage import Storage

LETTERS = "ABCD"
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
ASKED = (
    "Which color is shown in the middle of the video?",
    "What happens before the last scene?",
    "What does the woman do after she opens the door?",
)
CHATTER = (
    "He is cooking in the kitchen.",
    "A dog and a cat are playing outside.",
    "She is talking to people at night.",
    "There are three people in the room.",
    "Nothing changes.",
)
SECONDS = 8
SAID, SEEN = "said in the subtitles", "not said in them"
START = "base_model"
BATCH, RATE = 16, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=64, help="with one question each")
    parser.add_argument("--steps", type=int, default=600, help="of teaching, at most")
    parser.add_argument("--preset", choices=["tiny"], help="the quick CPU size of all benchmarks")
    options = parser.parse_args()
    if options.preset:
        options.videos, options.steps = 4, 2
    with tempfile.TemporaryDirectory(prefix="video-mme-") as folder:
        for row in scores(Path(folder), options.videos, options.steps):
            print(json.dumps(row), flush=True)


def scores(folder: Path, videos: int, steps: int) -> list[dict[str, Any]]:
    """The table's rows: a kind of question each, with the share that was right."""
    drawn = folder / "Video-MME"
    draw_set(drawn, videos)
    build_tiny(folder / "root" / START / "export")
    teach(folder / "root" / START / "export", folder / "root" / LAST / "export", drawn, steps)
    table: dict[str, dict[str, Any]] = {}
    for name, more in (("without", ()), ("with", ("--subtitles", str(drawn / "subtitle")))):
        asked = ["video-mme", str(drawn / "videomme.json"), "--videos", str(drawn / "data"), *more]
        if benchmarks.main(asked):
            raise RuntimeError(f"{drawn}: the drawn set was not written as questions")
        for found in _evaluate(folder / "root", name, drawn / "data" / "video-mme.jsonl"):
            row = table.setdefault(
                found["questions"], {"questions": found["questions"], "asked": found["asked"]}
            )
            row |= {f"start, {name}": found[START], f"taught, {name}": found[LAST]}
    return list(table.values())


def _evaluate(root: Path, variant: str, questions: Path) -> list[dict[str, Any]]:
    """What the asset `evaluation` shows of these questions."""
    storage = Storage(str(root))
    for checkpoint in (START, LAST):
        made = product(checkpoint, variant)
        Lineage(product=made, version=checkpoint, folder=checkpoint).write(storage)
    found = compare_checkpoints(
        storage, variant, (START, LAST), questions, print, device="cpu", scratch=root
    )
    return found.table


# -- the set --------------------------------------------------------------------------------------


def draw_set(folder: Path, videos: int) -> None:
    """Write `videomme.json`, `data/<video>.mp4` and `subtitle/<video>.srt`."""
    for name in ("data", "subtitle"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(videos):
        name, said = f"drawn{number:03}", number % 2 == 0
        dice = random.Random(f"video-mme/{name}")
        write_film(folder / "data" / f"{name}.mp4", invent_film(name, SECONDS, 5, 2))
        question, options, letter, cues = invent_question(dice, said)
        lettered = [f"{a}. {text}." for a, text in zip(LETTERS, options, strict=True)]
        (folder / "subtitle" / f"{name}.srt").write_text(_srt(cues))
        rows.append(
            {
                "video_id": f"{number:03}",
                "duration": "short",
                "domain": "Drawn",
                "sub_category": "Squares",
                "url": f"https://www.example.org/watch?v={name}",
                "videoID": name,
                "questions": [
                    {
                        "question_id": f"{number:03}-1",
                        "task_type": SAID if said else SEEN,
                        "question": question,
                        "options": lettered,
                        "answer": letter,
                    }
                ],
            }
        )
    (folder / "videomme.json").write_text(json.dumps(rows, indent=1))


def invent_question(dice: random.Random, said: bool) -> tuple[str, list[str], str, list[Cue]]:
    """A question, its options, the right letter, and subtitles that say it or do not."""
    letter = dice.choice(LETTERS)
    lines = dice.sample(CHATTER, dice.randint(2, 4))
    if said:
        lines.insert(dice.randint(0, len(lines)), f"The answer is {letter}.")
    times = [SECONDS * place / len(lines) for place in range(len(lines) + 1)]
    cues = [Cue(times[place], times[place + 1], line) for place, line in enumerate(lines)]
    return dice.choice(ASKED), dice.sample(COLOURS, len(LETTERS)), letter, cues


def _srt(cues: Sequence[Cue]) -> str:
    def clock(seconds: float) -> str:
        return f"00:00:{int(seconds):02},{round(seconds % 1 * 1000):03}"

    return "\n".join(
        f"{number}\n{clock(cue.start)} --> {clock(cue.end)}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    )


# -- teaching -------------------------------------------------------------------------------------


def teach(start: Path, out: Path, drawn: Path, steps: int) -> None:
    """Train the language model on drawn questions whose subtitles say the answer, until it follows
    them, and write the checkpoint.
    """
    session = Session(start, "cpu")
    model = session.model.train()
    videos = [session.video(file) for file in sorted((drawn / "data").glob("*.mp4"))[:4]]
    optimizer = torch.optim.AdamW(model.model.llm.parameters(), RATE, betas=(0.9, 0.95))
    dice = random.Random("video-mme/lessons")
    recent = 9.0
    for step in range(steps):
        lessons = [_lesson(session, videos, dice) for _ in range(BATCH)]
        loss = model(samples=lessons).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.llm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = 0.9 * recent + 0.1 * loss.item()
        if step % 50 == 0:
            print(f"lesson {step}: loss {loss.item():.3f}", flush=True)
        if recent < 0.02:
            break
    model.eval().save_pretrained(out)
    for file in start.iterdir():
        if not (out / file.name).exists():
            shutil.copy(file, out / file.name)


def _lesson(
    session: Session, videos: Sequence[RememberedVideo], dice: random.Random
) -> SampleInputs:
    """A prompt as the evaluation makes it, and the right letter after it."""
    text, options, letter, cues = invent_question(dice, said=True)
    video = dice.choice(videos)
    asked = EvaluationQuestion(
        id="lesson",
        media="video",
        path="drawn",
        question=text,
        options=tuple(f"{option}." for option in options),
        answer=f"{options[LETTERS.index(letter)]}.",
    )
    turns = [
        {"from": "human", "value": f"{IMAGE}\n{session.subtitled(asked.prompt, video, cues)}"},
        {"from": "gpt", "value": letter},
    ]
    sample = session.processor.sample(turns, video=video)
    # The template's tokens, which training supervises as well, are no part of this lesson.
    answer = sample.labels.clone()
    answer[:-3] = -100
    return replace(sample, labels=answer, shown=sample.shown_L)


if __name__ == "__main__":
    main()
