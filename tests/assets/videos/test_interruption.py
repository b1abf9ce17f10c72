"""A run that is killed loses nothing that was finished; the next one goes on where it stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from assets.annotations.catalogue import Catalogue
from assets.annotations.journal import journal_path
from tests.servers.clips import clip
from tests.servers.faulty import Fault, FaultyMediaServer
from tests.servers.world import acquire, catalogued, make_settings, question

VIDEOS = 40
WORKER = """
import sys
from pathlib import Path
from assets.deployment.settings import Settings
from assets.videos.acquire import acquire_part
from training.formats.storage import Storage
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
acquire_part(Storage(settings.root), settings, "web", "part0", print)
"""


def tree(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


@pytest.mark.slow
def test_killed_three_times_in_forty_downloads(tmp_path):
    """Padding makes the files large enough to be caught in the middle: a box of type `free` holds
    nothing.
    """
    served = tmp_path / "served"
    served.mkdir()
    for number in range(VIDEOS):
        padding = (2 << 20) + (number % 5 << 20) + number
        box = (
            padding.to_bytes(4, "big") + b"free" + number.to_bytes(4, "big") * ((padding - 8) // 4)
        )
        (served / f"v{number:02d}.mp4").write_bytes(
            clip(number % 4) + box.ljust(padding, b"x")[:padding]
        )
    with FaultyMediaServer(served) as media:
        media.faults = lambda request: Fault.throttle(4 << 20)
        settings = make_settings(
            tmp_path / "killed",
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            [question(f"v{n:02d}", "web", f"{media.url}/v{n:02d}.mp4") for n in range(VIDEOS)],
            download={"workers": 4},
        )
        storage = catalogued(settings)
        config = tmp_path / "settings.json"
        config.write_text(settings.model_dump_json())
        final = Path(storage.path("VideoMarathon/videos/web"))
        finished: set[str] = set()
        done_before: list[set[str]] = []
        marks = []
        for goal in (8, 18, 28):
            worker = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(config)],
                cwd=Path(__file__).parents[3],
                stdout=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 120
            while len(list(final.glob("*.mp4"))) < goal and time.monotonic() < deadline:
                assert worker.poll() is None, "the worker ended before it was killed"
                time.sleep(0.02)
            time.sleep(0.3)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            time.sleep(0.5)
            finished = {path.stem for path in final.glob("*.mp4")}
            assert goal <= len(finished) < VIDEOS
            done_before.append(finished)
            marks.append(len(media.log))
        report = acquire(storage, settings, "web")
        assert report.counts["ok"] == VIDEOS

        for mark, done in zip(marks, done_before, strict=True):
            asked_later = {exchange.request.path[1:-4] for exchange in media.log[mark:]}
            assert not asked_later & done, "a finished file was fetched again"
        resumed = [exchange for exchange in media.log if exchange.status == 206]
        assert len(resumed) >= 3, "interrupted files go on by range"
        assert all(int(e.request.range.removeprefix("bytes=").rstrip("-")) > 0 for e in resumed)
        downloads = Counter(
            exchange.request.path for exchange in media.log if exchange.status == 200
        )
        assert max(downloads.values()) <= 2 + 3, (
            "one look and one download each, and a look at each new start"
        )

        media.faults = None
        whole = make_settings(
            tmp_path / "whole",
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            [question(f"v{n:02d}", "web", f"{media.url}/v{n:02d}.mp4") for n in range(VIDEOS)],
        )
        uninterrupted = acquire(catalogued(whole), whole, "web")
        assert tree(final) == tree(Path(whole.root) / "VideoMarathon/videos/web")
        assert tree(final) == tree(served)
        assert report.version == uninterrupted.version
        leftovers = [
            p
            for p in (Path(settings.root) / ".tmp-incoming").rglob("*")
            if p.is_file() and p.suffix != ".lock"
        ]
        assert leftovers == []


def test_a_killed_writer_leaves_its_changes_and_its_lock_behind_it(tmp_path):
    """The journal's last line is torn, as a kill in the middle of a write leaves it."""
    settings = make_settings(
        tmp_path,
        {"web": {"kind": "url"}},
        [question(f"v{n}", "web", f"http://h/{n}") for n in range(20)],
    )
    storage = catalogued(settings)
    child = os.fork()
    if child == 0:
        catalogue = Catalogue(storage, "web", "part0")
        catalogue.update("v3", status="permanent", reason="gone")
        catalogue.update("v4", status="ok", size=5)
        with open(journal_path(storage, "web", "part0"), "ab") as journal:
            journal.write(b'{"id": "v5", "status": "o')
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with Catalogue(storage, "web", "part0") as catalogue:
        assert catalogue.counts() == {("permanent", "gone"): 1, ("ok", ""): 1, ("pending", ""): 18}
        assert (
            catalogue.row("v3").reason,
            catalogue.row("v4").size,
            catalogue.row("v5").status,
        ) == (
            "gone",
            5,
            "pending",
        )
        catalogue.update("v5", status="ok")
    with Catalogue(storage, "web", "part0") as catalogue:
        assert catalogue.counts()["ok", ""] == 2
