"""How much of what was asked for is in a product: counted once, by the step that sees it lost."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.annotations.catalogue import Catalogue
from assets.checkpoints.coverage import stage_coverage
from assets.conversations.grouping import group_part
from assets.records.coverage import MOST_KINDS, USED, Cell, Coverage, joined, percent
from assets.records.lineage import Lineage, covered
from assets.records.withdrawals import Withdrawal, Withdrawals
from assets.shards.coverage import collection_coverage, long_video_coverage, mixture_coverage
from assets.shards.llava_rows import NOT_AN_IMAGE_ROW
from assets.shards.part import ShardReport
from assets.shards.writer import write_long_video_part
from tests.servers.world import catalogued, make_settings, question, quiet
from training.formats import layout

SOURCES = {"web": {"kind": "url"}, "mine": {"kind": "drop", "folder": "drop"}}


def asked(video: str, source: str, number: int, kind: str, **more) -> dict:
    row = question(video, source, id=f"{video}{number}", type=kind, **more)
    return {**row, "question": f"What {number}?", "answer": f"Red {number}."}


ROWS = [
    *(asked("there", "web", n, "topic", duration=100) for n in range(6)),
    *(asked("gone", "web", n, "order", duration=300) for n in range(3)),
    *(asked("short", "mine", n, "topic") for n in range(2)),
    asked("lost", "mine", 0, "order"),
    {**asked("there", "web", 7, "topic"), "answer": "<image>"},  # its answer is nothing
    {**asked("there", "web", 8, "topic"), "answer": "Red <|im_end|>"},
    asked("elsewhere", "vimeo", 0, "topic"),
]


@pytest.fixture
def world(tmp_path: Path):
    """Two videos of four are there; two rows are set aside when they are read, and one of those
    that are about a video that is there.
    """
    settings = make_settings(tmp_path, SOURCES, ROWS, variants=["tiny"])
    storage = catalogued(settings)
    states = {
        "web": {"there": ("ok", None, 100.0), "gone": ("permanent", "private", None)},
        "mine": {"short": ("ok", None, 60.0), "lost": ("manual_missing", "not_dropped", None)},
    }
    for source, videos in states.items():
        with Catalogue(storage, source, "part0") as catalogue:
            for name, (status, reason, seconds) in videos.items():
                catalogue.update(name, status=status, reason=reason, duration=seconds)
    return storage, settings


def make_shards(storage, settings) -> Coverage:
    """Conversations and shards of the part, recorded as their assets record them."""
    grouped = group_part(storage, settings, 0, quiet)
    Lineage("conversations[part0]", "v", coverage=grouped.coverage.record()).write(storage)
    shards = write_long_video_part(storage, settings, 0, quiet)
    coverage = long_video_coverage(storage, "conversations[part0]", shards)
    Lineage("videomarathon_video[part0]", "v", coverage=coverage.record()).write(storage)
    return coverage


def rows_by_reason(coverage: Coverage) -> dict[tuple[str, str], int]:
    return {(row["source"], row["reason"]): row["rows"] for row in coverage.by_reason()}


def test_conversations_say_what_is_lost_of_each_source_and_why(world):
    coverage = group_part(*world, 0, quiet).coverage
    assert rows_by_reason(coverage) == {
        ("web", "private"): 3,
        ("mine", "not_dropped"): 1,
        ("web", "stray token in answer"): 1,
    }
    assert coverage.total() == Cell(13, 4, 460.0, 1)
    assert coverage.total(used=True) == Cell(8, 2, 160.0, 0)
    assert coverage.kinds == {"topic": (9, 8), "order": (4, 0)}
    assert coverage.sentence == "61 % of rows (8 of 13), 34 % of hours, 2 of 4 videos"


def test_the_record_travels_to_the_mixture_with_what_was_never_read(world):
    storage, settings = world
    assert make_shards(storage, settings).total(used=True).rows == 8
    mixture = mixture_coverage(storage, settings, ["videomarathon_video[part0]"], [])
    assert rows_by_reason(mixture)["not known", "unknown_source"] == 1
    assert rows_by_reason(mixture)["not known", "no_answer"] == 1
    assert mixture.sentence.startswith("53 % of rows (8 of 15)")
    Lineage(layout.MIXTURE, "v", coverage=mixture.record()).write(storage)
    assert covered(storage, [layout.MIXTURE]).record() == mixture.record()


def test_a_part_that_was_given_up_is_lost_with_its_reason(world):
    storage, settings = world
    Withdrawals(parts={"part0": Withdrawal("no licence", "2026-11-29")}).write(storage)
    mixture = mixture_coverage(storage, settings, [], ["part0"])
    assert mixture.total(used=True).rows == 0
    assert rows_by_reason(mixture)["web", "part0 given up: no licence"] == 10
    assert mixture.sentence.startswith("0 % of rows (0 of 15)")


def test_a_checkpoint_was_not_trained_on_videos_without_features(world):
    storage, settings = world
    make_shards(storage, settings)
    mixture = mixture_coverage(storage, settings, ["videomarathon_video[part0]"], [])
    Lineage(layout.MIXTURE, "v", coverage=mixture.record()).write(storage)
    refusal = layout.feature_quarantine(layout.features("tiny"), "mine/short")
    storage.write_json(refusal, {"reason": "timeout", "detail": ""})
    coverage = stage_coverage(storage, "tiny", [layout.MIXTURE], ["part0"], {"held out": 2})
    assert rows_by_reason(coverage)["mine", "no features: timeout"] == 2
    assert coverage.sentence == "40 % of rows (6 of 15), 21 % of hours, 1 of 4 videos"
    assert coverage.kinds["topic"][1] == 6
    assert coverage.notes == ["2 samples were left out by the run: held out"]
    assert coverage.by_source() == [
        {"source": "mine", "rows": 0, "asked for": 3, "share": "0 %", "videos": "0 of 2"}
        | {"hours": "0.00 of 0.02"},
        {"source": "not known", "rows": 0, "asked for": 2, "share": "0 %", "videos": ""}
        | {"hours": ""},
        {"source": "web", "rows": 6, "asked for": 10, "share": "60 %", "videos": "1 of 2"}
        | {"hours": "0.03 of 0.11"},
    ]


def test_a_sample_that_no_shard_takes_is_lost_with_all_its_pairs(world):
    storage, settings = world
    grouped = group_part(storage, settings, 0, quiet)
    Lineage("conversations[part0]", "v", coverage=grouped.coverage.record()).write(storage)
    path = storage.local(layout.conversations("part0"))
    table = pq.read_table(path)
    talks = table["conversations"].to_pylist()
    broken = orjson.loads(talks[0])
    broken[1]["value"] = ""
    talks[0] = orjson.dumps(broken).decode()
    column = table.schema.get_field_index("conversations")
    pq.write_table(table.set_column(column, "conversations", pa.array(talks)), path)
    loose = settings.shards.model_copy(update={"max_drop_share": 1.0})
    settings = settings.model_copy(update={"shards": loose})
    report = write_long_video_part(storage, settings, 0, quiet)
    coverage = long_video_coverage(storage, "conversations[part0]", report)
    source = table["source"][0].as_py()
    lost = rows_by_reason(coverage)[source, "row breaks the sample schema"]
    assert lost == len(broken) // 2
    assert coverage.total(used=True).rows == 8 - lost


def test_a_part_of_a_collection_says_which_of_its_rows_it_has():
    report = ShardReport(
        "v",
        {"samples": 90, "videos": 0},
        {},
        0,
        0.0,
        0,
        {},
        lost={"": {"image missing": 10, NOT_AN_IMAGE_ROW: 7}},
        missing=["a.json"],
    )
    coverage = collection_coverage("llavavideo_si", report)
    assert coverage.sentence == "90 % of rows (90 of 100)"
    assert rows_by_reason(coverage) == {("llava_onevision", "image missing"): 10}
    assert coverage.kinds == {"llavavideo_si": (100, 90)}
    assert "1 annotation files are missing" in coverage.notes[0]


def test_products_of_before_are_told_and_not_guessed(world):
    storage, _ = world
    Lineage("videomarathon_video[part0]", "v").write(storage)
    coverage = covered(storage, ["videomarathon_video[part0]"])
    assert coverage.sentence == ""
    assert "videomarathon_video[part0]: made before coverage was recorded" in coverage.notes[0]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from([USED, "x", "y"]),
            st.integers(0, 50),
            st.integers(0, 3),
        )
    )
)
def test_sums_are_the_same_in_one_piece_and_in_many(cells):
    whole, pieces = Coverage(), []
    for source, reason, rows, videos in cells:
        piece = Coverage()
        for one in (whole, piece):
            one.add(source, reason, Cell(rows, videos, 60.0 * videos))
            one.add_kind(reason, rows, rows if reason == USED else 0)
        pieces.append(Coverage.read(json.loads(json.dumps(piece.record()))))
    assert joined(pieces).record() == whole.record()
    assert whole.total().rows == sum(rows for _, _, rows, videos in cells)


@given(st.integers(0, 100), st.integers(0, 200))
def test_what_is_lost_later_is_never_more_than_there_was(there, lost):
    coverage = Coverage()
    coverage.add("a", USED, Cell(there, 1, 60.0))
    coverage.lose("a", "x", Cell(lost, 1, 100.0))
    assert coverage.total().rows == there
    assert coverage.total(used=True).rows == max(there - lost, 0)
    assert coverage.total().seconds == 60.0


def test_a_record_stays_small_whatever_strangers_call_their_kinds():
    coverage = Coverage()
    for number in range(5000):
        coverage.add_kind(f"{number} {'x' * 1000}", 2, 1)
    record = coverage.record()
    assert len(record["kinds"]) == MOST_KINDS + 1
    assert sum(asked for asked, _ in record["kinds"].values()) == 10_000
    assert len(json.dumps(record)) < 10_000


@pytest.mark.parametrize(
    ("part", "whole", "says"),
    [(1, 1, "100 %"), (999, 1000, "99 %"), (1, 1000, "1 %"), (0, 5, "0 %"), (61, 100, "61 %")],
)
def test_a_share_is_never_said_to_be_all_or_nothing_when_it_is_not(part, whole, says):
    assert percent(part, whole) == says
