"""The demo's stand-ins for LLaVA-OneVision-Data (images and text) and LLaVA-Video-178K (short
videos).
"""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.drawing import Film, Picture, invent_film, invent_picture, jpeg, write_film
from pipeline.demo.questions import (
    Question,
    about_film,
    about_picture,
    arithmetic,
    as_multiple_choice,
    caption,
)

ONEVISION_REPO = "lmms-lab/LLaVA-OneVision-Data"
VIDEO_REPO = "lmms-lab/LLaVA-Video-178K"
PICTURES, PAIRS = 1600, 240
# Folder -> number of films, and between how many seconds they last.
FOLDERS = {"0_30_s_youtube_v0_1": (90, 12, 20), "30_60_s_youtube_v0_1": (30, 31, 36)}
SHORT_FILMS = sum(count for count, _, _ in FOLDERS.values())

SHAPES, COUNTING, TWO_PICTURES = "demo_shapes", "demo_counting", "multi_image/demo_two_pictures"

TURN = pa.struct([("from", pa.string()), ("value", pa.string())])
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def mixtures_csv() -> str:
    """Which annotation files feed which kind of shard, in the form of
    `assets/collections/mixtures.csv`.
    """
    lines = ["kind,collection,annotation,fraction"]
    for kind, name, fraction in (
        ("llava_ov_si_onlyimg", SHAPES, 1),
        ("llava_ov_si_onlyimg", COUNTING, 1),  # has no images: the kind drops such rows
        ("llavavideo_text", COUNTING, 1),
        ("llavavideo_si", SHAPES, 1),
        ("llavavideo_mi", TWO_PICTURES, 1),
    ):
        lines.append(f"{kind},LLaVA-OneVision,{name}.json,{fraction}")
    lines += [f"llavavideo_video,LLaVA-Video-178K,{name}.json,1" for name in _video_annotations()]
    lines.append("videomarathon_video,VideoMarathon,videomarathon.json,1")
    return "\n".join(lines) + "\n"


def write_onevision(hub: Path, seed: str, sentences: bool) -> dict[str, int]:
    """Three sets as Parquet files with the images inside: single pictures, text only, pairs of
    pictures.
    """
    pictures = [_picture_row(seed, number, sentences) for number in range(PICTURES)]
    texts = [_text_row(number, question, sentences) for number, question in enumerate(arithmetic())]
    pairs = [_pair_row(seed, number, sentences) for number in range(PAIRS)]
    repo = hub / ONEVISION_REPO
    single = pa.schema(
        [
            ("id", pa.string()),
            ("image", IMAGE),
            ("conversations", pa.list_(TURN)),
            ("data_source", pa.string()),
        ]
    )
    several = single.set(1, pa.field("image", pa.list_(IMAGE)))
    for name, rows, schema in (
        (SHAPES, pictures, single),
        (COUNTING, texts, single),
        (TWO_PICTURES, pairs, several),
    ):
        path = repo / name / "train-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=100)
    return {"single images": PICTURES, "texts": len(texts), "image pairs": PAIRS}


def write_llava_video(hub: Path, seed: str, sentences: bool) -> dict[str, int]:
    """Folders of short films, a tar.gz each, with annotation files for three kinds of questions."""
    rows_written = 0
    for folder, (count, shortest, longest) in FOLDERS.items():
        path = hub / VIDEO_REPO / folder
        films = {}
        for number in range(count):
            name = f"{folder[:5].rstrip('_')}_{number:03d}"
            dice = random.Random(f"{seed}/short/{name}")
            film = invent_film(
                f"{seed}/{name}", dice.randint(shortest, longest), 10, dice.choice((1, 2, 2))
            )
            films[f"liwei_youtube_videos/videos/youtube_video_2024/{name}.mp4"] = film
        for number, names in enumerate((sorted(films)[::2], sorted(films)[1::2]), start=1):
            _write_tar(
                path / f"{folder}_videos_{number}.tar.gz",
                {name: films[name] for name in names},
                path,
            )
        stem = folder.removesuffix("_v0_1")
        # A film has one caption and two open conversations; letters are hard for a tiny model, so
        # few films have them.
        for file, form, rounds, every in (
            (f"{folder}_cap", "cap", 1, 1),
            (f"{stem}_oe_v0_1_qa", "oe", 2, 1),
            (f"{stem}_mc_v0_1_qa", "mc", 1, 3),
        ):
            chosen = list(films.items())[::every]
            rows = [
                _video_row(seed, name, film, form, sentences, number)
                for name, film in chosen
                for number in range(rounds)
            ]
            (path / f"{file}_processed.json").write_text(json.dumps(rows, indent=1))
            rows_written += len(rows)
    return {"short videos": SHORT_FILMS, "short-video rows": rows_written}


def _video_annotations() -> list[str]:
    stems = [folder.removesuffix("_v0_1") for folder in FOLDERS]
    return [
        name
        for stem in stems
        for name in (f"{stem}_v0_1_cap", f"{stem}_oe_v0_1_qa", f"{stem}_mc_v0_1_qa")
    ]


def _picture_row(seed: str, number: int, sentences: bool) -> dict[str, Any]:
    name = f"{seed}/picture-{number:04d}"
    picture = invent_picture(name)
    background, colour, figure = about_picture(picture)
    asked = [background, colour] if number % 8 else [background, colour, figure]
    random.Random(f"order/{name}").shuffle(asked)
    turns = _turns(asked, sentences, opening="<image>\n")
    return {
        "id": f"shapes_{number:04d}",
        "image": _image(picture, number),
        "conversations": turns,
        "data_source": SHAPES,
    }


def _text_row(number: int, question: Question, sentences: bool) -> dict[str, Any]:
    return {
        "id": f"counting_{number:03d}",
        "image": None,
        "conversations": _turns([question], sentences),
        "data_source": COUNTING,
    }


def _pair_row(seed: str, number: int, sentences: bool) -> dict[str, Any]:
    names = [f"{seed}/pair-{number:03d}-{side}" for side in (0, 1)]
    pictures = [invent_picture(name) for name in names]
    ordinals = ("first", "second")
    dice = random.Random(f"pair/{seed}/{number}")
    side = dice.randrange(2)
    asked = Question(
        "background",
        f"What is the colour of the background of the {ordinals[side]} picture?",
        pictures[side].background,
        sentence=f"The background of the {ordinals[side]} picture is {{}}.",
    )
    return {
        "id": f"pairs_{number:03d}",
        "image": [_image(picture, 2 * number + side) for side, picture in enumerate(pictures)],
        "conversations": _turns([asked], sentences, opening="<image>\n<image>\n"),
        "data_source": TWO_PICTURES,
    }


def _video_row(
    seed: str, name: str, film: Film, form: str, sentences: bool, number: int
) -> dict[str, Any]:
    stem = Path(name).stem
    dice = random.Random(f"{seed}/{form}/{number}/{name}")
    if form == "cap":
        asked = [caption(film)]
    else:
        background, *others = about_film(film, name, moments=2)
        dice.shuffle(others)
        asked = (
            [background, *others[:3]]
            if form == "oe"
            else [as_multiple_choice(dice.choice(others), name)]
        )
    return {
        "id": f"{stem}_{form}{number}",
        "conversations": _turns(asked, sentences, opening="<image>\n"),
        "data_source": name.split("/")[0],
        "video": name,
    }


def _turns(asked: list[Question], sentences: bool, opening: str = "") -> list[dict[str, str]]:
    turns = []
    for number, question in enumerate(asked):
        turns.append({"from": "human", "value": (opening if number == 0 else "") + question.text})
        said = question.in_a_sentence() if sentences else question
        turns.append({"from": "gpt", "value": said.answer})
    return turns


def _image(picture: Picture, number: int) -> dict[str, Any]:
    return {"bytes": jpeg(picture), "path": f"{number:05d}.jpg"}


def _write_tar(path: Path, films: dict[str, Film], scratch: Path) -> None:
    """A tar.gz with fixed dates and owners, so that the same films give the same archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    film_path = scratch / ".film.mp4"
    with (
        open(path, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as archive,
    ):
        for name, film in films.items():
            write_film(film_path, film)
            data = film_path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    film_path.unlink()
