"""Videos of a hub repository: loose, in zip archives, in tar archives; and hubs that misbehave."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from assets.fetching.errors import AccessError, OperatorError
from tests.servers.clips import clip
from tests.servers.faulty import Fault, FaultyHubServer, in_turn
from tests.servers.hostile import (
    ESCAPES,
    link,
    tar_gz,
    tar_with_huge_header,
    zip_that_understates,
    zip_with_link,
    zipped,
)
from tests.servers.world import acquire, catalogued, files_below, make_settings, question, row

REPO = "someone/clips"


@pytest.fixture
def hub():
    with FaultyHubServer() as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, hub: FaultyHubServer):
    """Publishes files as a repository and catalogues the videos that a test wants of it."""

    def build(
        files: dict[str, bytes],
        wanted: list[str],
        token: str | None = None,
        repo: str = REPO,
        **changes,
    ):
        if files:
            hub.publish(REPO, files, token=token)
        source = {
            "kind": "hub",
            "repo": repo,
            "files": ["*.mp4", "*.mkv"],
            "archives": ["*.zip", "*.tar*"],
        }
        settings = make_settings(
            tmp_path / "deployment",
            {"set": source},
            [question(name, "set") for name in wanted],
            hub_endpoint=hub.url,
            **changes,
        )
        return catalogued(settings), settings

    return build


def content(storage, name: str) -> bytes:
    return storage.read_bytes(f"VideoMarathon/videos/set/{name}.mp4")


def sent(hub: FaultyHubServer, suffix: str) -> int:
    return sum(
        e.sent_bytes
        for e in hub.log
        if e.request.path.endswith(suffix) and e.request.method == "GET"
    )


def test_loose_files_are_found_by_their_name(world, hub):
    files = {"raw_videos/a.mp4": clip(1), "movies/deep/b.mp4": clip(2), "README.md": b"no"}
    storage, settings = world(files, ["a", "b", "c"])
    report = acquire(storage, settings, "set")
    assert (content(storage, "a"), content(storage, "b")) == (clip(1), clip(2))
    missing = row(storage, "set", "c")
    assert (missing.status, missing.reason) == ("permanent", "not_in_repo")
    assert (report.counts["ok"], report.lost_rows) == (2, 1)


def test_only_the_wanted_members_of_a_zip_travel(world, hub):
    members = {f"train/v{number}.mp4": clip(number % 3) + bytes(4 << 20) for number in range(40)}
    storage, settings = world(
        {"videos.zip": zipped(members)}, ["v3", "v30"], download={"workers": 1}
    )
    acquire(storage, settings, "set")
    assert content(storage, "v3") == members["train/v3.mp4"]
    assert content(storage, "v30") == members["train/v30.mp4"]
    assert sent(hub, "videos.zip") < len(zipped(members)) / 3


def test_a_tar_is_streamed_once_for_all_parts(world, hub, tmp_path):
    members = {f"train/v{number}.mp4": clip(number) for number in range(6)}
    storage, settings = world(
        {"videos.tar.gz": tar_gz(members)},
        [f"v{number}" for number in range(6)],
        parts=3,
        download={"workers": 2},
    )
    for part in ("part0", "part1", "part2"):
        assert acquire(storage, settings, "set", part).coverage == 1.0
    assert [content(storage, f"v{number}") for number in range(6)] == [
        clip(number) for number in range(6)
    ]
    assert sent(hub, "videos.tar.gz") == len(tar_gz(members))


def test_each_run_looks_up_what_the_revision_is_now(world, hub):
    names = [f"v{number}" for number in range(8)]
    storage, settings = world({f"{name}.mp4": clip(1) for name in names}, names, parts=2)
    acquire(storage, settings, "set", "part0")
    commit = hub.publish(REPO, {f"{name}.mp4": clip(2) for name in names})
    acquire(storage, settings, "set", "part1")
    assert {content(storage, name) for name in names} == {clip(1), clip(2)}
    assert storage.read_json("VideoMarathon/catalogue/set/revision.json")["commit"] == commit
    acquire(storage, settings, "set", "part0")
    assert {content(storage, name) for name in names} == {clip(2)}


@pytest.mark.parametrize("form", ["loose", "zip", "tar"])
def test_a_newer_revision_replaces_only_the_files_that_it_changed(form, world, hub):
    def files(**clips: bytes) -> dict[str, bytes]:
        members = {f"{name}.mp4": data for name, data in clips.items()}
        packed = {"loose": members, "zip": {"a.zip": zipped(members)}}
        return packed.get(form) or {"a.tar.gz": tar_gz(members)}

    storage, settings = world(files(a=clip(1), b=clip(2)), ["a", "b", "c"])
    acquire(storage, settings, "set")
    kept = storage.path("VideoMarathon/videos/set/a.mp4")
    before = os.stat(kept).st_mtime_ns
    hub.publish(REPO, {**files(a=clip(1), b=clip(3), c=clip(4)), "new.txt": b"x"})
    report = acquire(storage, settings, "set")
    assert [content(storage, name) for name in "abc"] == [clip(1), clip(3), clip(4)]
    assert report.counts["ok"] == 3
    assert form == "tar" or os.stat(kept).st_mtime_ns == before
    assert storage.read_bytes("damaged/VideoMarathon/videos/set/b.mp4.1") == clip(2)
    asked = len(hub.log)
    assert acquire(storage, settings, "set").counts["fetched"] == 0
    assert len(hub.log) <= asked + 2


def test_a_file_that_a_newer_revision_lacks_or_breaks_stays(world, hub):
    storage, settings = world({"a.mp4": clip(1), "b.mp4": clip(2)}, ["a", "b"])
    acquire(storage, settings, "set")
    hub.publish(REPO, {"a.mp4": clip(3)[:20_000]})
    assert acquire(storage, settings, "set").counts["ok"] == 2
    assert (content(storage, "a"), content(storage, "b")) == (clip(1), clip(2))


def test_what_the_repository_lacked_is_found_when_the_pattern_or_the_revision_changes(world, hub):
    storage, settings = world(
        {"a.mp4": clip(1), "extra/b.zip": zipped({"b.mp4": clip(2)})}, ["a", "b", "c"]
    )
    narrow = settings.sources["set"].model_copy(update={"archives": ["none*"]})
    few = settings.model_copy(update={"sources": {"set": narrow}})
    acquire(storage, few, "set")
    assert {row(storage, "set", name).reason for name in "bc"} == {"not_in_repo"}
    asked = len(hub.log)
    acquire(storage, few, "set")
    assert len(hub.log) == asked + 1  # the revision, and no listing: nothing has changed
    assert acquire(storage, settings, "set").counts["ok"] == 2
    hub.publish(
        REPO, {"a.mp4": clip(1), "extra/b.zip": zipped({"b.mp4": clip(2)}), "c.mp4": clip(3)}
    )
    assert acquire(storage, settings, "set").counts["ok"] == 3


def test_two_different_files_of_one_name_are_not_guessed_between(world, hub):
    storage, settings = world(
        {"x/a.mp4": clip(1), "y/a.mp4": clip(2), "z/b.mp4": clip(3)}, ["a", "x/a"]
    )
    acquire(storage, settings, "set")
    assert row(storage, "set", "a").reason == "ambiguous"
    assert row(storage, "set", "x/a").status == "ok"


def test_two_equal_files_of_one_name_are_one_video(world, hub):
    storage, settings = world({"x/a.mp4": clip(1), "y/a.mp4": clip(1)}, ["a"])
    assert acquire(storage, settings, "set").counts["ok"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault.answer(429, headers={"Retry-After": "0"})], id="throttled"),
        pytest.param([Fault.reset(2000)], id="reset"),
        pytest.param([Fault.truncate(2000)], id="cut off"),
        pytest.param([Fault.lie(300)], id="length too large"),
    ],
)
@pytest.mark.parametrize("form", ["loose", "zip", "tar"])
def test_a_passing_fault_of_the_hub_is_survived(form, faults, world, hub):
    files = {
        "loose": {"a.mp4": clip(1)},
        "zip": {"x.zip": zipped({"a.mp4": clip(1)})},
        "tar": {"x.tar.gz": tar_gz({"a.mp4": clip(1)})},
    }[form]
    storage, settings = world(files, ["a"])
    hub.faults = in_turn({r"GET /datasets/.*/resolve/": faults})
    assert acquire(storage, settings, "set").counts["ok"] == 1, row(storage, "set", "a")
    assert content(storage, "a") == clip(1)


def test_wrong_bytes_are_noticed_by_their_hash(world, hub):
    """The hub promises one hash and, at first, serves other bytes of the same length."""
    storage, settings = world({"a.mp4": clip(1)}, ["a"])
    other = bytes(len(clip(1)))
    hub.faults = in_turn({r"GET /datasets/.*/resolve/": [Fault.answer(200, other)]})
    assert acquire(storage, settings, "set").counts["ok"] == 1
    assert content(storage, "a") == clip(1)


def test_bytes_that_stay_wrong_are_never_published(world, hub):
    storage, settings = world({"a.mp4": clip(1)}, ["a"])
    hub.faults = lambda r: (
        Fault.answer(200, bytes(len(clip(1))))
        if "GET" in r.method and "resolve" in r.path
        else None
    )
    acquire(storage, settings, "set")
    assert (row(storage, "set", "a").status, row(storage, "set", "a").reason) == (
        "exhausted",
        "hash_mismatch",
    )
    assert not storage.list("VideoMarathon/videos")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_an_archive_that_was_cut_off_gives_nothing(share, world, hub):
    """The archive in the repository itself is cut, so its hash is right and only its end tells."""
    whole = tar_gz({"a.mp4": clip(1), "b.mp4": clip(2), "c.mp4": clip(3)})
    storage, settings = world({"x.tar.gz": whole[: int(len(whole) * share)]}, ["a", "b", "c"])
    acquire(storage, settings, "set")
    found = row(storage, "set", "a")
    assert (found.status, found.reason) == ("permanent", "archive_damaged")
    assert not storage.list("VideoMarathon/videos")


@pytest.mark.slow
@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("pack", [tar_gz, zipped])
def test_an_archive_with_a_member_that_would_escape_is_refused(pack, name, world, hub, tmp_path):
    storage, settings = world(
        {"x.zip" if pack is zipped else "x.tar.gz": pack({"a.mp4": clip(1), name: clip(2)})}, ["a"]
    )
    acquire(storage, settings, "set")
    assert row(storage, "set", "a").reason == "hostile_archive"
    assert "escaped" in (row(storage, "set", "a").message or "")
    assert not [found for found in files_below(tmp_path) if "escaped" in found]


def test_links_and_devices_are_never_made(world, hub, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip(9))
    archive = tar_gz(
        {"a.mp4": clip(1)},
        link("b.mp4", str(secret)),
        link("c.mp4", "a.mp4", tarfile.LNKTYPE),
        link("d.mp4", "", tarfile.CHRTYPE),
        link("e.mp4", "", tarfile.FIFOTYPE),
    )
    storage, settings = world(
        {"x.tar.gz": archive, "y.zip": zip_with_link("f.mp4", str(secret))}, list("abcdef")
    )
    report = acquire(storage, settings, "set")
    assert report.counts["ok"] == 1
    assert {row(storage, "set", name).reason for name in "bcdef"} == {"not_in_repo"}
    assert not [path for path in (tmp_path / "deployment").rglob("*") if path.is_symlink()]


FLAT = bytes(80 << 20)
BOMBS = {
    "zip": ("x.zip", lambda: zipped({"a.mp4": FLAT}, zipfile.ZIP_DEFLATED)),
    "tar": ("x.tar.gz", lambda: tar_gz({"a.mp4": FLAT})),
    "zip with a false size": ("x.zip", lambda: zip_that_understates("a.mp4", bytes(1 << 20), 1000)),
    "tar with a header of a terabyte": ("x.tar.gz", lambda: tar_with_huge_header(1 << 40)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_do_not_go_off(name, world, hub, tmp_path):
    path, make = BOMBS[name]
    storage, settings = world({path: make()}, ["a"])
    acquire(storage, settings, "set")
    found = row(storage, "set", "a")
    assert found.status == "permanent"
    assert found.reason == ("archive_damaged" if "false" in name else "archive_bomb")
    assert not storage.list("VideoMarathon/videos")
    assert (
        sum(path.stat().st_size for path in (tmp_path / "deployment").rglob("*") if path.is_file())
        < 80 << 20
    )


@pytest.mark.slow
def test_an_archive_that_the_hub_cannot_deliver_is_tried_again_by_the_next_run(world, hub):
    storage, settings = world(
        {"x.tar.gz": tar_gz({"a.mp4": clip(1)})}, ["a"], download={"attempts": 1}
    )
    hub.faults = lambda r: (
        Fault.truncate(2000) if r.method == "GET" and "resolve" in r.path else None
    )
    acquire(storage, settings, "set")
    assert row(storage, "set", "a").status == "transient"
    hub.faults = None
    assert acquire(storage, settings, "set").counts["ok"] == 1


def test_a_listing_that_names_paths_outside_of_the_repository_is_not_trusted(world, hub, tmp_path):
    storage, settings = world({"a.mp4": clip(1), "../../escaped.mp4": clip(2)}, ["a"])
    with pytest.raises(OperatorError, match="outside of the repository"):
        acquire(storage, settings, "set")
    assert not [found for found in files_below(tmp_path) if "escaped" in found]


def test_a_renamed_repository_is_followed(world, hub):
    storage, settings = world({"a.mp4": clip(1)}, ["a"])
    hub.rename(REPO, "someone/renamed")
    assert acquire(storage, settings, "set").counts["ok"] == 1


def test_a_gated_repository_asks_the_operator_for_a_token(world, hub, monkeypatch):
    storage, settings = world({"a.mp4": clip(1)}, ["a"], token="hf_secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(AccessError, match="HF_TOKEN"):
        acquire(storage, settings, "set")
    assert row(storage, "set", "a").status == "pending"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert acquire(storage, settings, "set").counts["ok"] == 1
    journal = (Path(storage.root) / "VideoMarathon/catalogue/set").rglob("*")
    assert not [path for path in journal if b"hf_secret" in path.read_bytes()]


@pytest.mark.parametrize(
    ("repo", "word"), [("someone/else", "someone/else"), ("not a repo", "not a repo")]
)
def test_a_wrong_repository_is_the_operators_to_correct(repo, word, world, hub):
    storage, settings = world({"a.mp4": clip(1)}, ["a"], repo=repo)
    with pytest.raises(OperatorError, match=word):
        acquire(storage, settings, "set")


def test_patterns_that_match_nothing_are_named(world, hub):
    storage, settings = world({"a.txt": b"text"}, ["a"])
    with pytest.raises(OperatorError, match=r"no video and no archive matches .*\*\.zip"):
        acquire(storage, settings, "set")


def test_damage_that_the_repository_itself_holds_is_final_and_set_aside(world, hub):
    half = clip(1)[: len(clip(1)) // 2]
    storage, settings = world({"a.mp4": half}, ["a"])
    acquire(storage, settings, "set")
    found = row(storage, "set", "a")
    assert (found.status, found.reason, found.attempts) == ("permanent", "truncated", 1)
    assert storage.read_bytes("VideoMarathon/quarantine/set/a.bin") == half
