"""Grouping: every usable row once, the same samples for any order of rows, every other row counted
by reason.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.conversations import part_rows
from assets.conversations.export import export_llava_json
from assets.conversations.grouping import (
    GroupingReport,
    conversations_name,
    group_rows,
    rejected_name,
)
from assets.conversations.samples import even_chunks
from training.formats import layout
from training.formats.storage import Storage

ANNOTATIONS = "annotations.parquet"
SCHEMA = pa.schema(
    [
        ("video", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("sample_id", pa.string()),
        ("turn", pa.int32()),
        ("part", pa.int32()),
    ]
)


def row(video: str | None, number: int, **other: Any) -> dict[str, Any]:
    return {
        "video": video,
        "question_id": f"{video}-{number}",
        "question": f"Question {number}?",
        "answer": f"Answer {number}.",
        "sample_id": None,
        "turn": None,
        "part": 0,
        **other,
    }


def group(
    folder: Path, rows: list[dict[str, Any]], videos: set[str] | None = None, **options: Any
) -> tuple[GroupingReport, list[dict[str, Any]], list[dict[str, Any]], bytes]:
    """Group rows; returns (report, samples, rejected rows, bytes of the file)."""
    storage = Storage(str(folder))
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), storage.path(ANNOTATIONS), row_group_size=50)
    there = {row["video"] for row in rows} if videos is None else videos
    arguments = {"seed": "test", "turns": 5, "log": lambda _: None, **options}
    report = group_rows(storage, ANNOTATIONS, 0, dict.fromkeys(there, 60.0), **arguments)
    samples = pq.read_table(storage.path(conversations_name(0))).to_pylist()
    rejected = pq.read_table(storage.path(rejected_name(0))).to_pylist()
    return report, samples, rejected, Path(storage.path(conversations_name(0))).read_bytes()


def pairs_of(sample: dict[str, Any]) -> list[tuple[str, str]]:
    turns = json.loads(sample["conversations"])
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
    values = [turn["value"] for turn in turns]
    assert values[0].startswith("<image>\n")
    assert "<image>" not in "".join(values)[len("<image>") :]
    values[0] = values[0].removeprefix("<image>\n")
    return list(zip(values[::2], values[1::2], strict=True))


videos = st.sampled_from(["panda/a", "panda/b", "ego4d/c", "youcook2/d"])
texts = st.sampled_from(
    ["", " ", "One", "Two ", "Drei\nVier", "fünf", "<image>\nSix", "x <|im_end|>", 'say "7"']
)
tables = st.lists(st.builds(lambda v, q, a: (v, q, a), videos, texts, texts), max_size=60)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=tables,
    there=st.sets(videos),
    most=st.integers(1, 6),
    order=st.randoms(use_true_random=False),
)
def test_every_usable_pair_is_in_exactly_one_sample_and_every_other_row_is_counted(
    tmp_path: Path,
    data: list[tuple[str, str, str]],
    there: set[str],
    most: int,
    order: random.Random,
) -> None:
    rows = [
        row(video, n, question=question, answer=answer)
        for n, (video, question, answer) in enumerate(data)
    ]
    report, samples, rejected, content = group(tmp_path, rows, there, turns=most)

    def clean(text: str) -> str:
        return text.replace("<image>\n", "").strip()

    usable = {
        (video, clean(question), clean(answer))
        for video, question, answer in data
        if video in there and clean(question) and clean(answer)
        if "<|im_end|>" not in question + answer and "<image>" not in answer
    }
    found = [(sample["video"], *pair) for sample in samples for pair in pairs_of(sample)]
    assert sorted(found) == sorted(usable)
    assert len(rejected) == len(rows) - len(usable)
    assert Counter(f"dropped: {item['reason']}" for item in rejected) == {
        name: count for name, count in report.counts.items() if name.startswith("dropped")
    }
    assert report.counts["rows_in"] == len(rows)
    assert report.counts["rows_grouped"] == len(usable)
    assert len({sample["id"] for sample in samples}) == len(samples)
    order.shuffle(rows)
    assert group(tmp_path, rows, there, turns=most)[3] == content


@given(count=st.integers(0, 200), most=st.integers(1, 9))
def test_chunks_are_as_few_as_possible_and_even_in_size(count: int, most: int) -> None:
    chunks = even_chunks(list(range(count)), most)
    assert [row for chunk in chunks for row in chunk] == list(range(count))
    assert len(chunks) == -(-count // most)
    assert all(len(chunk) <= most for chunk in chunks)
    assert not chunks or max(map(len, chunks)) - min(map(len, chunks)) <= 1


def test_the_samples_of_one_video_stand_together_and_videos_in_an_order_that_the_seed_decides(
    tmp_path: Path,
) -> None:
    rows = [row(f"panda/v{number % 30}", number) for number in range(600)]
    orders = []
    for seed in ("one", "two"):
        samples = group(tmp_path, rows, seed=seed)[1]
        changes = [video for video, _ in groupby(sample["video"] for sample in samples)]
        assert sorted(changes) == sorted({item["video"] for item in rows})
        orders.append(changes)
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_the_number_of_buckets_changes_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(f"panda/v{number % 23}", number) for number in range(500)]
    expected = group(tmp_path, rows)[1]
    monkeypatch.setattr(part_rows, "BUCKET_ROWS", 40)
    assert group(tmp_path, rows)[1] == expected


def test_reasons_are_told_apart_and_name_their_rows(tmp_path: Path) -> None:
    rows = [
        row("panda/gone", 0),
        row(None, 0, question_id="nowhere"),
        row("panda/a", 1, question="  "),
        row("panda/a", 2, answer=None),
        row("panda/a", 3, question="look <image> here"),
        row("panda/a", 4, answer="done<|endoftext|>"),
        row("panda/a", 5),
        row("panda/a", 6, question="Question 5?", answer="Answer 5."),
        row("panda/a", 7),
    ]
    report, samples, rejected, _ = group(tmp_path, rows, {"panda/a"})
    assert {item["question_id"]: item["reason"] for item in rejected} == {
        "panda/gone-0": "video not available",
        "nowhere": "video not available",
        "panda/a-1": "empty question",
        "panda/a-2": "empty answer",
        "panda/a-3": "stray token in question",
        "panda/a-4": "stray token in answer",
        "panda/a-6": "duplicate",
    }
    assert sorted(samples[0]["question_ids"]) == ["panda/a-5", "panda/a-7"]
    assert report.counts["samples"] == 1


def test_text_is_checked_after_it_was_cleaned_to_the_end(tmp_path: Path) -> None:
    """A marker that training deletes hid tokens and empty answers from the check."""
    marker = "QA_GT_caption_based_noisy"
    nested = f"{marker[:7]}{marker}{marker[7:]}"
    rows = [
        row("panda/a", 1, answer=f"yes <|im_{marker}end|>"),
        row("panda/a", 2, answer=f" {nested} "),
        row("panda/a", 3, question=f"<ima{nested}ge>"),
        row("panda/a", 4, question=f"see <ima{marker}ge> here"),
        row("panda/a", 5, question=f"<image>{marker}\n<video> What{marker}?", answer=f"A{nested}."),
    ]
    _, samples, rejected, _ = group(tmp_path, rows, {"panda/a"})
    assert {item["question_id"]: item["reason"] for item in rejected} == {
        "panda/a-1": "stray token in answer",
        "panda/a-2": "empty answer",
        "panda/a-3": "empty question",
        "panda/a-4": "stray token in question",
    }
    turns = json.loads(samples[0]["conversations"])
    assert [turn["value"] for turn in turns] == ["<image>\nWhat?", "A."]


def test_rows_of_another_part_are_not_touched(tmp_path: Path) -> None:
    rows = [row("panda/a", number, part=number % 2) for number in range(20)]
    report, samples, _, _ = group(tmp_path, rows)
    assert report.counts["rows_in"] == 10
    assert sorted(q for s in samples for q in s["question_ids"]) == sorted(
        f"panda/a-{n}" for n in range(0, 20, 2)
    )


def test_grouping_the_exported_file_again_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    rows = [row(f"panda/v{number % 7}", number) for number in range(100)]
    random.Random(0).shuffle(rows)
    _, samples, _, _ = group(first, rows)
    storage = Storage(str(first))
    assert export_llava_json(storage, [0], lambda _: None) == len(samples)
    exported = json.loads(storage.read_bytes(layout.CONVERSATIONS_JSON))
    assert [item["id"] for item in exported] == [sample["id"] for sample in samples]
    assert exported[0].keys() == {"id", "data_source", "video", "conversations"}

    flat = []
    for item in exported:
        turns = item["conversations"]
        for place in range(0, len(turns), 2):
            question, answer = turns[place]["value"], turns[place + 1]["value"]
            flat.append(
                row(
                    item["video"],
                    0,
                    question=question,
                    answer=answer,
                    sample_id=item["id"],
                    turn=place // 2,
                )
            )
    _, again, rejected, _ = group(second, flat)
    assert not rejected
    assert {s["id"]: s["conversations"] for s in again} == {
        s["id"]: s["conversations"] for s in samples
    }


def test_loose_rows_that_repeat_a_ready_made_sample_are_duplicates_and_get_no_id_twice(
    tmp_path: Path,
) -> None:
    ready = [row("panda/a", n, sample_id="panda/a#0-0", turn=n) for n in range(3)]
    loose = [row("panda/a", n, question_id=f"loose-{n}") for n in range(2, 6)]
    report, samples, rejected, _ = group(tmp_path, ready + loose)
    assert [item["question_id"] for item in rejected] == ["loose-2"]
    assert len({sample["id"] for sample in samples}) == len(samples) == 2
    assert samples[0]["question_ids"] == ["panda/a-0", "panda/a-1", "panda/a-2"]
    assert report.counts["rows_grouped"] == 6


def test_a_file_with_other_columns_is_an_error_that_names_them(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    pq.write_table(pa.table({"clip": ["a"], "part": [0]}), storage.path(ANNOTATIONS))
    with pytest.raises(
        ValueError, match=r"question_id, question, answer are missing; it has clip, part"
    ):
        group_rows(storage, ANNOTATIONS, 0, {}, seed="s", turns=5, log=lambda _: None)


def test_a_part_without_rows_gives_an_empty_file(tmp_path: Path) -> None:
    report, samples, rejected, _ = group(tmp_path, [])
    assert (samples, rejected, report.counts["samples"]) == ([], [], 0)
