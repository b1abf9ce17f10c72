"""Parts of shards: the same bytes however they come about, whole or not there, and no row lost
without a word.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from assets.deployment.settings import Collections
from assets.shards import workers
from assets.shards.part import INDEX, MANIFEST, part_folder
from assets.shards.writer import write_kind_part, write_long_video_part
from tests.assets.shards.roots import (
    IMAGE_SET,
    contents,
    make_conversations,
    make_root,
    quiet,
    settings_for,
    turns,
    write,
)
from training.formats import layout
from training.formats.kinds import KINDS, LLAVA_KINDS
from training.formats.sample import COLUMNS, decode
from training.formats.storage import Storage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Storage, dict]:
    """A root with part 0 of every kind, and the reports."""
    root = tmp_path_factory.mktemp("root")
    storage = make_root(root)
    make_conversations(storage, 0, videos=9, samples=5)
    settings = settings_for(root)
    reports = {kind: write_kind_part(storage, settings, kind, 0, quiet) for kind in LLAVA_KINDS}
    reports["videomarathon_video"] = write_long_video_part(storage, settings, 0, quiet)
    return storage, reports


def read_plainly(folder: Path) -> list[dict]:
    """All rows of a part through the library alone."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(folder), batch_size=1)
    return [dataset[number] for number in range(len(dataset))]


def test_the_library_alone_reads_every_kind(whole):
    storage, reports = whole
    for kind in KINDS:
        rows = read_plainly(Path(storage.path(part_folder(kind, 0))))
        assert len(rows) == reports[kind].counts["samples"] > 0
        assert rows[0].keys() == COLUMNS.keys()
        samples = [decode(row) for row in rows]
        assert len({sample.id for sample in samples}) == len(samples)
        assert {sample.kind for sample in samples} == {kind}


def test_every_row_is_in_exactly_one_of_the_ten_parts(whole):
    storage, _ = whole
    settings = settings_for(Path(storage.root))
    seen: list[int] = []
    for part in range(10):
        write_kind_part(storage, settings, "llavavideo_si", part, quiet)
        rows = read_plainly(Path(storage.path(part_folder("llavavideo_si", part))))
        seen += [int(decode(row).id.partition(":i")[2]) for row in rows]
    assert sorted(seen) == list(range(120))


def test_images_in_a_shard_are_the_bytes_of_the_files(whole):
    storage, _ = whole
    for row in read_plainly(Path(storage.path(part_folder("llavavideo_mi", 0)))):
        sample = decode(row)
        number = int(sample.id.partition(":m")[2])
        for place, data in enumerate(sample.images):
            name = f"set/{number + place}.{'png' if (number + place) % 5 == 0 else 'jpeg'}"
            assert data == storage.read_bytes(f"LLaVA-OneVision/images/{name}")


def test_rows_of_one_video_stand_together(whole):
    storage, _ = whole
    for kind in ("llavavideo_video", "videomarathon_video"):
        videos = [
            decode(row).video for row in read_plainly(Path(storage.path(part_folder(kind, 0))))
        ]
        changes = sum(one != two for one, two in pairwise(videos))
        assert changes == len(set(videos)) - 1


def test_no_shard_reaches_over_the_middle_and_none_is_larger_than_asked(whole):
    storage, reports = whole
    for kind in KINDS:
        shards = storage.read_json(f"{part_folder(kind, 0)}/{INDEX}")["shards"]
        half = storage.read_json(f"{part_folder(kind, 0)}/{MANIFEST}")["first_half"]
        assert sum(shard["samples"] for shard in shards[: half["shards"]]) == half["samples"]
        assert all(0 < shard["samples"] <= 8 for shard in shards)
        if not reports[kind].drops:
            assert half["samples"] == reports[kind].counts["samples"] // 2


def test_the_report_says_what_a_person_wants_to_know(whole):
    storage, reports = whole
    report = reports["llava_ov_si_onlyimg"]
    dropped = report.drops["text row in an image-only kind"]
    assert report.counts["rows_in"] == report.counts["samples"] + dropped
    assert report.bytes == sum(
        path.stat().st_size
        for path in Path(storage.path(part_folder("llava_ov_si_onlyimg", 0))).glob("*.mds")
    )
    assert report.picture is not None
    assert report.picture.startswith(b"\x89PNG")
    assert "<image>" in report.examples[0]["conversation"]
    assert reports["llavavideo_video"].missing == [
        "LLaVA-Video-178K/annotations/never_downloaded.json"
    ]
    assert reports["videomarathon_video"].hours == pytest.approx(9 * 30 / 3600, abs=1e-3)
    assert reports["llavavideo_text"].tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch, number):
    monkeypatch.setattr(workers, "POOL_FROM_ROWS", 1)
    storage = make_root(tmp_path)
    found = []
    for processes in (1, number):
        write_kind_part(
            storage, settings_for(tmp_path, workers=processes), "llavavideo_mi", 3, quiet
        )
        found.append(contents(tmp_path / part_folder("llavavideo_mi", 3)))
        storage.remove(part_folder("llavavideo_mi", 3))
    assert found[0] == found[1]


CHILD = """
import sys
from pathlib import Path
from assets.shards import workers, writer
from tests.assets.shards.roots import settings_for
from training.formats.storage import Storage
root = Path(sys.argv[1])
print("ready", flush=True)
workers.POOL_FROM_ROWS = 1
settings = settings_for(root, rows_per_shard=2, workers=2)
log = lambda line: print(line, flush=True)
writer.write_kind_part(Storage(str(root)), settings, "llavavideo_mi", 3, log)
"""


def living_in_group(group: int) -> list[int]:
    """Processes of a group that are not merely waiting for their parent to notice their end."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        make_root(root, images=300)
    write_kind_part(
        Storage(str(whole)), settings_for(whole, rows_per_shard=2), "llavavideo_mi", 3, quiet
    )
    expected = contents(whole / part_folder("llavavideo_mi", 3))
    generator, kills, folder = random.Random(0), 0, killed / layout.SHARDS
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(killed)],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        work = folder / ".tmp-work-llavavideo_mi_part3"
        done = len(list(work.glob("task-*.json"))) if work.exists() else 0
        # Kill once some more tasks are done, so that the run dies at another place each time.
        while process.poll() is None and time.monotonic() < deadline:
            if work.exists() and len(list(work.glob("task-*.json"))) > done + generator.randrange(
                3
            ):
                break
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        deadline = time.monotonic() + 120
        while living_in_group(process.pid):  # its workers end by themselves
            assert time.monotonic() < deadline
            time.sleep(0.02)
        index = folder / "llavavideo_mi_part3" / INDEX
        assert not index.exists() or contents(index.parent) == expected
    write_kind_part(
        Storage(str(killed)), settings_for(killed, rows_per_shard=2), "llavavideo_mi", 3, quiet
    )
    assert kills >= 2
    assert contents(killed / part_folder("llavavideo_mi", 3)) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["llavavideo_mi_part3"]


def test_what_an_earlier_run_finished_is_not_written_again(tmp_path, monkeypatch):
    storage, settings = make_root(tmp_path), settings_for(tmp_path, rows_per_shard=2)
    reached = workers.measured(storage, part_folder("llavavideo_si", 1))
    assert reached() == []
    done: list[int] = []
    real = workers.run_task

    def dying(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.index)
        return real(task)

    monkeypatch.setattr(workers, "run_task", dying)
    with pytest.raises(KeyboardInterrupt):
        write_kind_part(storage, settings, "llavavideo_si", 1, quiet)
    assert not storage.exists(f"{part_folder('llavavideo_si', 1)}/{INDEX}")
    assert reached() == [f"task-{index:05d}.json" for index in done]
    again: list[int] = []
    monkeypatch.setattr(workers, "run_task", lambda task: again.append(task.index) or real(task))
    lines: list[str] = []
    write_kind_part(storage, settings, "llavavideo_si", 1, lines.append)
    assert not set(done) & set(again)
    assert any("2 of" in line and "earlier run" in line for line in lines)


def test_nothing_tells_how_far_a_part_below_a_remote_root_is():
    assert workers.measured(Storage("memory://bucket"), part_folder("llavavideo_si", 1)) is None


def test_a_part_that_has_not_changed_is_left_alone_and_one_that_has_is_written_again(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    first = write_kind_part(storage, settings, "llavavideo_text", 0, quiet)
    folder = tmp_path / part_folder("llavavideo_text", 0)
    (folder / "lineage.json").write_text("{}")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_kind_part(storage, settings, "llavavideo_text", 0, quiet) == first
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    other = write_kind_part(
        storage, settings_for(tmp_path, seed="other"), "llavavideo_text", 0, quiet
    )
    assert other.version != first.version
    assert other.counts["samples"] == first.counts["samples"]


def test_how_other_images_are_encoded_is_the_deployments_choice_and_part_of_what_decides(tmp_path):
    storage = make_root(tmp_path)
    lossless = write_kind_part(storage, settings_for(tmp_path), "llavavideo_si", 0, quiet)
    smaller = write_kind_part(
        storage, settings_for(tmp_path, reencode="jpeg"), "llavavideo_si", 0, quiet
    )
    assert lossless.config["images"]["encoding"] == "png"
    assert smaller.config["images"]["encoding"] == "jpeg"
    assert smaller.counts["samples"] == lossless.counts["samples"]


def test_a_part_that_lost_a_shard_is_made_whole_again(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    write_kind_part(storage, settings, "llavavideo_text", 0, quiet)
    folder = tmp_path / part_folder("llavavideo_text", 0)
    expected = contents(folder)
    (folder / "shard.00000.mds").unlink()
    write_kind_part(storage, settings, "llavavideo_text", 0, quiet)
    assert contents(folder) == expected


def test_images_that_are_missing_are_named_and_found_once_they_are_there(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path, max_drop_share=1.0)
    images = tmp_path / "LLaVA-OneVision/images/set"
    lost = {
        path: path.read_bytes()
        for path in images.iterdir()
        if path.stem in {"10", "11", "12", "13", "14", "15"}
    }
    for path in lost:
        path.unlink()
    reports = [
        write_kind_part(storage, settings, "llavavideo_si", part, quiet) for part in range(10)
    ]
    assert sum(report.drops.get("image missing", 0) for report in reports) == 6
    assert any(
        "shapes#10:i10: image missing: set/10.png" in line
        for report in reports
        for line in report.named
    )
    for path, data in lost.items():
        path.write_bytes(data)
    reports = [
        write_kind_part(storage, settings, "llavavideo_si", part, quiet) for part in range(10)
    ]
    assert sum(report.counts["samples"] for report in reports) == 120
    assert not any(report.drops for report in reports)


def test_a_part_that_would_lose_too_much_fails_names_why_and_publishes_nothing(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path, max_drop_share=0.05)
    for path in (tmp_path / "LLaVA-OneVision/images/set").iterdir():
        path.unlink()
    with pytest.raises(
        ValueError, match=r"cannot be used, more than shards.max_drop_share .* image missing"
    ):
        write_kind_part(storage, settings, "llavavideo_si", 0, quiet)
    assert not (tmp_path / layout.SHARDS).exists() or not list((tmp_path / layout.SHARDS).iterdir())


def test_missing_annotation_files_are_an_error_only_if_asked_for(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    strict = settings.model_copy(
        update={
            "collections": Collections(mixtures=settings.collections.mixtures, require_all=True)
        }
    )
    lines: list[str] = []
    assert write_kind_part(storage, settings, "llavavideo_video", 0, lines.append).counts["samples"]
    assert any("1 of 2 annotation files are not there" in line for line in lines)
    with pytest.raises(ValueError, match=r"never_downloaded.json.*require_all"):
        write_kind_part(storage, strict, "llavavideo_video", 0, quiet)


def test_rows_may_come_in_any_layout_without_changing_a_sample(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    path = tmp_path / "LLaVA-OneVision/annotations" / IMAGE_SET
    rows = json.loads(path.read_text())
    versions = []
    for text in (
        json.dumps(rows),
        json.dumps(rows, indent=4),
        "\n".join(json.dumps(row) for row in rows),
    ):
        path.write_text(text)
        versions.append(write_kind_part(storage, settings, "llavavideo_si", 2, quiet).version)
    assert len(set(versions)) == 1


def test_a_second_run_on_the_same_part_is_refused(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    work = tmp_path / layout.SHARDS / ".tmp-work-llavavideo_si_part1"
    with (
        workers.locked_folder(work),
        pytest.raises(ValueError, match="another run is writing this part"),
    ):
        write_kind_part(storage, settings, "llavavideo_si", 1, quiet)


def test_a_broken_annotation_file_is_an_error_that_names_it(tmp_path):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    path = tmp_path / "LLaVA-OneVision/annotations" / IMAGE_SET
    path.write_text(path.read_text()[:-300])
    with pytest.raises(ValueError, match=r"shapes.json: ends inside row"):
        write_kind_part(storage, settings, "llavavideo_si", 0, quiet)


def test_an_object_store_holds_the_same_bytes_as_a_local_folder(tmp_path):
    local = make_root(tmp_path)
    make_conversations(local, 0, videos=4, samples=3)
    remote = Storage(f"memory://{tmp_path.name}", cache=tmp_path / "cache")
    for name in local.list():
        remote.write_bytes(name, local.read_bytes(name))
    for storage in (local, remote):
        settings = settings_for(tmp_path)
        write_kind_part(storage, settings, "llavavideo_si", 0, quiet)
        write_long_video_part(storage, settings, 0, quiet)
    names = local.list(layout.SHARDS)
    assert names == remote.list(layout.SHARDS)
    assert all(local.read_bytes(name) == remote.read_bytes(name) for name in names)


def test_large_rows_go_into_shards_of_their_own(tmp_path, monkeypatch):
    storage, settings = make_root(tmp_path), settings_for(tmp_path)
    rows = [{"id": f"t{n}", "conversations": turns("Say it.", "x" * 3000)} for n in range(60)]
    write(tmp_path / "LLaVA-OneVision/annotations/chat.json", rows)
    monkeypatch.setattr("assets.shards.mds.SIZE_LIMIT", 2000)
    report = write_kind_part(storage, settings, "llavavideo_text", 0, quiet)
    shards = storage.read_json(f"{part_folder('llavavideo_text', 0)}/{INDEX}")["shards"]
    assert {shard["samples"] for shard in shards} == {1}
    assert len(shards) == report.counts["samples"]
    assert len(read_plainly(tmp_path / part_folder("llavavideo_text", 0))) == len(shards)
