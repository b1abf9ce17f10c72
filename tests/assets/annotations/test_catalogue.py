"""The catalogue: quick at a hundred thousand videos, one writer, not disturbed by readers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from assets.annotations.build import build_catalogue
from assets.annotations.catalogue import Catalogue, read_catalogue, read_snapshot
from assets.annotations.journal import Journal, journal_path, read_journal
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
    start = time.process_time()
    result = action()
    seconds[name] = time.process_time() - start
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
def test_the_work_of_a_table_grows_no_faster_than_its_videos(tmp_path: Path) -> None:
    def measured(count: int) -> dict:
        command = [sys.executable, "-c", WORK, str(tmp_path / str(count)), str(count)]
        out = subprocess.run(
            command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
        ).stdout
        return json.loads(out)

    few, many = measured(LARGE // 10), measured(LARGE)
    for name, seconds in many["seconds"].items():
        # Ten times as long; a hundred times, if each video looked at all others.
        assert seconds < 30 * max(few["seconds"][name], 0.05), name
    assert many["MiB"] < 500


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


STEPS = 28


def _work_and_die(storage: Storage, die_at: int, told: int) -> None:
    """Write a table, tell each change once it counts, and die by SIGKILL at one of the `STEPS` that
    reach the disk.
    """
    left = [die_at]

    def step(*_: object) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    append, begin, writing = Journal.append, Journal.begin, Storage.writing

    def dying_append(journal: Journal, identifier: str, change: dict[str, Any]) -> None:
        step()
        append(journal, identifier, change)
        step()

    def torn_append(journal: Journal, identifier: str, change: dict[str, Any]) -> None:
        if left[0] == 0:
            line = json.dumps({"continues": journal._continues})
            torn = (
                line[:-5]
                if os.fstat(journal._file.fileno()).st_size == 0
                else f'{{"id": "{identifier}", "sta'
            )
            journal._file.write(torn.encode())
        dying_append(journal, identifier, change)

    def dying_begin(journal: Journal, continues: str) -> None:
        step()
        begin(journal, continues)
        step()

    @contextmanager
    def dying_writing(storage: Storage, rel: str) -> Iterator[Path]:
        step()
        with writing(storage, rel) as temporary:
            yield temporary
            step()
        step()

    Journal.append, Journal.begin = torn_append, dying_begin  # type: ignore[method-assign]
    Storage.writing = dying_writing  # type: ignore[method-assign,assignment]
    with Catalogue(storage, "panda", "part0") as catalogue:
        for n in range(4):
            catalogue.update("y", status="ok", size=n)
            catalogue.update("x", attempts=n + 1)
            os.write(told, b".")
            if n == 1:
                catalogue.compact()


@pytest.mark.parametrize("die_at", range(STEPS + 1))
def test_a_kill_at_any_step_loses_nothing_that_was_told(tmp_path: Path, die_at: int) -> None:
    storage = Storage(str(tmp_path))
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add(VideoRow(f"panda/{name}", "panda", name) for name in "xy")
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        _work_and_die(storage, die_at, tell)
        os._exit(0)
    os.close(tell)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (die_at < STEPS)
    with open(told, "rb") as file:
        counted = len(file.read())
    found = read_catalogue(storage, "panda", "part0")["attempts"].to_pylist()[0]
    assert found in (counted, counted + 1)
    with Catalogue(storage, "panda", "part0", quiet) as catalogue:
        assert catalogue.row("x").attempts == found
        catalogue.update("x", attempts=1000)
    assert read_catalogue(storage, "panda", "part0")["attempts"].to_pylist()[0] == 1000


MOMENTS = ["before the first look", "between both looks", "after the second look"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_reader_beside_whom_the_journal_is_emptied_sees_every_change_that_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    storage = Storage(str(tmp_path))
    with Catalogue(storage, "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/x", "panda", "x"), VideoRow("panda/y", "panda", "y")])
        catalogue.update("x", status="ok", size=1)
        real = {"read_journal": read_journal, "read_snapshot": read_snapshot}
        looks: list[str] = []

        def go_on() -> None:
            catalogue.update("x", size=2)
            catalogue.compact()
            catalogue.update("y", status="ok")

        def look(name: str, *arguments: Any) -> Any:
            if MOMENTS.index(moment) == len(looks):
                go_on()
            found = real[name](*arguments)
            looks.append(name)
            if MOMENTS.index(moment) == len(looks) == 2:
                go_on()
            return found

        for name in real:
            monkeypatch.setattr(f"assets.annotations.catalogue.{name}", partial(look, name))
        rows = read_catalogue(storage, "panda", "part0").to_pylist()
        assert len(looks) == 2
        assert rows[0]["status"] == "ok"
        assert rows[0]["size"] == (1 if moment == MOMENTS[2] else 2)


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


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Storage, Storage]:
    """One object store, seen by two machines, with a table of two videos."""
    root = f"memory://{tmp_path.name}"
    first, second = (Storage(root, tmp_path / name) for name in "ab")
    with Catalogue(first, "panda", "part0") as catalogue:
        catalogue.add([VideoRow("panda/v", "panda", "v"), VideoRow("panda/w", "panda", "w")])
    return first, second


def fetch_and_die(storage: Storage, sha256: str) -> None:
    """What a machine does that fetches a video and is killed before anything is compacted."""
    killed = Catalogue(storage, "panda", "part0")
    killed.update("v", status="ok", sha256=sha256)
    killed._journal.close()


def hashes(storage: Storage) -> list[str | None]:
    return read_catalogue(storage, "panda", "part0")["sha256"].to_pylist()


def test_the_journal_of_a_killed_machine_changes_nothing_that_another_one_wrote_since(
    machines: tuple[Storage, Storage],
) -> None:
    first, second = machines
    fetch_and_die(first, "OLD")
    with Catalogue(second, "panda", "part0") as catalogue:
        catalogue.update("v", status="ok", sha256="NEW")
        catalogue.update("w", status="ok", sha256="W")
    assert hashes(first) == hashes(second) == ["NEW", "W"]
    said: list[str] = []
    for _ in range(2):
        with Catalogue(first, "panda", "part0", said.append) as catalogue:
            assert catalogue.row("v").sha256 == "NEW"
    assert hashes(first) == hashes(second) == ["NEW", "W"]
    (line,) = said
    (kept,) = journal_path(first, "panda", "part0").parent.glob("*.jsonl.*")
    assert str(kept) in line
    assert b"OLD" in kept.read_bytes()


def test_the_journal_of_a_killed_machine_counts_where_nobody_wrote_since(
    machines: tuple[Storage, Storage],
) -> None:
    first, second = machines
    fetch_and_die(first, "MINE")
    with Catalogue(second, "panda", "part0"):
        pass
    with Catalogue(first, "panda", "part0"):
        pass
    assert hashes(second) == ["MINE", None]
