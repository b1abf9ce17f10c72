"""The corpus of the long-video benchmark on disk, where a person's own data would lie.

root/                    the storage root; the two LLaVA collections are written as collected
root/held_out/*.mp4      films that no training sees
drop/*.mp4, rows.jsonl   films for training and their question-answer rows
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.longvideo_world import (
    LongFilm,
    LongQuestion,
    about_clip,
    about_long_film,
    about_signs,
    draw,
    invent_clip,
    invent_long_film,
    with_signs,
    write_long_film,
)
from pipeline.demo.drawing import COLOURS, FIGURES

SOURCE, HELD_OUT = "films", "held_out"
PICTURES, TEXTS, PAIRS, CLIPS = "pictures.json", "texts.json", "pairs.json", "clips.json"
CLIP_ROUNDS = 3  # conversations about each clip
MIXTURE = f"""kind,collection,annotation,fraction
llava_ov_si_onlyimg,LLaVA-OneVision,{PICTURES},1
llavavideo_text,LLaVA-OneVision,{TEXTS},1
llavavideo_si,LLaVA-OneVision,{PICTURES},1
llavavideo_mi,LLaVA-OneVision,{PAIRS},1
llavavideo_video,LLaVA-Video-178K,{CLIPS},1
videomarathon_video,VideoMarathon,videomarathon.json,1
"""
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """`train` and `held_out`: (films, shortest, longest) in seconds; the others are counts.

    `signs`: whether films, clips and every second still show signs and are asked about these.
    """

    train: tuple[tuple[int, int, int], ...]
    held_out: tuple[tuple[int, int, int], ...]
    pictures: int
    clips: int
    texts: int
    signs: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A film that training does not see, and what is asked about it."""

    film: LongFilm
    questions: Sequence[LongQuestion]

    @property
    def video(self) -> str:
        return f"{HELD_OUT}/{self.film.name}"


def settings_of(folder: Path, device: str) -> Any:
    """The settings of a deployment below `folder`."""
    from assets.deployment.settings import (
        Annotations,
        Collections,
        Download,
        Features,
        Settings,
        Shards,
    )
    from assets.deployment.variants import Variant
    from assets.sources.drop import DropSource

    known: Literal["auto", "cpu", "cuda"] = (
        "auto" if device == "auto" else "cuda" if device == "cuda" else "cpu"
    )
    return Settings(
        root=str(folder / "root"),
        parts=1,
        variants={"tiny": Variant(preset="tiny")},
        annotations=Annotations(paths=[str(folder / "rows.jsonl")]),
        sources={SOURCE: DropSource(kind="drop", folder=folder / "drop")},
        download=Download(min_free_bytes=0),
        collections=Collections(mixtures=folder / "mixtures.csv"),
        shards=Shards(workers=1),
        features=Features(device=known),
    )


def write_corpus(folder: Path, sizes: Sizes, log: Log, seed: int = 1) -> list[Held]:
    """Write what is not there yet; returns the held-out films with their questions.

    Args:
        seed: of the films, and of what else is drawn.

    Raises:
        ValueError: the folder holds a corpus of other sizes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {**asdict(sizes), "seed": seed}
    record, identity = folder / "corpus.json", json.dumps(drawn, indent=1) + "\n"
    if record.exists() and record.read_text() != identity:
        raise ValueError(
            f"{folder} holds a corpus of other sizes ({record}); remove it or name another --folder"
        )
    train = _films(f"train-{seed}", sizes.train, sizes.signs)
    held = _films(f"held-{seed}", sizes.held_out, sizes.signs)
    if not record.exists():
        for film in train:
            write_long_film(folder / "drop" / f"{film.name}.mp4", film)
        for film in held:
            write_long_film(folder / "root" / HELD_OUT / f"{film.name}.mp4", film)
        rows = [row for film in train for row in _rows(film)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "mixtures.csv").write_text(MIXTURE)
        _write_collections(folder / "root", sizes)
        record.write_text(identity)
        hours = sum(film.duration for film in train) / 3600
        log(
            f"{len(train)} films of {hours:.1f} hours with {len(rows)} questions, {len(held)} "
            "held-out films"
        )
    return [Held(film, about_long_film(film)) for film in held]


def _films(name: str, groups: Sequence[tuple[int, int, int]], signs: bool) -> list[LongFilm]:
    films = []
    for group, (count, shortest, longest) in enumerate(groups):
        for number in range(count):
            dice = random.Random(f"{name}/{group}/{number}")
            film = invent_long_film(f"{name}-{group}-{number:03d}", dice.randint(shortest, longest))
            films.append(with_signs(film) if signs else film)
    return films


def _rows(film: LongFilm) -> list[dict[str, str]]:
    return [
        {
            "id": f"{film.name}_{number}",
            "video": f"{film.name}.mp4",
            "data_source": SOURCE,
            "question": asked.text,
            "answer": asked.answer,
            "question_type": f"{asked.task.replace(': ', '/').replace(' ', '_')}/oe",
        }
        for number, asked in enumerate(about_long_film(film))
    ]


def _write_collections(root: Path, sizes: Sizes) -> None:
    """Stills, pairs of stills, texts and short clips with questions, as the two collections lay
    theirs out.
    """
    vision, video = root / "LLaVA-OneVision", root / "LLaVA-Video-178K"
    for folder in (vision / "images", vision / "annotations", video / "annotations"):
        folder.mkdir(parents=True, exist_ok=True)
    clips = [invent_clip(f"clip-{number}") for number in range(sizes.clips)]
    if sizes.signs:
        clips = [with_signs(clip, seconds=1) for clip in clips]
    for clip in clips:
        write_long_film(video / "videos" / f"{clip.name}.mp4", clip)
    stills = [invent_clip(f"still-{number}") for number in range(sizes.pictures)]
    if sizes.signs:
        stills[::2] = [_still_of_sign(still) for still in stills[::2]]
    for still in stills:
        (vision / "images" / f"{still.name}.jpg").write_bytes(_jpeg(still))
    _write(vision / "annotations" / PICTURES, [_picture_row(still) for still in stills])
    scenes = [still for still in stills if not still.signs]
    pairs = list(zip(scenes[::2], scenes[1::2], strict=False))
    _write(
        vision / "annotations" / PAIRS,
        [_pair_row(number, pair) for number, pair in enumerate(pairs)],
    )
    _write(vision / "annotations" / TEXTS, [_text_row(number) for number in range(sizes.texts)])
    _write(
        video / "annotations" / CLIPS,
        [_clip_row(clip, number) for clip in clips for number in range(CLIP_ROUNDS)],
    )


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))


def _jpeg(still: LongFilm) -> bytes:
    """The clip's first picture, square as the vision encoder sees it: one tile, not several."""
    file = io.BytesIO()
    draw(still, 0).resize((112, 112)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _still_of_sign(still: LongFilm) -> LongFilm:
    """One of its signs from the first second on."""
    sign = random.Random(f"still/{still.name}").choice(with_signs(still).signs)
    return replace(still, signs=(replace(sign, second=0),))


def _picture_row(still: LongFilm) -> dict[str, Any]:
    scene = still.scenes[0]
    asked = [(question.text, question.answer) for question in about_signs(still)] or [
        ("What is the colour of the background?", scene.background),
        ("What colour is the figure?", scene.colour),
        ("Which figure is in the picture?", scene.figure),
        ("Is the figure left or right?", scene.side),
        ("Is the figure small or large?", scene.size),
    ]
    random.Random(f"order/{still.name}").shuffle(asked)
    return {
        "id": still.name,
        "image": f"{still.name}.jpg",
        "conversations": _turns(asked[:3], "<image>\n"),
    }


def _pair_row(number: int, pair: tuple[LongFilm, LongFilm]) -> dict[str, Any]:
    which = number % 2
    text = f"What is the colour of the background of the {('first', 'second')[which]} picture?"
    turns = _turns([(text, pair[which].scenes[0].background)], "<image>\n<image>\n")
    return {
        "id": f"pair-{number}",
        "image": [f"{still.name}.jpg" for still in pair],
        "conversations": turns,
    }


def _text_row(number: int) -> dict[str, Any]:
    dice = random.Random(f"text/{number}")
    words = f"{dice.choice(list(COLOURS))} {dice.choice(FIGURES)} {number}"
    return {"id": f"text-{number}", "conversations": _turns([(f"Say {words}.", words)])}


def _clip_row(clip: LongFilm, number: int) -> dict[str, Any]:
    scenes = about_clip(clip)
    random.Random(f"round/{clip.name}/{number}").shuffle(scenes)
    asked = [*about_signs(clip), *scenes][:4]
    turns = _turns([(question.text, question.answer) for question in asked], "<image>\n")
    return {"id": f"{clip.name}-{number}", "video": f"{clip.name}.mp4", "conversations": turns}


def _turns(asked: Sequence[tuple[str, str]], opening: str = "") -> list[dict[str, str]]:
    turns = []
    for number, (question, answer) in enumerate(asked):
        turns.append({"from": "human", "value": (opening if number == 0 else "") + question})
        turns.append({"from": "gpt", "value": answer})
    return turns
