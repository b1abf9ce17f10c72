"""The demo's long videos and their question-answer rows, in the schema and the places of
VideoMarathon's sources.
"""

from __future__ import annotations

import random
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.demo.drawing import Film, invent_film, write_film
from pipeline.demo.questions import Question, about_film, as_multiple_choice

ANNOTATIONS_REPO = "jylins/videomarathon"
YOUCOOK_REPO = "lmms-lab/YouCook2"
YOUCOOK_ARCHIVE = "YouCookIIVideos.zip"
VIDEOS = {"panda": 10, "youcook2": 8, "ego4d": 6}
FRAME_RATES = (10, 10, 10, 10, 10, 12, 15, 30)
MOMENTS = 9  # questions about single seconds, for each video
MISSING, HALVED = (
    "panda-gone",
    "panda-half",
)  # the server has no such file / has the first half of it
UNKNOWN_SOURCE = "vimeo"
COLUMNS = ("id", "video", "data_source", "URL", "question", "answer", "question_type")


@dataclass(frozen=True, slots=True)
class LongVideo:
    source: str
    id: str
    film: Film


def long_videos(seed: str) -> list[LongVideo]:
    """Every long video that exists, 20 seconds to 4 minutes long, most of them short."""
    found = []
    for source, count in VIDEOS.items():
        for number in range(count):
            name = f"{source}-{number:02d}"
            dice = random.Random(f"{seed}/long/{name}")
            duration = (
                240
                if (source, number) == ("panda", 0)
                else dice.choice((20, 30, 40, 45, 60, 60, 75, 90, 120))
            )
            film = invent_film(
                f"{seed}/{name}", duration, dice.choice(FRAME_RATES), dice.choice((2, 3))
            )
            found.append(LongVideo(source, name, film))
    return found


def write_videomarathon(folder: Path, seed: str, media_url: str, sentences: bool) -> dict[str, int]:
    """Write the annotation repository and the videos of the three sources; returns what was
    written.

    `folder` gets `hub/` (annotations, the zip of one source), `media/panda/` and
    `drop/ego4d/`.
    """
    videos = long_videos(seed)
    archived = []
    for video in videos:
        path = {
            "panda": folder / "media" / "panda",
            "youcook2": folder / "zip",
            "ego4d": folder / "drop" / "ego4d",
        }[video.source] / f"{video.id}.mp4"
        write_film(path, video.film)
        if video.source == "youcook2":
            archived.append(path)
    _write_zip(folder / "hub" / YOUCOOK_REPO / YOUCOOK_ARCHIVE, archived)
    shutil.rmtree(folder / "zip")

    half = LongVideo("panda", HALVED, invent_film(f"{seed}/{HALVED}", 60, 10, 2))
    path = folder / "media" / "panda" / f"{HALVED}.mp4"
    write_film(path, half.film)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    gone = LongVideo("panda", MISSING, invent_film(f"{seed}/{MISSING}", 60, 10, 2))

    rows = [
        row for video in [*videos, half, gone] for row in _rows(video, seed, media_url, sentences)
    ]
    rows.append(rows[0] | {"id": "no-answer", "question": "Is there a sound?", "answer": ""})
    rows.append(
        rows[0]
        | {"id": "who-is-it", "data_source": UNKNOWN_SOURCE, "video": "clip.mp4", "URL": None}
    )
    random.Random(f"{seed}/row order").shuffle(rows)
    parquet = folder / "hub" / ANNOTATIONS_REPO / "data" / "train-00000-of-00001.parquet"
    parquet.parent.mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in COLUMNS])), parquet
    )
    return {"long videos": len(videos), "question-answer rows": len(rows)}


def _rows(
    video: LongVideo, seed: str, media_url: str, sentences: bool
) -> list[dict[str, str | None]]:
    """One row a question; every fifth about a second is multiple choice."""
    name = f"{seed}/{video.id}"
    asked = [
        as_multiple_choice(question, name) if number % 5 == 4 else question
        for number, question in enumerate(about_film(video.film, name, MOMENTS))
    ]
    if sentences:
        asked = [question.in_a_sentence() for question in asked]
    return [_row(video, number, question, media_url) for number, question in enumerate(asked)]


def _row(
    video: LongVideo, number: int, question: Question, media_url: str
) -> dict[str, str | None]:
    # The published rows name videos in more than one way; the sources here differ in the same ways.
    file = f"{video.id}.mp4"
    named = {"panda": file, "youcook2": f"youcook2/{file}", "ego4d": f"videos/ego4d/{file}"}[
        video.source
    ]
    return {
        "id": f"{video.id}_{number}",
        "video": named,
        "data_source": video.source,
        "URL": f"{media_url}/panda/{file}" if video.source == "panda" else None,
        "question": question.text,
        "answer": question.answer,
        "question_type": f"temporal/{question.task}/{question.form}",
    }


def _write_zip(path: Path, members: list[Path]) -> None:
    """A zip of stored members with fixed dates, so that the same videos give the same archive."""
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            entry = zipfile.ZipInfo(
                f"YouCookIIVideos/training/{member.name}", (2020, 1, 1, 0, 0, 0)
            )
            archive.writestr(entry, member.read_bytes())
