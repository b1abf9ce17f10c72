"""Dropped files are adopted and left where they are; what is missing is listed with the command
that gets it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from assets.fetching.errors import CoverageError
from assets.videos.acquire import acquire_part
from tests.servers.clips import clip
from tests.servers.world import acquire, catalogued, make_settings, question, row

UIDS = [f"0000{n:04d}-aaaa-bbbb-cccc-00000000000{n}" for n in range(3)]


@pytest.fixture
def drop(tmp_path: Path):
    folder = tmp_path / "drop" / "v2" / "full_scale"
    folder.mkdir(parents=True)
    return folder


def deployment(tmp_path: Path, source="ego4d", wanted=UIDS, **changes):
    settings = make_settings(
        tmp_path / "deployment",
        {source: {"kind": "drop", "folder": str(tmp_path / "drop"), **changes}},
        [question(uid, source) for uid in wanted],
    )
    return catalogued(settings), settings


def test_files_anywhere_below_the_folder_are_adopted_and_left_there(tmp_path, drop):
    (drop / f"{UIDS[0]}.mp4").write_bytes(clip(1))
    (tmp_path / "drop" / "manifest.csv").write_text("x")
    storage, settings = deployment(tmp_path)
    report = acquire(storage, settings, "ego4d")
    assert report.counts["ok"] == 1
    assert report.counts["manual_missing"] == 2
    assert storage.read_bytes(f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4") == clip(1)
    assert (drop / f"{UIDS[0]}.mp4").read_bytes() == clip(1)
    assert os.path.samefile(
        drop / f"{UIDS[0]}.mp4", storage.path(f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4")
    )


def test_the_command_and_the_list_of_what_is_missing_are_given(tmp_path, drop):
    storage, settings = deployment(tmp_path)
    report = acquire(storage, settings, "ego4d")
    (note,) = report.notes
    listing = storage.path("VideoMarathon/catalogue/ego4d/part0.missing.txt")
    command = (
        f"ego4d --output_directory {tmp_path / 'drop'} --datasets full_scale "
        f"--video_uid_file {listing}"
    )
    assert command in note
    assert Path(listing).read_text().split() == UIDS
    for uid in UIDS:
        (drop / f"{uid}.mp4").write_bytes(clip(2))
    again = acquire(storage, settings, "ego4d")
    assert (again.coverage, again.notes, again.duplicates) == (1.0, [], 2)


def test_a_source_of_ones_own_has_its_own_words(tmp_path, drop):
    storage, settings = deployment(
        tmp_path, "mine", ["a"], instructions="Ask Ann for {list}; put it into {folder}."
    )
    (note,) = acquire(storage, settings, "mine").notes
    listing = storage.path("VideoMarathon/catalogue/mine/part0.missing.txt")
    assert note == f"Ask Ann for {listing}; put it into {tmp_path / 'drop'}."


def test_a_threshold_of_its_own_makes_a_missing_drop_an_error_with_instructions(tmp_path, drop):
    storage, settings = deployment(tmp_path, coverage_threshold=0.5)
    with pytest.raises(
        CoverageError, match=r"(?s)3 manual_missing \(not_dropped\).*ego4d --output_directory"
    ):
        acquire(storage, settings, "ego4d")


def test_a_bad_file_is_refused_and_the_drop_keeps_it(tmp_path, drop):
    (drop / f"{UIDS[0]}.mp4").write_bytes(clip(1)[:30_000])
    storage, settings = deployment(tmp_path)
    acquire(storage, settings, "ego4d")
    assert (row(storage, "ego4d", UIDS[0]).status, row(storage, "ego4d", UIDS[0]).reason) == (
        "permanent",
        "truncated",
    )
    assert (drop / f"{UIDS[0]}.mp4").exists()


def test_a_half_copied_file_is_adopted_when_it_was_completed(tmp_path, drop):
    path = drop / f"{UIDS[0]}.mp4"
    path.write_bytes(clip(1)[:30_000])
    storage, settings = deployment(tmp_path)
    acquire(storage, settings, "ego4d")
    assert row(storage, "ego4d", UIDS[0]).reason == "truncated"
    lines = []
    acquire_part(storage, settings, "ego4d", "part0", lines.append)
    assert not [line for line in lines if "set aside" in line], "the same file is not tried again"
    with open(path, "ab") as file:
        file.write(clip(1)[30_000:])
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
    assert storage.read_bytes(f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4") == clip(1)


def test_a_file_put_straight_under_its_final_name_is_adopted(tmp_path, drop):
    storage, settings = deployment(tmp_path)
    storage.write_bytes(f"VideoMarathon/videos/ego4d/{UIDS[1]}.mp4", clip(3))
    report = acquire(storage, settings, "ego4d")
    assert (report.counts["adopted"], report.counts["ok"]) == (1, 1)
    assert row(storage, "ego4d", UIDS[1]).location == "found in place"


def test_two_dropped_files_of_one_name_are_not_guessed_between(tmp_path, drop):
    (drop / f"{UIDS[0]}.mp4").write_bytes(clip(1))
    (tmp_path / "drop" / f"{UIDS[0]}.mp4").write_bytes(clip(2))
    storage, settings = deployment(tmp_path)
    acquire(storage, settings, "ego4d")
    assert row(storage, "ego4d", UIDS[0]).reason == "ambiguous"
    assert acquire(storage, settings, "ego4d").counts.get("ok") == 0
    (tmp_path / "drop" / f"{UIDS[0]}.mp4").unlink()
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
