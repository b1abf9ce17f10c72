"""A landing whose only video cannot be had makes a part without samples; nothing stands still."""

from __future__ import annotations

from pathlib import Path

from assets.conversations.checks import sound
from assets.conversations.grouping import group_part
from assets.shards.checks import whole
from assets.shards.mixture_views import write_views
from assets.shards.part import part_folder
from assets.shards.writer import write_long_video_part
from tests.servers.world import acquire, catalogued, make_settings, question, quiet
from training.formats.kinds import LONG_VIDEO_KIND
from training.recipes import ShardInput


def test_a_part_of_one_video_that_cannot_be_had_reaches_the_mixture_empty(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    settings = make_settings(
        tmp_path,
        {"mine": {"kind": "drop", "folder": str(tmp_path / "drop")}},
        [question("never dropped", "mine")],
        parts=None,
        download={"coverage_threshold": 0.5},
    )
    storage = catalogued(settings)
    assert acquire(storage, settings, "mine").coverage == 0.0
    grouped = group_part(storage, settings, 0, quiet)
    assert grouped.counts["samples"] == 0
    assert grouped.coverage.sentence == "0 % of rows (0 of 1), 0 of 1 videos"
    assert sound(storage, settings, 0).passed
    assert write_long_video_part(storage, settings, 0, quiet).counts["samples"] == 0
    assert whole(storage, part_folder(LONG_VIDEO_KIND, 0), f"{LONG_VIDEO_KIND}[part0]").passed
    mixture = write_views(storage, [[ShardInput(LONG_VIDEO_KIND, 0)]])
    assert mixture.counts["samples"] == 0
