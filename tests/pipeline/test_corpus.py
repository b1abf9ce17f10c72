"""The demo's corpus holds what it says, and its questions are answered by its pixels."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image

from assets.deployment.parts import part_of
from assets.deployment.settings import load_settings
from pipeline.demo import llava_sets, marathon
from pipeline.demo.corpus import Corpus, build_corpus
from pipeline.demo.drawing import COLOURS, invent_film, write_film
from pipeline.demo.questions import about_film, arithmetic, as_multiple_choice


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("demo"))


def frames_of(path: Path) -> dict[float, np.ndarray]:
    """Every decoded picture by its time: an independent reading of the file."""
    with av.open(str(path)) as container:
        return {frame.time: frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}


def nearest_colour(rgb: np.ndarray) -> str:
    distances = {name: float(np.abs(rgb - np.array(pure)).sum()) for name, pure in COLOURS.items()}
    return min(distances, key=distances.__getitem__)


def seen_colours(picture: np.ndarray) -> Counter[str]:
    return Counter(nearest_colour(rgb.astype(float)) for rgb in picture[::6, ::6].reshape(-1, 3))


def rows_of(corpus: Corpus) -> list[dict]:
    repo = corpus.folder / "corpus" / "hub" / marathon.ANNOTATIONS_REPO
    return pq.read_table(repo / "data" / "train-00000-of-00001.parquet").to_pylist()


def digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_answers_in_sentences_say_the_same_and_no_two_choices_read_alike():
    film = invent_film("sentences", duration=24, fps=10, colours=3)
    for question in [*about_film(film, "sentences", moments=3), *arithmetic()]:
        said = question.in_a_sentence()
        assert question.answer in said.answer.split(" is ")[-1]
        assert said.answer.endswith(".")
        assert len(set(said.choices)) == len(question.choices)
        assert not question.choices or said.answer in said.choices
    lettered = as_multiple_choice(about_film(film, "sentences", moments=1)[0], "sentences")
    assert lettered.in_a_sentence() == lettered  # a letter opens it


def test_the_pixels_of_a_film_answer_its_questions(tmp_path):
    film = invent_film("seen", duration=24, fps=10, colours=3)
    write_film(tmp_path / "film.mp4", film)
    frames = frames_of(tmp_path / "film.mp4")
    assert len(frames) == 240
    for question in about_film(film, "seen", moments=8):
        if question.task == "background":
            second = 1.0
        elif question.task == "first colour":
            second = 0.0
        elif question.task == "last colour":
            second = 23.5
        elif question.task == "colour at a second":
            second = float(question.text.rstrip("?").split()[-1])
        else:
            continue
        (most, _), (next_most, _) = seen_colours(frames[second]).most_common(2)
        assert question.answer == (most if question.task == "background" else next_most), question


@pytest.mark.slow
def test_the_held_out_pictures_show_what_is_asked(corpus):
    folder = corpus.questions.parent
    rows = [json.loads(line) for line in corpus.questions.read_text().splitlines()]
    asked = [row for row in rows if row["task"] in ("image: background", "image: figure colour")]
    assert len(asked) == 48
    for row in asked:
        picture = np.asarray(Image.open(folder / row["path"]))
        (most, _), (next_most, _) = seen_colours(picture).most_common(2)
        assert row["answer"] == (most if row["task"] == "image: background" else next_most), row[
            "path"
        ]


@pytest.mark.slow
def test_answers_stand_among_their_candidates_and_no_answer_is_common_enough_to_guess(corpus):
    rows = [json.loads(line) for line in corpus.questions.read_text().splitlines()]
    for task in {row["task"] for row in rows}:
        answers = [row["answer"] for row in rows if row["task"] == task]
        assert max(Counter(answers).values()) / len(answers) < 0.6, task
    assert all(
        row["answer"] in row["candidates"] and (corpus.questions.parent / row["path"]).exists()
        for row in rows
    )


@pytest.mark.slow
def test_nothing_that_is_held_out_is_trained_on(corpus):
    held_out = {path.read_bytes() for path in (corpus.questions.parent / "videos").iterdir()}
    trained = {
        path.read_bytes() for path in (corpus.folder / "corpus" / "media" / "panda").iterdir()
    }
    trained |= {
        path.read_bytes() for path in (corpus.folder / "corpus" / "drop" / "ego4d").iterdir()
    }
    hub = corpus.folder / "corpus" / "hub"
    with zipfile.ZipFile(hub / marathon.YOUCOOK_REPO / marathon.YOUCOOK_ARCHIVE) as archive:
        trained |= {archive.read(name) for name in archive.namelist()}
    for path in (hub / llava_sets.VIDEO_REPO).rglob("*.tar.gz"):
        with tarfile.open(path) as archive:
            trained |= {archive.extractfile(member).read() for member in archive}
    assert len(trained) == sum(marathon.VIDEOS.values()) + 1 + llava_sets.SHORT_FILMS
    assert not held_out & trained


def test_multiple_choice_answers_open_with_the_letter_of_the_right_option():
    film = invent_film("options", duration=20, fps=10, colours=2)
    for question in about_film(film, "options", moments=5):
        asked = as_multiple_choice(question, "options")
        assert asked.answer in asked.text.splitlines()
        assert asked.answer[3:] == question.answer
        assert len(set(asked.text.splitlines()[1:])) == 4


@pytest.mark.slow
def test_rows_have_the_schema_of_videomarathon_and_three_ways_to_name_a_video(corpus):
    rows = rows_of(corpus)
    assert list(rows[0]) == [
        "id",
        "video",
        "data_source",
        "URL",
        "question",
        "answer",
        "question_type",
    ]
    assert {row["question_type"].rsplit("/", 1)[1] for row in rows} == {"oe", "mc"}
    named = {row["data_source"]: row["video"] for row in rows}
    assert named["panda"].count("/") == 0
    assert named["youcook2"].startswith("youcook2/")
    assert named["ego4d"].startswith("videos/ego4d/")
    assert all((row["URL"] is not None) == (row["data_source"] == "panda") for row in rows)


@pytest.mark.slow
def test_every_source_has_videos_in_every_part(corpus):
    parts = load_settings(corpus.settings).parts
    videos = Counter(
        (v.source, part_of(f"{v.source}/{v.id}", parts)) for v in marathon.long_videos("demo")
    )
    assert len(videos) == len(marathon.VIDEOS) * parts
    assert min(videos.values()) >= 2


def test_long_videos_last_twenty_seconds_to_four_minutes():
    durations = [video.film.duration for video in marathon.long_videos("demo")]
    assert (min(durations), max(durations)) == (20, 240)
    assert sorted(durations)[len(durations) // 2] <= 75


@pytest.mark.slow
def test_what_is_wrong_on_purpose_is_wrong(corpus):
    rows = rows_of(corpus)
    half = corpus.folder / "corpus" / "media" / "panda" / f"{marathon.HALVED}.mp4"
    with av.open(str(half)) as container:
        assert container.duration == 60_000_000
        seconds = [
            float(packet.pts * packet.time_base)
            for packet in container.demux(video=0)
            if packet.pts is not None
        ]
    assert max(seconds) < 55
    assert [row["id"] for row in rows if not row["answer"]] == ["no-answer"]
    assert [row["id"] for row in rows if row["data_source"] not in marathon.VIDEOS] == ["who-is-it"]
    with corpus.serve() as (_, media):
        url = next(row["URL"] for row in rows if row["video"] == f"{marathon.MISSING}.mp4")
        assert requests.get(url, timeout=10).status_code == 404
        url = next(row["URL"] for row in rows if row["video"] == "panda-03.mp4")
        film = requests.get(url, timeout=10).content
        assert film == (media.folder / "panda" / "panda-03.mp4").read_bytes()


@pytest.mark.slow
def test_images_lie_in_parquet_as_the_hub_has_them(corpus):
    repo = corpus.folder / "corpus" / "hub" / llava_sets.ONEVISION_REPO
    for name, images in (
        (llava_sets.SHAPES, 1),
        (llava_sets.COUNTING, 0),
        (llava_sets.TWO_PICTURES, 2),
    ):
        rows = pq.read_table(repo / name / "train-00000-of-00001.parquet").to_pylist()
        assert min(Counter(part_of(row["id"], 10) for row in rows).values()) >= 10, name
        for row in rows:
            found = (
                row["image"]
                if isinstance(row["image"], list)
                else [row["image"]]
                if row["image"]
                else []
            )
            assert len(found) == images == row["conversations"][0]["value"].count("<image>")
            assert all(Image.open(io.BytesIO(image["bytes"])).format == "JPEG" for image in found)


@pytest.mark.slow
def test_short_videos_stand_in_their_archives_under_the_names_of_their_rows(corpus):
    repo = corpus.folder / "corpus" / "hub" / llava_sets.VIDEO_REPO
    members, rows = set(), []
    for path in repo.rglob("*.tar.gz"):
        with tarfile.open(path) as archive:
            members |= set(archive.getnames())
    for path in repo.rglob("*_processed.json"):
        rows += json.loads(path.read_text())
    assert {row["video"] for row in rows} == members
    assert len(rows) == len({row["id"] for row in rows}) == 10 * llava_sets.SHORT_FILMS // 3
    assert min(Counter(part_of(row["id"], 10) for row in rows).values()) >= 12
    listed = llava_sets.mixtures_csv()
    assert all(
        path.name.replace("_processed.json", ".json") in listed
        for path in repo.rglob("*_processed.json")
    )


@pytest.mark.slow
def test_building_again_changes_nothing(corpus):
    before = digest(corpus.folder)
    again = build_corpus(corpus.folder)
    assert not again.rebuilt
    assert again.counts == corpus.counts
    assert digest(corpus.folder) == before


@pytest.mark.slow
def test_a_fresh_build_gives_the_same_bytes(corpus, tmp_path):
    shutil.copy(corpus.folder / "ports.json", tmp_path / "ports.json")
    fresh = build_corpus(tmp_path)
    assert fresh.rebuilt
    assert digest(tmp_path) == digest(corpus.folder)


@pytest.mark.slow
def test_a_corpus_of_another_seed_is_replaced(corpus, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / "demo")
    other = build_corpus(tmp_path / "demo", seed="other")
    assert other.rebuilt
    assert rows_of(other) != rows_of(corpus)
    overrides = load_settings(other.settings).training.overrides
    assert {stage: one["seed"] for stage, one in overrides.items()} == dict.fromkeys(
        ("stage1", "stage2", "stage3"), "other"
    )
    assert load_settings(corpus.settings).training.overrides == {}


@pytest.mark.slow
def test_the_hub_serves_the_repositories_that_the_settings_name(corpus):
    settings = load_settings(corpus.settings)
    with corpus.serve() as (hub, _):
        assert settings.hub_endpoint == hub.url
        repos = (
            settings.annotations.repo,
            settings.collections.onevision_repo,
            settings.collections.video_repo,
        )
        for repo in (*repos, settings.sources["youcook2"].repo):
            assert requests.get(f"{hub.url}/api/datasets/{repo}", timeout=10).status_code == 200
        with pytest.raises(RuntimeError, match="in use"), corpus.serve():
            pass
