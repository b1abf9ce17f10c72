"""The catalogue: quick at a hundred thousand videos, one writer, not disturbed by readers."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue, read_catalogue
from assets.annotations.journal import journal_path
from assets.fetching.errors import OperatorError
from assets.sources.base import VideoRow
from tests.servers.world import catalogued, make_settings, question, quiet, row
from training.formats.storage import Storage

LARGE = 100_000
WORK = """
import json, sys, time
from assets.annotations.catalogue import Catalogue, read_catalogue
from assets.sources.base import VideoRow
from tests.memory import peak_mib
from training.formats.storage import Storage
storage, count = Storage(sys.argv[1]), int(sys.argv[2])
imports = peak_mib()
seconds = {}
def timed(name, action):
    start = time.monotonic()
    result = action()
    seconds[name] = time.monotonic() - start
    return result
with Catalogue(storage, "panda", "part0") as catalogue:
    names = [f"{n:011d}" for n in range(count)]
    catalogue.add(
        VideoRow(f"panda/{name}", "panda", name, url=f"https://youtu.be/{name}") for name in names
    )
    for n in range(0, count, 50):
        # Into memory only: a hundred thousand journal lines would each wait for the disk.
        change = {"status": "ok", "sha256": "0" * 64, "size": n, "message": "m" * 200}
        catalogue._changed.setdefault(f"{n:011d}", {}).update(change)
catalogue = timed("start", lambda: Catalogue(storage, "panda", "part0"))
for n in range(0, 2000):
    catalogue.update(f"{n:011d}", status="transient", reason="rate_limited")
assert timed("status", catalogue.counts)["transient", "rate_limited"] == 2000
assert timed("walk", lambda: sum(1 for _ in catalogue.rows(["pending"]))) > 0
timed("compact", catalogue.compact)
timed("read", lambda: read_catalogue(storage, "panda", "part0"))
catalogue.close()
peak = peak_mib()
print(json.dumps({"seconds": seconds, "MiB": peak, "MiB of imports": imports}))
"""


@pytest.mark.slow
def test_a_hundred_thousand_videos_start_answer_and_compact_in_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK, str(tmp_path), str(LARGE)]
    out = subprocess.run(
        command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    ).stdout
    measured = json.loads(out)
    print(measured)
    assert max(measured["seconds"].values()) < 5.0
    assert measured["MiB"] < 500


def test_the_second_writer_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/x", "panda", "x")])
        with pytest.raises(OperatorError, match="being written by process"):
            Catalogue(storage, "panda", "part0")
        with Catalogue(storage, "panda", "part1"):
            pass
        catalogue.update("x", status="ok", size=3)
        assert read_catalogue(storage, "panda", "part0")["status"].to_pylist() == ["ok"]
    with Catalogue(storage, "panda", "part0") as catalogue:
        assert catalogue.row("x").size == 3


def test_a_journal_that_holds_only_a_torn_line_swallows_nothing_that_follows(
    tmp_path: Path,
) -> None:
    storage = Storage(str(tmp_path))
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/x", "panda", "x"), VideoRow("panda/y", "panda", "y")])
    journal = journal_path(storage, "panda", "part0")
    journal.write_bytes(b'{"id": "x", "stat')  # the first kill, in the middle of the first line
    catalogue = Catalogue(storage, "panda", "part0")
    catalogue.update("y", status="ok", size=3)
    catalogue._journal.close()  # the second kill: nothing is compacted
    assert read_catalogue(storage, "panda", "part0")["status"].to_pylist() == ["pending", "ok"]


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    catalogue = Catalogue(storage, "panda", "part0")
    catalogue.add([VideoRow("panda/x", "panda", "x"), VideoRow("panda/y", "panda", "y")])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
        with pytest.raises(OSError):
            catalogue.update("x", status="ok")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    catalogue.update("y", status="ok")
    assert read_catalogue(storage, "panda", "part0")["status"].to_pylist() == ["pending", "ok"]


def test_compaction_keeps_every_field(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    full = VideoRow(
        "panda/x",
        "panda",
        "x",
        "http://u",
        3.5,
        7,
        "ok",
        None,
        None,
        2,
        None,
        "here",
        "p.mp4",
        9,
        "ab",
        3.4,
        30,
        "h264",
        640,
        360,
        False,
        True,
        "134",
        "yt-dlp",
        1.5,
    )
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add([full, VideoRow("panda/a", "panda", "a")])
        catalogue.update("a", status="permanent", reason="gone", message="ü\n")
    with Catalogue(storage, "panda", "part0") as catalogue:
        assert catalogue.row("x") == full
        assert [one.id for one in catalogue.rows()] == ["a", "x"]
        assert catalogue.row("a").message == "ü\n"


def test_an_unknown_field_or_video_is_refused(tmp_path: Path) -> None:
    with Catalogue(Storage(str(tmp_path)), "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/x", "panda", "x")])
        with pytest.raises(KeyError, match="colour"):
            catalogue.update("x", colour="red")
        with pytest.raises(KeyError, match="not in the catalogue"):
            catalogue.update("y", status="ok")


def test_building_again_keeps_states_and_leaves_a_table_in_use_alone(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path, {"panda": {"kind": "youtube"}}, [question("a", "panda"), question("b", "panda")]
    )
    storage = catalogued(settings)
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.update("a", status="permanent", reason="private")
        report = build_catalogue(storage, settings, quiet)
    assert report.counts == {
        "videos": 2,
        "questions": 2,
        "new": 0,
        "corrected": 0,
        "no longer asked for": 0,
        "parts": 1,
    }
    assert row(storage, "panda", "a").reason == "private"


def test_the_versions_of_the_catalogue_follow_what_is_expected_not_what_was_fetched(
    tmp_path: Path,
) -> None:
    settings = make_settings(tmp_path, {"panda": {"kind": "youtube"}}, [question("a", "panda")])
    storage = catalogued(settings)
    before = build_catalogue(storage, settings, quiet).version
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.update("a", status="ok", sha256="1")
    assert build_catalogue(storage, settings, quiet).version == before
