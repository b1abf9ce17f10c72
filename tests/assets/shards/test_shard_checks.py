"""Shards against their index, samples against the other parts, labels against the tokenizer."""

import json
import shutil
from pathlib import Path

import pytest

from assets.records.lineage import Lineage
from assets.shards.checks import labels, one_place, whole
from assets.shards.lengths import short_video_lengths
from assets.shards.mds import index_json, read_column, write_shards
from assets.shards.mixture_views import write_views
from assets.shards.part import part_folder
from assets.shards.writer import write_kind_part
from tests.assets.shards.roots import make_root, quiet, settings_for, turns
from tests.model.media import clips
from training.formats.kinds import SHORT_VIDEO_KIND, TEXT_KIND
from training.formats.sample import Sample, encode
from training.recipes import ShardInput

VIDEOS = "LLaVA-Video-178K/videos"


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path / "root", images=4)


@pytest.fixture
def settings(tmp_path, root):
    return settings_for(tmp_path / "root")


@pytest.fixture
def text_part(root, settings):
    """Folder of part 0 of the text kind."""
    write_kind_part(root, settings, TEXT_KIND, 0, quiet)
    return part_folder(TEXT_KIND, 0)


def look(root, folder: str):
    return whole(root, folder, f"{TEXT_KIND}[part0]")


def shards_of(root, folder: str) -> list[Path]:
    return sorted(Path(root.path(folder)).glob("*.mds"))


def test_a_part_as_it_was_written_is_look(root, text_part):
    verdict = look(root, text_part)
    assert verdict.passed
    assert verdict.facts["samples"] == len(list(read_column(root, text_part, "id")))


def test_each_sort_of_damage_is_named_and_stops_what_follows(root, text_part):
    first, second, *_ = shards_of(root, text_part)
    flipped = bytearray(first.read_bytes())
    flipped[-1] ^= 1
    first.write_bytes(flipped)
    second.unlink()
    (first.parent / "shard.99999.mds").write_bytes(b"of another run")
    verdict = look(root, text_part)
    assert verdict.blocks
    for fault in (
        f"{first.name} has other content",
        f"{second.name} is missing",
        "shard.99999.mds is not in index.json",
    ):
        assert fault in verdict.message


def test_an_index_that_contradicts_the_manifest_is_noticed(root, text_part):
    index = Path(root.path(text_part)) / "index.json"
    content = json.loads(index.read_text())
    content["shards"].pop()
    index.write_text(json.dumps(content))
    verdict = look(root, text_part)
    assert verdict.blocks
    assert "manifest.json and index.json name different shards" in verdict.message


def test_a_column_is_read_as_the_library_reads_it(root, text_part):
    from streaming.base.format import reader_from_json

    expected = []
    for shard in root.read_json(f"{text_part}/index.json")["shards"]:
        reader = reader_from_json(root.path(text_part), "", shard)
        expected += [(reader[row]["id"], reader[row]["kind"]) for row in range(shard["samples"])]
    found = zip(
        read_column(root, text_part, "id"), read_column(root, text_part, "kind"), strict=True
    )
    assert list(found) == expected


def mix(root, *parts: int) -> None:
    """A mixture of these parts of the text kind, the first one in a stream of its own."""
    first, *others = [ShardInput(TEXT_KIND, part) for part in parts]
    write_views(root, [[first], others])


def test_samples_that_are_in_one_part_each_pass(root, settings, text_part):
    write_kind_part(root, settings, TEXT_KIND, 1, quiet)
    mix(root, 0, 1)
    verdict = one_place(root, parts=[])
    assert verdict.passed, verdict.message


def test_a_sample_in_two_parts_is_named_and_stops_the_mixture(root, text_part):
    shutil.copytree(root.path(text_part), root.path(part_folder(TEXT_KIND, 1)))
    mix(root, 0, 1)
    verdict = one_place(root, parts=[])
    assert verdict.blocks
    twice = sorted(read_column(root, text_part, "id"))
    assert f"{TEXT_KIND}: sample {twice[0].partition('#')[0]}" in verdict.message
    assert {row["kind"]: row["twice"] for row in verdict.facts["samples looked at"]}[
        TEXT_KIND
    ] == len(twice)


def test_a_shard_that_stands_twice_in_the_mixture_is_named(root, text_part):
    mix(root, 0, 0)
    verdict = one_place(root, parts=[])
    assert verdict.blocks
    assert "shard.00000.mds stands 2 times" in verdict.message


def test_without_a_base_model_only_the_text_is_looked_at_and_that_is_said(
    root, settings, text_part
):
    mix(root, 0, 0)
    verdict = labels(root, settings)
    assert verdict.passed
    assert "not tokenised, for want of a base_model" in verdict.message


@pytest.fixture
def base_model(root, settings):
    """The tiny starting point, and settings of a deployment that has it."""
    from model.weights.tiny import build_tiny

    build_tiny(Path(root.path("checkpoints/tiny/base/export")))
    Lineage("base_model[tiny]", "v", folder="checkpoints/tiny/base").write(root)
    return settings.model_copy(update={"variants": ["tiny"]})


def test_samples_with_answers_are_supervised(root, base_model, text_part):
    mix(root, 0, 0)
    verdict = labels(root, base_model)
    assert verdict.passed, verdict.message
    (drawn,) = verdict.facts["drawn"]
    assert drawn["supervised, least"] > 0


def test_an_answer_without_a_word_stops_the_mixture(root, base_model):
    folder = Path(root.path(part_folder(TEXT_KIND, 0)))
    folder.mkdir(parents=True)
    samples = [
        Sample(f"t{n}", TEXT_KIND, "text", turns("Say.", "  " if n == 1 else "So."))
        for n in range(2)
    ]
    entries = write_shards(folder, "shard.00000", [encode(sample) for sample in samples])
    (folder / "index.json").write_text(index_json(entries))
    write_views(root, [[ShardInput(TEXT_KIND, 0)], []])
    verdict = labels(root, base_model)
    assert verdict.blocks
    assert "llavavideo_text, t1: turn 1, an answer, is empty" in verdict.message


@pytest.mark.slow
def test_hours_of_short_videos_come_from_the_files(root, settings):
    for number in range(40):
        clips.encode(Path(root.path(f"{VIDEOS}/a/{number}.mp4")), 20, rate=10)
    broken = Path(root.path(f"{VIDEOS}/a/7.mp4"))
    broken.write_bytes(b"no video")
    folders = []
    for part in range(10):
        write_kind_part(root, settings, SHORT_VIDEO_KIND, part, quiet)
        folders.append(part_folder(SHORT_VIDEO_KIND, part))
    home = next(
        folder for folder in folders if "a/7.mp4" in set(read_column(root, folder, "video"))
    )
    lengths = short_video_lengths(root, home)
    assert lengths.unreadable == 1
    assert lengths.seconds == pytest.approx([2.0] * (lengths.videos - 1), abs=0.11)
    assert lengths.hours == pytest.approx(lengths.videos * 2.0 / 3600, rel=0.06)
