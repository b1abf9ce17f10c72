"""Whatever a video is called, what holds it is found, by the real steps that wrote it."""

from __future__ import annotations

import json
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from assets.annotations.merge import mention
from assets.annotations.video_names import VideoNames
from assets.conversations.export import export_llava_json
from assets.conversations.grouping import group_part
from assets.evaluation.held_out import write_held_out
from assets.fetching.archive_members import RECORD
from assets.fetching.disk import scratch
from assets.shards.writer import write_long_video_part
from assets.tracing.holdings import find_holdings
from assets.tracing.names import find_video
from assets.tracing.withdraw import plan_removal, remove_video
from assets.videos.acquire import acquire_part
from tests.servers.clips import clip
from tests.servers.world import catalogued, make_settings, question, quiet
from training.formats import layout
from training.formats.kinds import LONG_VIDEO_KIND

pytestmark = pytest.mark.slow
FILES = [
    "plain.mp4",
    "Talk [dQw4w9WgXcQ].mp4",
    unicodedata.normalize("NFD", "Café.mp4"),
    "q\u0323\u0307.mp4",  # two combining marks, for which there is no composed letter
    "東京.mp4",
    "🎬 cut.mp4",
    'The "best" talk.mp4',
    "What?.mp4",
    "What1.mp4",
    "st*r.mp4",
    "100% & <more>.mp4",
    "v1.0.mp4",
    "back/slash.mp4",
]
NAMES = VideoNames(["own"])


def video_of(file: str) -> str:
    return "/".join(NAMES.find(file, "own"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A video for each name, in everything that is made of it."""
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number, file in enumerate(FILES):
        path = folder / "drop" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip(number))
        said = file.replace("/", "\\")  # as Windows writes it
        rows += [question(said, "own", question=f"What is {n}?") for n in range(3)]
        rows.append(question(said, "own", question="Why?", answer=""))
    settings = make_settings(
        folder, {"own": {"kind": "drop", "folder": str(folder / "drop")}}, rows
    )
    storage = catalogued(settings)
    acquire_part(storage, settings, "own", "part0", quiet)
    group_part(storage, settings, 0, quiet)
    export_llava_json(storage, [0], quiet)
    write_long_video_part(storage, settings, 0, quiet)
    every = settings.evaluation.model_copy(update={"held_out_share": 1.0})
    write_held_out(storage, settings.model_copy(update={"evaluation": every}), ["part0"])
    return settings, storage


@pytest.mark.parametrize("file", FILES)
def test_every_product_that_holds_it_is_found(world, file):
    settings, storage = world
    found = find_holdings(storage, settings, video_of(file)).found
    assert {(holding.product, holding.what) for holding in found} == {
        ("annotations", "3 question-answer pairs"),
        ("annotations", "1 rows that were set aside and name it"),
        ("videos[part0|own]", "the video"),
        ("conversations[part0]", "1 samples"),
        (f"{LONG_VIDEO_KIND}[part0]", "1 samples"),
        ("videomarathon_json", "samples in LLaVA's format"),
        ("held_out_questions", "held-out questions"),
    }


@pytest.mark.parametrize("file", FILES)
def test_ones_own_file_is_told_and_no_other(world, file):
    settings, storage = world
    plan = plan_removal(storage, settings, find_video(storage, settings, video_of(file)), "x")
    told = [line for line in plan.by_hand if line.startswith("your own file")]
    assert told == [f"your own file {settings.sources['own'].folder / file}"]
    assert [removed.path for removed in plan.removed] == [f"{layout.VIDEOS}/{video_of(file)}.mp4"]


@pytest.mark.parametrize("video", ["own/pla", "own/v1", "own/Talk", "own/slash", "own/The"])
def test_a_name_that_is_a_piece_of_another_is_in_no_product(world, video):
    settings, storage = world
    found = find_holdings(storage, settings, video).found
    # Only of a row that was set aside nobody knows whether its words are a name.
    assert {holding.path for holding in found} <= {layout.REJECTED_ANNOTATIONS}


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("file", FILES)
def test_a_row_that_was_set_aside_names_it_however_it_is_written(file, written):
    name = unicodedata.normalize(written, video_of(file).partition("/")[2])
    rows = [
        name,
        f"see\n{name}.mp4",
        *(
            json.dumps({"video": name, "said": f"see\n{name}"}, ensure_ascii=escaped)
            for escaped in (False, True)
        ),
    ]
    rows += [row.replace("/", "\\\\") for row in rows]
    found = pc.match_substring_regex(pa.array([*rows, f"x{name}x"]), mention(video_of(file)))
    assert found.to_pylist() == [True] * len(rows) + [False]


def test_a_copy_that_an_archive_left_goes_by_its_name_in_the_archive(world):
    settings, storage = world
    folder = scratch(storage, "staged", "own", "0" * 8)
    members = {f"clips/{file}": f"{number:06d}.mp4" for number, file in enumerate(FILES)}
    for step in members.values():
        (folder / step).write_bytes(b"staged")
    (folder / RECORD).write_text(json.dumps(members))
    gone = FILES[1]
    plan = plan_removal(storage, settings, video_of(gone), "x")
    copies = [file.path for file in plan.removed if file.path.startswith("/")]
    assert copies == [str(folder / members[f"clips/{gone}"])]
    remove_video(storage, settings, plan)
    left = {path.name for path in folder.iterdir()}
    assert left == {RECORD, *members.values()} - {members[f"clips/{gone}"]}
