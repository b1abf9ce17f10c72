"""Annotations say what today's files say: what is new makes a part of its own, corrections and
removals reach the parts they touch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.annotations import collect
from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import read_catalogue
from assets.annotations.checks import usable
from assets.annotations.collect import collect_annotations
from assets.annotations.landing import landing_fingerprint
from assets.annotations.record import RECORD_KEY
from assets.deployment.parts import part_name, part_of
from assets.deployment.settings import Settings
from assets.fetching.errors import AnnotationError
from tests.servers.faulty import Fault, FaultyHubServer, in_turn
from tests.servers.world import make_settings, question, quiet
from training.formats import layout
from training.formats.storage import Storage

SOURCES = {"panda": {"kind": "youtube"}, "mine": {"kind": "url"}}


def rows_of(count: int, prefix: str = "v") -> list[dict]:
    return [
        question(f"{prefix}{n // 3}", "panda", f"https://youtu.be/{n // 3:011d}", id=f"{prefix}{n}")
        for n in range(count)
    ]


def table(storage: Storage) -> list[dict]:
    return pq.read_table(storage.local(layout.ANNOTATIONS)).to_pylist()


@pytest.fixture
def landing(tmp_path: Path) -> Path:
    folder = tmp_path / "landing"
    folder.mkdir()
    return folder


def land(folder: Path, name: str, rows: list[dict]) -> None:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(path, (time.time() - 60,) * 2)


def deployment(tmp_path: Path, rows: list[dict], **changes: Any) -> tuple[Settings, Storage]:
    settings = make_settings(
        tmp_path, SOURCES, rows, landing=str(tmp_path / "landing"), **{"parts": 3, **changes}
    )
    return settings, Storage(settings.root)


def test_rows_are_dealt_to_parts_by_the_hash_of_their_video(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(90))
    report = collect_annotations(storage, settings, quiet)
    found = table(storage)
    nothing = {"rejected": 0, "superseded": 0, "withdrawn": 0}
    assert report.counts == {"rows_read": 90, "rows": 90, **nothing, "parts": 3}
    assert report.changes == {"came": 90, "changed": 0, "gone": 0}
    assert all(row["part"] == part_of(row["video"], 3) for row in found)
    assert [row["part"] for row in found] == sorted(row["part"] for row in found)
    assert sorted(row["question_id"] for row in found) == sorted(f"v{n}" for n in range(90))


@pytest.mark.parametrize(
    ("videos", "parts"), [(1, 1), (11, 1), (199, 1), (200, 2), (1000, 10), (5000, 10)]
)
def test_the_number_of_parts_follows_the_number_of_videos(
    videos: int, parts: int, tmp_path: Path, landing: Path
) -> None:
    rows = [question(f"v{n}", "panda") for n in range(videos)]
    settings, storage = deployment(tmp_path, rows, parts=None)
    assert collect_annotations(storage, settings, quiet).counts["parts"] == parts
    before = {row["video"]: row["part"] for row in table(storage)}
    assert set(before.values()) == set(range(parts))
    land(landing, "more.jsonl", [question(f"w{n}", "panda") for n in range(300)])
    assert collect_annotations(storage, settings, quiet).counts["parts"] == parts + 1
    after = {row["video"]: row["part"] for row in table(storage)}
    assert {video: after[video] for video in before} == before, "a video stays in its part"
    assert {part for video, part in after.items() if video not in before} == {parts}


def test_parts_that_are_there_stay_when_the_settings_say_another_number(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(90), parts=10)
    collect_annotations(storage, settings, quiet)
    before = {row["video"]: row["part"] for row in table(storage)}
    rows = [*rows_of(90), question("one more", "panda")]
    for parts in (None, 3):
        changed, _ = deployment(tmp_path, rows, parts=parts)
        collect_annotations(storage, changed, quiet)
        after = {row["video"]: row["part"] for row in table(storage)}
        assert {video: after[video] for video in before} == before
        assert after["panda/one more"] == 10


def test_the_same_input_gives_the_same_bytes_and_a_second_run_writes_nothing(
    tmp_path: Path,
) -> None:
    settings, storage = deployment(tmp_path / "a", rows_of(50))
    first = collect_annotations(storage, settings, quiet)
    bytes_of = storage.read_bytes(layout.ANNOTATIONS)
    before = Path(storage.path(layout.ANNOTATIONS)).stat().st_mtime_ns
    second = collect_annotations(storage, settings, quiet)
    assert (second.version, second.counts) == (first.version, first.counts)
    assert (second.changes, second.changed_files) == ({"came": 0, "changed": 0, "gone": 0}, [])
    assert Path(storage.path(layout.ANNOTATIONS)).stat().st_mtime_ns == before
    other, elsewhere = deployment(tmp_path / "b", rows_of(50))
    assert collect_annotations(elsewhere, other, quiet).version == first.version
    assert elsewhere.read_bytes(layout.ANNOTATIONS) == bytes_of


def test_rejected_rows_are_kept_with_file_row_and_reason(tmp_path: Path) -> None:
    rows = [*rows_of(4), {**question("x", "vimeo")}, {**question("y", "panda"), "answer": ""}]
    settings, storage = deployment(tmp_path, rows)
    report = collect_annotations(storage, settings, quiet)
    assert report.rejected == {"no_answer": 1, "unknown_source": 1}
    rejected = pq.read_table(storage.local(layout.REJECTED_ANNOTATIONS)).to_pylist()
    assert [(row["file"], row["row"], row["reason"]) for row in rejected] == [
        ("qa.jsonl", 4, "unknown_source"),
        ("qa.jsonl", 5, "no_answer"),
    ]
    assert json.loads(rejected[0]["content"])["data_source"] == "vimeo"


def test_rows_with_half_a_surrogate_pair_are_set_aside(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(2))
    path = tmp_path / "more.json"
    fields = ("question", "answer", "id", "question_type", "URL")
    path.write_text(json.dumps([{**question("s", "panda"), name: "\ud800"} for name in fields]))
    both = [*settings.annotations.paths, str(path)]
    more = settings.annotations.model_copy(update={"paths": both})
    report = collect_annotations(storage, settings.model_copy(update={"annotations": more}), quiet)
    assert report.rejected == {"not_unicode": len(fields)}
    assert report.counts["rows"] == 2


def test_what_lands_becomes_a_new_part_and_old_parts_stay(tmp_path: Path, landing: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(30))
    collect_annotations(storage, settings, quiet)
    build_catalogue(storage, settings, quiet)
    old_rows = table(storage)
    old_catalogues = {
        part: storage.read_bytes(f"VideoMarathon/catalogue/panda/{part}.parquet")
        for part in {"part0", "part1", "part2"} - {part_name(part_of("panda/v0", 3))}
    }
    more_about_v0 = {**question("v0", "panda"), "question": "And then?"}
    land(landing, "new.jsonl", [*rows_of(6, "w"), more_about_v0, rows_of(30)[4]])
    report = collect_annotations(storage, settings, quiet)
    found = table(storage)
    assert report.counts["parts"] == 4
    assert all(row in found for row in old_rows)
    new_rows = [row for row in found if row not in old_rows]
    assert {(row["part"], row["video"]) for row in new_rows} == {
        (3, "panda/w0"),
        (3, "panda/w1"),
        (part_of("panda/v0", 3), "panda/v0"),
    }
    assert (report.rejected, report.counts["superseded"]) == ({}, 1)
    assert report.changed_files == [
        {"file": "landing/new.jsonl", "came": 7, "changed": 0, "gone": 0}
    ]
    catalogue = build_catalogue(storage, settings, quiet)
    assert catalogue.parts == ["part0", "part1", "part2", "part3"]
    assert read_catalogue(storage, "panda", "part3")["id"].to_pylist() == ["w0", "w1"]
    assert {
        part: storage.read_bytes(f"VideoMarathon/catalogue/panda/{part}.parquet")
        for part in old_catalogues
    } == old_catalogues
    parts = storage.read_json("VideoMarathon/parts.json")["parts"]
    assert [(part["name"], part["origin"]) for part in parts[2:]] == [
        ("part2", "qa.jsonl"),
        ("part3", "landing/new.jsonl"),
    ]
    assert parts[3]["videos"] == 2


def test_what_lands_twice_is_known(tmp_path: Path, landing: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(9))
    land(landing, "a.jsonl", rows_of(6, "w"))
    assert collect_annotations(storage, settings, quiet).counts["parts"] == 4
    version = collect_annotations(storage, settings, quiet).version
    land(landing, "copy.jsonl", rows_of(6, "w"))
    land(landing, "sorted differently.jsonl", rows_of(6, "w")[::-1])
    (landing / "a.jsonl").unlink()
    report = collect_annotations(storage, settings, quiet)
    assert (report.counts["parts"], report.version) == (4, version)


def test_a_landing_file_that_cannot_be_read_stops_nothing(tmp_path: Path, landing: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(9))
    land(landing, "good.jsonl", rows_of(3, "w"))
    land(landing, "strange.jsonl", [{"film": "x"}])
    (landing / "half.parquet").write_bytes(b"PAR1")
    os.utime(landing / "half.parquet", (1, 1))
    report = collect_annotations(storage, settings, quiet)
    assert report.counts["parts"] == 4
    assert len(report.problems) == 2
    assert any("'film'" in problem for problem in report.problems)


def test_a_landed_file_that_is_being_edited_or_was_broken_keeps_its_rows(
    tmp_path: Path, landing: Path
) -> None:
    settings, storage = deployment(tmp_path, rows_of(9))
    land(landing, "a.jsonl", rows_of(3, "w"))
    version = collect_annotations(storage, settings, quiet).version
    (landing / "a.jsonl").write_text("half a li")  # just now
    assert collect_annotations(storage, settings, quiet).version == version
    land(landing, "a.jsonl", [{"film": "x"}])
    report = collect_annotations(storage, settings, quiet)
    assert report.version == version
    assert "its rows stay as they were" in report.problems[0]
    land(landing, "a.jsonl", [{**rows_of(3, "w")[0], "answer": "mended"}])
    report = collect_annotations(storage, settings, quiet)
    assert (report.problems, report.changes) == ([], {"came": 0, "changed": 1, "gone": 2})


def test_a_landing_folder_that_is_not_there_takes_no_rows_away(
    tmp_path: Path, landing: Path
) -> None:
    settings, storage = deployment(tmp_path, rows_of(9))
    land(landing, "a.jsonl", rows_of(3, "w"))
    version = collect_annotations(storage, settings, quiet).version
    landing.rename(tmp_path / "not mounted")
    report = collect_annotations(storage, settings, quiet)
    assert report.version == version
    assert "is not there (landing in the settings)" in report.problems[0]
    (tmp_path / "not mounted").rename(landing)
    (landing / "a.jsonl").unlink()
    report = collect_annotations(storage, settings, quiet)
    assert report.changes == {"came": 0, "changed": 0, "gone": 3}
    assert report.counts["parts"] == 4, "a part stays, though it has no rows"


def test_two_configured_files_of_one_name_are_two_files(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(3))
    (tmp_path / "more").mkdir()
    land(tmp_path / "more", "qa.jsonl", rows_of(3, "w"))
    both = [*settings.annotations.paths, str(tmp_path / "more" / "qa.jsonl")]
    more = settings.annotations.model_copy(update={"paths": both})
    settings = settings.model_copy(update={"annotations": more})
    report = collect_annotations(storage, settings, quiet)
    assert (report.counts["rows"], list(report.origins)) == (6, ["qa.jsonl", "(2) qa.jsonl"])


def test_a_root_of_an_earlier_version_keeps_the_parts_of_its_videos(
    tmp_path: Path, landing: Path
) -> None:
    """Its ledger says which parts there are, its rows which videos they hold; the rest is read
    again.
    """
    settings, storage = deployment(tmp_path, rows_of(30))
    land(landing, "a.jsonl", rows_of(6, "w"))
    collect_annotations(storage, settings, quiet)
    parts = {row["video"]: row["part"] for row in table(storage)}
    old = pq.read_table(storage.local(layout.ANNOTATIONS))
    ledger = json.loads(old.schema.metadata[RECORD_KEY])
    kept = {name: ledger[name] for name in ("normaliser", "part_versions", "part_names")}
    earlier = {**kept, "origins": [{"name": "qa.jsonl", "checksums": ["x"]}], "counts": {}}
    with storage.writing(layout.ANNOTATIONS) as temporary:
        metadata = {RECORD_KEY: json.dumps(earlier)}
        pq.write_table(old.replace_schema_metadata(metadata), temporary)
    storage.remove(layout.VIDEO_PARTS)
    storage.remove(layout.READINGS)
    report = collect_annotations(storage, settings, quiet)
    assert {row["video"]: row["part"] for row in table(storage)} == parts
    assert report.counts["parts"] == 4


def test_a_kill_between_the_parts_and_the_rows_costs_nothing(
    tmp_path: Path, landing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, storage = deployment(tmp_path / "killed", rows_of(9))
    other, elsewhere = deployment(tmp_path / "whole", rows_of(9))
    for one, where in ((settings, storage), (other, elsewhere)):
        collect_annotations(where, one, quiet)
        assert one.landing is not None
        one.landing.mkdir()
        land(one.landing, "a.jsonl", rows_of(3, "w"))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collect, "write_annotations", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_annotations(storage, settings, quiet)
    for one, where in ((settings, storage), (other, elsewhere)):
        collect_annotations(where, one, quiet)
    for name in (layout.ANNOTATIONS, layout.VIDEO_PARTS):
        assert storage.read_bytes(name) == elsewhere.read_bytes(name)


def test_a_file_that_is_still_being_copied_waits(tmp_path: Path, landing: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(9))
    land(landing, "a.jsonl", rows_of(3, "w"))
    os.utime(landing / "a.jsonl")
    before = landing_fingerprint(settings)
    assert collect_annotations(storage, settings, quiet).counts["parts"] == 3
    land(landing, "b.jsonl", rows_of(3, "x"))
    assert before == ""
    assert landing_fingerprint(settings) != ""


def test_a_source_that_is_configured_later_brings_its_rows_as_a_new_part(tmp_path: Path) -> None:
    rows = [*rows_of(9), question("z", "late")]
    settings, storage = deployment(tmp_path, rows)
    collect_annotations(storage, settings, quiet)
    later = settings.model_copy(
        update={"sources": {**settings.sources, "late": settings.sources["mine"]}}
    )
    report = collect_annotations(storage, later, quiet)
    assert report.counts["parts"] == 4
    assert table(storage)[-1]["video"] == "late/z"


def test_the_hubs_revision_is_recorded_and_a_newer_one_adds_a_part(tmp_path: Path) -> None:
    with FaultyHubServer() as hub:
        lines = [
            "".join(json.dumps(row) + "\n" for row in rows).encode()
            for rows in (rows_of(9), rows_of(12))
        ]
        first = hub.publish("someone/qa", {"data/train.jsonl": lines[0], "README.md": b"text"})
        settings = make_settings(
            tmp_path,
            SOURCES,
            parts=2,
            hub_endpoint=hub.url,
            annotations={"repo": "someone/qa", "files": ["data/*"]},
        )
        storage = Storage(settings.root)
        hub.faults = in_turn(
            {
                "GET .*/resolve/": [
                    Fault.answer(429, headers={"Retry-After": "0"}),
                    Fault.truncate(100),
                ]
            }
        )
        assert collect_annotations(storage, settings, quiet).origins == {"someone/qa": first}
        second = hub.publish("someone/qa", {"data/train.jsonl": lines[1]})
        report = collect_annotations(storage, settings, quiet)
        assert (report.origins, report.counts["parts"]) == ({"someone/qa": second}, 3)
        assert [row["question_id"] for row in table(storage) if row["part"] == 2] == [
            "v9",
            "v10",
            "v11",
        ]
        pinned = make_settings(
            tmp_path / "pinned",
            SOURCES,
            parts=2,
            hub_endpoint=hub.url,
            annotations={"repo": "someone/qa", "revision": first, "files": ["data/*"]},
        )
        assert collect_annotations(Storage(pinned.root), pinned, quiet).counts["rows"] == 9
        wrong = pinned.model_copy(
            update={"annotations": pinned.annotations.model_copy(update={"files": ["*.csv"]})}
        )
        with pytest.raises(AnnotationError, match=r"no annotation file matches \*\.csv"):
            collect_annotations(Storage(str(tmp_path / "none")), wrong, quiet)


def test_missing_columns_stop_the_collection_and_write_nothing(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, [{"film": "v", "question": "Q?", "answer": "A"}])
    with pytest.raises(AnnotationError, match="'film'"):
        collect_annotations(storage, settings, quiet)
    assert not storage.exists(layout.ANNOTATIONS)


def test_a_column_too_many_and_values_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    rows = [{**question("v", "panda"), "colour": "red", "duration": "a while"}]
    settings, storage = deployment(tmp_path, rows)
    lines: list[str] = []
    report = collect_annotations(storage, settings, lines.append)
    assert report.counts["rows"] == 1
    (told,) = report.read
    assert (told["file"], told["read as"]) == ("qa.jsonl", "JSONL, UTF-8")
    assert (told["columns not read"], told["values not read"]) == ("colour", "1 duration")
    assert "qa.jsonl: columns that are not read: colour" in lines
    assert "qa.jsonl: 1 rows have a duration that cannot be read" in lines


def test_rows_that_name_no_source_are_an_error_that_names_the_column_and_the_choices(
    tmp_path: Path,
) -> None:
    rows = [{"video": f"{n}.mp4", "question": "Q?", "answer": "A"} for n in range(3)]
    settings, storage = deployment(tmp_path, rows)
    with pytest.raises(AnnotationError, match=r"3 of 3 rows.*data_source.*mine, panda") as error:
        collect_annotations(storage, settings, quiet)
    assert "qa.jsonl" in str(error.value)
    assert not storage.exists(layout.ANNOTATIONS)


def test_rows_of_sources_that_nobody_configured_are_no_silent_nothing(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, [question("v", "vimeo"), question("w", "vimeo")])
    with pytest.raises(AnnotationError, match=r"qa.jsonl.*2 unknown_source.*mine, panda"):
        collect_annotations(storage, settings, quiet)


def test_one_file_that_cannot_be_read_costs_no_other_one(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(6))
    broken = tmp_path / "cut.json"
    broken.write_text(json.dumps(rows_of(3, "w"))[:-20])
    more = settings.annotations.model_copy(
        update={"paths": [*settings.annotations.paths, str(broken)]}
    )
    settings = settings.model_copy(update={"annotations": more})
    report = collect_annotations(storage, settings, quiet)
    assert report.counts["rows"] == 6
    assert [problem.partition(":")[0] for problem in report.problems] == ["cut.json, line 1"]
    assert not usable(report, settings).passed
    broken.write_text(json.dumps(rows_of(3, "w")))
    assert collect_annotations(storage, settings, quiet).counts["rows"] == 9
    broken.write_text("[")
    again = collect_annotations(storage, settings, quiet)
    assert again.counts["rows"] == 9, "its rows stay as they were when it could be read"
    assert "stay as they were" in again.problems[0]


def test_an_annotation_file_of_another_hand_is_not_overwritten(tmp_path: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(3))
    with storage.writing(layout.ANNOTATIONS) as temporary:
        pq.write_table(pa.table({"video": ["x"]}), temporary)
    with pytest.raises(AnnotationError, match="not written by this pipeline"):
        collect_annotations(storage, settings, quiet)


def test_landings_may_go_past_a_hundred_parts(tmp_path: Path, landing: Path) -> None:
    settings, storage = deployment(tmp_path, rows_of(3), parts=99)
    collect_annotations(storage, settings, quiet)
    for name in ("a", "b"):
        land(landing, f"{name}.jsonl", rows_of(3, name))
        collect_annotations(storage, settings, quiet)
    assert [row["part"] for row in table(storage)][-6:] == [99] * 3 + [100] * 3


MEASURE = """
import sys, time
from pathlib import Path
from assets.deployment.settings import Settings
from assets.annotations.collect import collect_annotations
from tests.memory import peak_mib
from training.formats.storage import Storage
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
start = time.monotonic()
collect_annotations(Storage(settings.root), settings, lambda line: None)
print(time.monotonic() - start, peak_mib())
"""


@pytest.mark.slow
def test_three_hundred_thousand_rows_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "qa.parquet"
    text = "What does the person do after the second cut? " * 6
    with pq.ParquetWriter(path, pa.Table.from_pylist(rows_of(1)).schema) as writer:
        for start in range(0, 300_000, 20_000):
            block = [
                question(f"v{n // 100}", "panda", "u", id=str(n), question=f"{n} {text}")
                for n in range(start, start + 20_000)
            ]
            writer.write_table(pa.Table.from_pylist(block).select(writer.schema.names))
    settings = make_settings(tmp_path, SOURCES, parts=10, annotations={"paths": [str(path)]})
    (tmp_path / "s.json").write_text(settings.model_dump_json())
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "s.json")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    seconds, mebibytes = map(float, out.split())
    print(f"{seconds:.1f} s, {mebibytes:.0f} MiB")
    assert mebibytes < 500
    assert Storage(settings.root).size(layout.ANNOTATIONS) > 0
