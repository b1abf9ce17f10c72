"""Dropped files are adopted and left where they are; what is missing is listed with the command
that gets it.
"""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from assets.fetching.errors import CoverageError
from assets.records.lineage import Lineage
from assets.sources import drop as drop_source
from assets.videos.acquire import acquire_part
from tests.servers.clips import clip
from tests.servers.world import acquire, catalogued, make_settings, question, row
from training.formats.receipts import FileEntry

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
    listing = storage.path("VideoMarathon/catalogue/ego4d/missing.txt")
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
    listing = storage.path("VideoMarathon/catalogue/mine/missing.txt")
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


def published(storage, uid: str = UIDS[0], source: str = "ego4d") -> Path:
    return Path(storage.path(f"VideoMarathon/videos/{source}/{uid}.mp4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "suffix", [".mpeg", ".MTS", ".m2ts", ".3gp", ".ogv", ".wmv", ".MP4", ".M4V", ".vob"]
)
def test_files_are_adopted_whatever_ending_their_camera_gives_them(suffix, tmp_path, drop):
    (drop / f"{UIDS[0]}{suffix}").write_bytes(clip(1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_names_are_the_same_in_both_forms_of_unicode(form, asked, tmp_path, drop):
    name = "Über den Wölken é"
    (drop / f"{unicodedata.normalize(form, name)}.mov").write_bytes(clip(1))
    storage, settings = deployment(tmp_path, "mine", [unicodedata.normalize(asked, name)])
    assert acquire(storage, settings, "mine").counts["ok"] == 1
    assert row(storage, "mine", unicodedata.normalize("NFC", name)).status == "ok"


def test_a_file_in_place_under_a_name_of_macos_is_adopted(tmp_path, drop):
    storage, settings = deployment(tmp_path, "mine", ["café"])
    name = unicodedata.normalize("NFD", "café")
    storage.write_bytes(f"VideoMarathon/videos/mine/{name}.mp4", clip(3))
    assert acquire(storage, settings, "mine").counts["adopted"] == 1


@pytest.mark.parametrize("relative", [True, False])
def test_of_a_linked_file_the_content_is_published_and_never_the_link(relative, tmp_path, drop):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "raw.mp4").write_bytes(clip(1))
    target = Path("../../../elsewhere/raw.mp4") if relative else elsewhere / "raw.mp4"
    (drop / f"{UIDS[0]}.mp4").symlink_to(target)
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
    assert not published(storage).is_symlink()
    (elsewhere / "raw.mp4").unlink()
    assert published(storage).read_bytes() == clip(1)


def test_linked_folders_are_walked_once_and_circles_end(tmp_path, drop):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / f"{UIDS[0]}.mp4").write_bytes(clip(1))
    (drop / "linked").symlink_to(elsewhere)
    (drop / "again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(drop)
    (drop / "self").symlink_to(drop)
    (drop / f"{UIDS[1]}.mp4").write_bytes(clip(2))
    (drop / "favourites").mkdir()
    (drop / "favourites" / f"{UIDS[1]}.mp4").symlink_to(drop / f"{UIDS[1]}.mp4")
    storage, settings = deployment(tmp_path, wanted=UIDS[:2])
    assert acquire(storage, settings, "ego4d").counts["ok"] == 2
    assert row(storage, "ego4d", UIDS[1]).location == str(drop / f"{UIDS[1]}.mp4")


def test_what_is_no_file_costs_its_own_video_and_no_other(tmp_path, drop):
    (drop / f"{UIDS[0]}.mp4").symlink_to("nothing.mp4")
    os.mkfifo(drop / f"{UIDS[1]}.mp4")
    (drop / f"{UIDS[2]}.mp4").write_bytes(clip(1))
    storage, settings = deployment(tmp_path)
    lines: list[str] = []
    report = acquire_part(storage, settings, "ego4d", "part0", lines.append)
    assert (report.counts["ok"], report.counts["manual_missing"]) == (1, 2)
    assert len([line for line in lines if "there is no file behind it" in line]) == 2


def test_a_file_that_nobody_may_read_costs_its_own_video(tmp_path, drop, monkeypatch):
    for number, uid in enumerate(UIDS):
        (drop / f"{uid}.mp4").write_bytes(clip(number))
    storage, settings = deployment(tmp_path)

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "link", refuse)
    opened = open

    def open_unless(path, *args, **options):
        return (
            refuse(path) if str(path).endswith(f"{UIDS[0]}.mp4") else opened(path, *args, **options)
        )

    monkeypatch.setattr(drop_source, "open", open_unless, raising=False)
    assert acquire(storage, settings, "ego4d").counts["ok"] == 2
    refused = row(storage, "ego4d", UIDS[0])
    assert (refused.status, refused.reason) == ("needs_operator", "not_readable")
    assert "make it readable" in refused.message


@pytest.mark.parametrize("pair", [("a", "a.mp4/b"), ("x/y", "x/y.mp4/z/w")])
def test_two_names_of_which_one_needs_the_other_as_a_folder_end_nothing(pair, tmp_path, drop):
    for name in (*pair, "c"):
        (drop / name).parent.mkdir(parents=True, exist_ok=True)
        (drop / f"{name}.mkv").write_bytes(clip(1))
    storage, settings = deployment(tmp_path, "mine", [*pair, "c"])
    report = acquire(storage, settings, "mine")
    assert report.counts["ok"] == 2
    (refused,) = [found for name in pair if (found := row(storage, "mine", name)).status != "ok"]
    assert (refused.status, refused.reason) == ("permanent", "name_taken")
    assert row(storage, "mine", "c").status == "ok"


def test_a_file_that_is_still_being_copied_is_waited_for(tmp_path, drop, monkeypatch):
    path = drop / f"{UIDS[0]}.mp4"
    whole = clip(1)
    path.write_bytes(whole[:10_000])
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    left = [whole[10_000:20_000], whole[20_000:]]
    seen: list[tuple] = []

    def someone_goes_on_copying(seconds: float) -> None:
        if left:
            with open(path, "ab") as file:
                file.write(left.pop(0))

    recorded = drop_source.TransferError

    def noted(*args):
        seen.append(args)
        return recorded(*args)

    monkeypatch.setattr(drop_source.time, "sleep", someone_goes_on_copying)
    monkeypatch.setattr(drop_source, "TransferError", noted)
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
    assert published(storage).read_bytes() == whole
    assert [(status, reason) for status, reason, _ in seen] == [("transient", "still_copied")] * 2
    assert f"{UIDS[0]}.mp4 is still being written" in seen[0][2]


def test_a_file_that_never_stops_growing_says_so_and_is_tried_by_the_next_run(
    tmp_path, drop, monkeypatch
):
    path = drop / f"{UIDS[0]}.mp4"
    path.write_bytes(clip(1)[:10_000])
    (drop / f"{UIDS[1]}.mp4").write_bytes(clip(2))
    os.utime(drop / f"{UIDS[1]}.mp4", (1, 1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:2])

    def someone_goes_on_copying(seconds: float) -> None:
        with open(path, "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(drop_source.time, "sleep", someone_goes_on_copying)
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
    growing = row(storage, "ego4d", UIDS[0])
    assert (growing.status, growing.reason) == ("exhausted", "still_copied")
    assert "still being written" in growing.message
    monkeypatch.undo()
    path.write_bytes(clip(1))
    assert acquire(storage, settings, "ego4d").counts["ok"] == 2


def test_a_folder_that_cannot_be_seen_is_told(tmp_path, drop, monkeypatch):
    (drop / f"{UIDS[0]}.mp4").write_bytes(clip(1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("full_scale"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    lines: list[str] = []
    acquire_part(storage, settings, "ego4d", "part0", lines.append)
    assert f"{drop}: Permission denied; what lies there is not seen" in lines


def test_a_name_that_is_no_text_ends_nothing(tmp_path, drop):
    odd = os.fsencode(drop) + b"/\xff"
    os.mkdir(odd)
    with open(odd + b"/" + UIDS[0].encode() + b".mp4", "wb") as file:
        file.write(clip(1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    assert acquire(storage, settings, "ego4d").counts["ok"] == 1
    assert row(storage, "ego4d", UIDS[0]).location.endswith(f"/?/{UIDS[0]}.mp4")


def test_nothing_of_ours_changes_the_bytes_of_a_dropped_file(tmp_path, drop):
    path = drop / f"{UIDS[0]}.mp4"
    path.write_bytes(clip(1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    acquire(storage, settings, "ego4d")
    assert published(storage).samefile(path)
    storage.write_bytes(f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4", clip(2))
    assert path.read_bytes() == clip(1), "what is written gets a name of its own"
    storage.remove(f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4")
    assert path.read_bytes() == clip(1)


def test_a_dropped_file_that_its_owner_changes_is_found_and_adopted_as_it_is_now(tmp_path, drop):
    path = drop / f"{UIDS[0]}.mp4"
    path.write_bytes(clip(1))
    storage, settings = deployment(tmp_path, wanted=UIDS[:1])
    acquire(storage, settings, "ego4d")
    name = f"VideoMarathon/videos/ego4d/{UIDS[0]}.mp4"
    known = row(storage, "ego4d", UIDS[0])
    entry = FileEntry(name, known.size, f"sha256:{known.sha256}")
    record = Lineage("videos[part0|ego4d]", "v").with_files(storage, [entry])
    assert not record.damage(storage)
    with open(path, "r+b") as file:
        file.write(clip(2))
        file.truncate()
    (damage,) = record.damage(storage)
    assert damage.path == name
    acquire(storage, settings, "ego4d")
    assert row(storage, "ego4d", UIDS[0]).size == len(clip(2))
    assert published(storage).read_bytes() == path.read_bytes() == clip(2)


def test_one_list_of_missing_videos_serves_all_parts(tmp_path, drop):
    uids = [f"{n:08x}-0000-4000-8000-{n:012x}" for n in range(12)]
    sources = {"ego4d": {"kind": "drop", "folder": str(tmp_path / "drop")}}
    rows = [question(uid, "ego4d") for uid in uids]
    settings = make_settings(tmp_path / "deployment", sources, rows, parts=3)
    storage = catalogued(settings)
    (drop / f"{uids[0]}.mp4").write_bytes(clip(1))
    listing = Path(storage.path("VideoMarathon/catalogue/ego4d/missing.txt"))
    for part in ("part0", "part1", "part2"):
        (note,) = acquire(storage, settings, "ego4d", part).notes
        assert str(listing) in note
        assert set(listing.read_text().split()) >= set(uids[1:]), "also of parts not yet run"
    assert listing.read_text().split() == uids[1:]
    assert not list(listing.parent.glob("part*.txt"))


def test_uids_that_ego4d_does_not_know_are_left_out_of_the_list(tmp_path, drop):
    """The official client ends at the first of them."""
    uids = [f"{n:08x}-0000-4000-8000-{n:012x}" for n in range(4)]
    storage, settings = deployment(tmp_path, wanted=[*uids, "no-uid-at-all"])
    listing = Path(storage.path("VideoMarathon/catalogue/ego4d/missing.txt"))
    (note,) = acquire(storage, settings, "ego4d").notes
    assert listing.read_text().split() == uids
    assert "1 (no-uid-at-all)" in note
    assert "ends at the first uid that it does not know" in note
    known = {"videos": [{"video_uid": uid} for uid in uids[:3]]}
    (tmp_path / "drop" / "v2" / "ego4d.json").write_text(json.dumps(known))
    (note,) = acquire(storage, settings, "ego4d").notes
    assert listing.read_text().split() == uids[:3]
    assert f"2 ({uids[3]}, no-uid-at-all)" in note
    assert "ends at the first" not in note
