"""A host that refuses is counted, let rest and told of, whatever it says. What it says of all
videos becomes none's for good.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from assets.annotations.catalogue import Catalogue
from assets.fetching.errors import TransferError
from assets.fetching.retry import LONGEST_WAIT_S
from assets.sources.base import VideoRow
from assets.sources.url import UrlFetcher
from assets.videos.acquire import acquire_part
from assets.videos.pacing import RateLimiter, RetryQueue
from tests.servers.clips import clip
from tests.servers.faulty import Fault, FaultyMediaServer
from tests.servers.world import acquire, catalogued, make_settings, question, row
from training.formats.hashing import stable_hash

VIDEOS = 40
WORKERS, BREAKER = 4, 10


@pytest.fixture
def world(tmp_path: Path, monkeypatch):
    """Forty videos of one host; `said` is what the host answers to all of them, by turns."""

    class World:
        said: list[TransferError] = []  # noqa: RUF012 - one a test
        asked: Counter[str] = Counter()  # noqa: RUF012
        log: list[str] = []  # noqa: RUF012
        lock = threading.Lock()

        def __init__(self) -> None:
            self.asked, self.log = Counter(), []
            rows = [question(f"v{n:02d}", "web", f"http://h.example/{n}") for n in range(VIDEOS)]
            more = {"workers": WORKERS, "breaker": BREAKER, "attempts": 5, "cooldown_s": 0.005}
            self.settings = make_settings(
                tmp_path / "deployment", {"web": {"kind": "url"}}, rows, download=more
            )
            self.storage = catalogued(self.settings)

        def run(self):
            return acquire_part(self.storage, self.settings, "web", "part0", self.log.append)

        def statuses(self) -> Counter[str]:
            with Catalogue(self.storage, "web", "part0") as catalogue:
                return Counter(row.status for row in catalogue.rows())

    world = World()

    def fetch(self, row, folder, watch):
        with world.lock:
            number = world.asked.total()
            world.asked[row.id] += 1
        raise world.said[number % len(world.said)]

    monkeypatch.setattr(UrlFetcher, "fetch", fetch)
    return world


WORDINGS = {
    "a limit": ("transient", "rate_limited", "rate-limited for up to an hour"),
    "a login": ("needs_operator", "login_required", "Please sign in"),
    "a robot check": ("needs_operator", "bot_check", "confirm you're not a bot"),
    "words nobody knows": ("transient", "unknown", "Nope. Reference 0x1f"),
    "another app": ("permanent", "unavailable", "content is not available on this app"),
    "an odd status": ("permanent", "http_418", "HTTP 418"),
    "a status": ("transient", "forbidden", "HTTP 403"),
    "no formats": ("needs_operator", "no_format", "Requested format is not available"),
    "nobody there": ("transient", "connection", "connection refused"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORDINGS)
def test_a_host_that_refuses_all_is_left_alone_after_a_few_requests(name, world):
    status, reason, text = WORDINGS[name]
    world.said = [TransferError(status, reason, text)]
    report = world.run()
    assert BREAKER <= world.asked.total() < BREAKER + WORKERS
    assert world.statuses()["permanent"] == 0, "said of all, it is true of none"
    assert world.statuses()["pending"] >= VIDEOS - BREAKER - WORKERS
    (host,) = report.refusals
    assert (host["host"], host["given up"]) == ("h.example", True)
    assert host["refusals"] == host["requests"] == world.asked.total()
    assert host["rested_s"] > 0
    assert any("h.example refused 10 times in a row" in note for note in report.notes)
    assert any("nobody asks it for" in line for line in world.log)


def test_a_fault_of_our_own_files_is_no_answer_of_the_host(world, monkeypatch):
    refuse = UrlFetcher.fetch

    def fetch(self, row, folder, watch):
        if int(row.id[1:]) % 4 == 3:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(folder))
        return refuse(self, row, folder, watch)

    monkeypatch.setattr(UrlFetcher, "fetch", fetch)
    world.said = [TransferError(*WORDINGS["another app"])]
    world.run()
    assert BREAKER <= world.asked.total() < BREAKER + WORKERS
    assert world.statuses()["permanent"] == 0


def test_wordings_by_turns_are_refusals_all_the_same(world):
    world.said = [TransferError(*said) for said in WORDINGS.values()]
    world.run()
    assert world.asked.total() < BREAKER + WORKERS
    assert world.statuses()["permanent"] == 0


@pytest.mark.parametrize("reason", ["removed", "private", "http_404", "live", "payment"])
def test_what_a_host_says_of_single_videos_is_asked_once_each_and_stays(reason, world):
    world.said = [TransferError("permanent", reason, "This video has been removed")]
    report = world.run()
    assert set(world.asked.values()) == {1}
    assert world.statuses() == {"permanent": VIDEOS}
    assert report.refusals == []


def test_a_few_videos_that_are_not_available_among_others_stay_so(world):
    # By turns: however late three of four workers are with their answers, no five refusals, half of
    # `BREAKER`, are counted in a row.
    world.said = [
        TransferError("permanent", "unavailable", "Video unavailable"),
        TransferError("permanent", "removed", "removed by the uploader"),
    ]
    world.run()
    assert world.statuses() == {"permanent": VIDEOS}
    assert world.asked.total() == VIDEOS


def test_the_next_run_asks_again_for_what_was_refused(world, monkeypatch):
    world.said = [TransferError("permanent", "unavailable", "not available on this app")]
    world.run()

    def fetch(self, row, folder, watch):
        raise TransferError("permanent", "removed", "gone")

    monkeypatch.setattr(UrlFetcher, "fetch", fetch)
    world.run()
    assert world.statuses() == {"permanent": VIDEOS}


def test_a_resting_host_keeps_no_other_host_waiting(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    for number in range(6):
        (served / f"v{number}.mp4").write_bytes(clip(number % 4))
    with FaultyMediaServer(served) as tired, FaultyMediaServer(served) as fresh:
        tired.faults = lambda request: Fault.answer(429, headers={"Retry-After": "3600"})
        hosts = [f"127.0.0.1:{server.port}" for server in (tired, fresh)]
        rows = [question(f"a{n}", "web", f"{tired.url}/v{n}.mp4") for n in range(6)]
        rows += [question(f"b{n}", "web", f"{fresh.url}/v{n}.mp4") for n in range(6)]
        settings = make_settings(
            tmp_path / "deployment",
            {"web": {"kind": "url", "hosts": hosts}},
            rows,
            download={"workers": 1, "breaker": 1},
        )
        storage = catalogued(settings)
        report = acquire(storage, settings, "web")
        assert report.counts["ok"] == 6
        assert len(tired.log) == 1


def test_rests_grow_and_requests_under_way_make_one_rest():
    limiter, stopped = RateLimiter(0.0, 10.0, 10), threading.Event()
    started = limiter.wait("h", stopped)

    def refuse(at: float, asked: float | None = None) -> float:
        return limiter.record_refusal("h", at, rest=True, asked_s=asked).rest_s

    assert refuse(started) == 10.0
    assert refuse(started) == 0.0, "it was on its way already"
    assert 9.0 < limiter.rest_left("h") <= 10.0
    later = started + 100.0
    assert refuse(later) == 20.0
    assert refuse(later + 1000, asked=500.0) == 500.0
    limiter.record_answer("h")
    assert refuse(later + 5000) == 10.0
    assert refuse(later + 10_000, asked=1e9) == 3600.0


def test_no_folder_of_a_finished_video_stays_behind(tmp_path):
    """As a kill leaves one between the last rename and the removal."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "v0.mp4").write_bytes(clip(0))
    with FaultyMediaServer(served) as media:
        media.faults = lambda request: None if "v0" in request.path else Fault.answer(404)
        rows = [question(name, "web", f"{media.url}/{name}.mp4") for name in ("v0", "v1")]
        settings = make_settings(
            tmp_path / "deployment",
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            rows,
        )
        storage = catalogued(settings)
        incoming = Path(settings.root) / ".tmp-incoming"
        acquire(storage, settings, "web")
        assert os.listdir(incoming) == ["locks"]
        left = incoming / "web" / f"{stable_hash('v0'):016x}"
        foreign = incoming / "web" / "another part's"
        for folder in (left, foreign):
            folder.mkdir(parents=True)
            (folder / "direct.part").write_bytes(b"x")
        acquire(storage, settings, "web")
        assert os.listdir(incoming / "web") == ["another part's"]
        assert row(storage, "web", "v0").status == "ok"


@pytest.mark.parametrize("recorded_in_s", [30 * 24 * 3600.0, LONGEST_WAIT_S / 2, 0.0, -3600.0])
def test_a_time_that_was_recorded_by_a_clock_ahead_is_waited_for_no_longer_than_any_other(
    monkeypatch, recorded_in_s
):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue = RetryQueue([VideoRow("web/v", "web", "v", next_try_at=1.7e9 + recorded_in_s)])
    waits: list[float | None] = []

    def wait(seconds):
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(queue._changed, "wait", wait)
    row = queue.get()
    assert row is not None
    expected = min(max(recorded_in_s, 0.0), LONGEST_WAIT_S)
    assert waits == ([expected] if expected else [])
