"""Videos behind URLs: every way a server can misbehave ends in a status that says so, and nothing
is fetched twice.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import av
import pytest

from assets.annotations.catalogue import present_videos
from assets.fetching.errors import CoverageError, DiskFullError
from assets.videos.acquire import acquire_part
from tests.servers.clips import clip, sound
from tests.servers.faulty import Fault, FaultyMediaServer, in_turn
from tests.servers.world import acquire, catalogued, files_below, make_settings, question, row


@pytest.fixture
def media(tmp_path: Path):
    served = tmp_path / "served"
    served.mkdir()
    for number in range(4):
        (served / f"v{number}.mp4").write_bytes(clip(number))
    with FaultyMediaServer(served) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path, media: FaultyMediaServer):
    """Catalogues `v0` (or other names) behind the media server's URLs, or others that a test
    gives.
    """

    def build(*names: str, urls: dict[str, str] | None = None, **changes):
        urls = urls or {name: f"{media.url}/{name}.mp4" for name in names or ("v0",)}
        settings = make_settings(
            tmp_path / "deployment",
            {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
            [question(f"{name}.mp4", "web", url) for name, url in urls.items()],
            **changes,
        )
        return catalogued(settings), settings

    return build


def requests_for(media: FaultyMediaServer, name: str) -> int:
    return sum(exchange.request.path == f"/{name}" for exchange in media.log)


def test_videos_get_their_final_name_with_the_bytes_that_were_served(world, media):
    storage, settings = world("v0", "v1", "v2", "v3")
    report = acquire(storage, settings, "web")
    assert (report.coverage, report.counts["ok"], report.lost_rows) == (1.0, 4, 0)
    for number in range(4):
        assert storage.read_bytes(f"VideoMarathon/videos/web/v{number}.mp4") == clip(number)
        found = row(storage, "web", f"v{number}")
        assert found.sha256 == hashlib.sha256(clip(number)).hexdigest()
        assert (found.codec, found.width, found.height, found.duration) == ("h264", 96, 64, 8.0)
    assert report.bytes == sum(len(clip(number)) for number in range(4))
    assert storage.read_json("VideoMarathon/catalogue/web/part0.report.json")["coverage"] == 1.0
    assert [video.video for video in present_videos(storage, settings, "part0")] == [
        f"web/v{n}" for n in range(4)
    ]


def test_a_second_run_asks_the_server_for_nothing(world, media):
    storage, settings = world("v0", "v1")
    first = acquire(storage, settings, "web")
    before = len(media.log)
    again = acquire(storage, settings, "web")
    assert len(media.log) == before
    assert again.version == first.version


STEADY = {
    "gone": (Fault.answer(404), "permanent", "http_404", 1),
    "removed for legal reasons": (Fault.answer(451), "permanent", "http_451", 1),
    "throttled for ever": (
        Fault.answer(429, headers={"Retry-After": "0"}),
        "exhausted",
        "rate_limited",
        3,
    ),
    "broken server": (Fault.answer(500), "exhausted", "server_error", 3),
    "forbidden": (Fault.answer(403), "exhausted", "forbidden", 3),
    "asked in a wrong way": (Fault.answer(400), "permanent", "http_400", 1),
    "another method": (Fault.answer(405), "permanent", "http_405", 1),
    "a proxy that wants a password": (Fault.answer(407), "needs_operator", "proxy_login", 1),
    "a check for robots": (
        Fault.answer(
            200,
            b"<!DOCTYPE html><title>Just a moment...</title>",
            {"Content-Type": "text/html; charset=utf-8"},
        ),
        "needs_operator",
        "bot_check",
        1,
    ),
    "login": (Fault.answer(401), "needs_operator", "login_required", 1),
    "a page instead of a video": (
        Fault.answer(200, b"<html><body>Sign in</body></html>", {"Content-Type": "text/html"}),
        "permanent",
        "unsupported",
        1,
    ),
    "a page that is called video/mp4": (
        Fault.answer(200, b"<html><body>Sign in</body></html>" * 40, {"Content-Type": "video/mp4"}),
        "permanent",
        "not_media",
        1,
    ),
    "a playlist that points at a local file": (
        Fault.answer(
            200,
            b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
            {"Content-Type": "video/mp4"},
        ),
        "permanent",
        None,
        1,
    ),
    "sound alone": (
        Fault.answer(200, sound(), {"Content-Type": "video/mp4"}),
        "permanent",
        "no_video_stream",
        1,
    ),
    "half a file, orderly": (
        Fault.answer(200, clip(0)[: len(clip(0)) // 2], {"Content-Type": "video/mp4"}),
        "exhausted",
        "truncated",
        3,
    ),
    "a tail of zeros": (
        Fault.answer(
            200,
            clip(0)[: len(clip(0)) // 2] + bytes(len(clip(0)) // 2),
            {"Content-Type": "video/mp4"},
        ),
        "exhausted",
        "damaged",
        3,
    ),
    "a length that is too small": (Fault.lie(-len(clip(0)) // 2), "exhausted", "truncated", 3),
}


@pytest.mark.parametrize("name", STEADY)
def test_a_lasting_fault_ends_in_its_status(name, world, media):
    fault, status, reason, tries = STEADY[name]
    media.faults = lambda request: fault
    storage, settings = world("v0")
    report = acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.attempts) == (status, tries), found
    assert reason is None or found.reason == reason, found
    assert found.message
    assert report.lost_rows == 1
    assert not storage.exists("VideoMarathon/videos/web/v0.mp4")


PASSING = {
    "throttled once": [Fault.answer(429, headers={"Retry-After": "0"})],
    "server error": [Fault.answer(503)],
    "reset before the answer": [Fault.reset()],
    "reset inside the body": [Fault.reset(2000)],
    "cut off": [Fault.truncate(2000)],
    "cut off three times": [Fault.truncate(2000), Fault.truncate(5000), Fault.truncate(900)],
    "stall": [Fault.stall(4.0, 2000)],
    "a length that is too large": [Fault.lie(500)],
    "forbidden for a moment": [Fault.answer(403)],
    "ranges not honoured": [Fault.truncate(2000), Fault.ignore_range()],
    "ranges refused": [Fault.truncate(2000), Fault.answer(416)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_survived(name, world, media):
    media.faults = in_turn({r"GET /v0\.mp4": PASSING[name]})
    storage, settings = world("v0")
    assert acquire(storage, settings, "web").counts["ok"] == 1
    assert storage.read_bytes("VideoMarathon/videos/web/v0.mp4") == clip(0)


@pytest.mark.slow
def test_an_interrupted_transfer_goes_on_where_it_stopped(world, media):
    media.faults = in_turn({r"GET /v0\.mp4": [Fault.truncate(200_000), Fault.answer(503)]})
    storage, settings = world("v0", download={"attempts": 1})
    acquire(storage, settings, "web")
    acquire(storage, settings, "web")
    assert row(storage, "web", "v0").status == "ok"
    ranges = [exchange.request.range for exchange in media.log if exchange.status == 206]
    assert ranges == ["bytes=200000-"]
    assert sum(exchange.sent_bytes for exchange in media.log if exchange.status in (200, 206)) == (
        len(clip(0))
    )


@pytest.mark.slow
def test_a_part_is_not_continued_with_another_file(world, media, tmp_path):
    """The server's file is exchanged for one of the same name and about the same size while a part
    of the old one lies there; joining the two would give a file that is neither."""
    media.faults = in_turn({r"GET /v0\.mp4": [Fault.truncate(200_000), Fault.answer(503)]})
    storage, settings = world("v0", download={"attempts": 1})
    acquire(storage, settings, "web")
    assert [part.stat().st_size for part in Path(storage.root).rglob("direct.part")] == [200_000]
    (media.folder / "v0.mp4").write_bytes(clip(9))
    acquire(storage, settings, "web")
    assert storage.read_bytes("VideoMarathon/videos/web/v0.mp4") == clip(9)


LOGIN_PAGES = {
    "its path says so": ("/accounts/login", b"<html><body>Hello</body></html>"),
    "its form says so": ("/welcome", b"<html><form><input name=p type='password'></form></html>"),
    "single sign-on": ("/sso/start", b"<!doctype html><p>choose an account</p>"),
}


@pytest.mark.parametrize("name", LOGIN_PAGES)
def test_a_login_page_reached_by_a_redirect_is_called_that(name, world, media):
    place, page = LOGIN_PAGES[name]
    media.faults = lambda request: (
        Fault.redirect(f"{place}?next=/v0.mp4&ticket=secret")
        if request.path == "/v0.mp4"
        else Fault.answer(200, page)
    )
    storage, settings = world("v0")
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.reason, found.attempts) == ("needs_operator", "login_page", 1)
    assert "YTDLP_COOKIES" in found.message
    assert "secret" not in found.message
    assert len(media.log) == 2


def test_retry_after_pauses_the_whole_host(world, media):
    media.faults = in_turn({r"GET /v0\.mp4": [Fault.answer(429, headers={"Retry-After": "1"})]})
    storage, settings = world("v0", "v1", download={"workers": 1})
    report = acquire(storage, settings, "web")
    assert report.counts["ok"] == 2
    assert report.seconds >= 1.0


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/v0.mp4",
        "http://localhost/v0.mp4",
        "http://[::ffff:10.0.0.1]/v0.mp4",
        "http://0x7f000001/v0.mp4",
        "http://127.0.0.1:1/v0.mp4",
    ],
)
def test_private_addresses_are_not_contacted(url, world):
    storage, settings = world(urls={"v0": url})
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.reason) == ("permanent", "blocked"), found


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/v.mp4",
        "http://a]b/v.mp4",
        "http://h:99999/v.mp4",
        "http:///v.mp4",
        "http://a..b/v",
    ],
)
def test_a_malformed_url_costs_its_own_video_alone(url, world, media):
    storage, settings = world(urls={"v0": f"{media.url}/v0.mp4", "odd": url})
    assert acquire(storage, settings, "web").counts["ok"] == 1
    found = row(storage, "web", "odd")
    assert (found.status, found.reason) == ("permanent", "bad_url"), found


def test_passwords_and_signatures_of_urls_are_told_nowhere(world, media):
    media.faults = lambda request: Fault.reset()
    address = f"user:SECRET@127.0.0.1:{media.port}"
    names = [f"v{number}" for number in range(6)]
    urls = {name: f"http://{address}/{name}.mp4?sig=SECRET" for name in names}
    storage, settings = world(urls=urls)
    told: list[str] = []
    report = acquire_part(storage, settings, "web", "part0", told.append)
    assert report.refusals
    assert all(row(storage, "web", name).message for name in names)
    told += [repr(report), *(row(storage, "web", name).message for name in names)]
    assert not [line for line in told if "SECRET" in line]
    media.faults = None
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert found.status == "ok"
    assert "SECRET" not in found.location


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "data:video/mp4;base64,AAAA", "ftp://host/v.mp4", "ytsearch:x"]
)
def test_only_http_is_fetched(url, world):
    storage, settings = world(urls={"v0": url})
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.reason) == ("permanent", "bad_url")


def test_a_host_that_was_blocked_is_asked_once_the_settings_allow_it(world, media):
    storage, settings = world("v0")
    web = settings.sources["web"].model_copy(update={"hosts": []})
    closed = settings.model_copy(update={"sources": {"web": web}})
    acquire(storage, closed, "web")
    assert row(storage, "web", "v0").reason == "blocked"
    acquire(storage, closed, "web")
    assert media.log == []
    assert acquire(storage, settings, "web").counts["ok"] == 1


def test_limits_that_refused_a_video_decide_again_when_they_change(world, media):
    storage, settings = world("v0", download={"max_duration_s": 2.0})
    acquire(storage, settings, "web")
    refused = row(storage, "web", "v0")
    assert (refused.status, refused.reason) in {
        ("permanent", "too_long"),
        ("permanent", "not_wanted"),
    }
    asked = len(media.log)
    polite = settings.download.model_copy(update={"min_interval_s": 0.001})
    acquire(storage, settings.model_copy(update={"download": polite}), "web")
    assert len(media.log) == asked, "this setting did not decide it"
    longer = settings.download.model_copy(update={"max_duration_s": 100.0})
    again = settings.model_copy(update={"download": longer})
    assert acquire(storage, again, "web").counts["ok"] == 1


def test_a_redirect_inwards_is_not_followed(world, media, tmp_path):
    with FaultyMediaServer(media.folder) as inner:
        media.faults = lambda request: Fault.redirect(f"{inner.url}/v1.mp4")
        storage, settings = world("v0")
        acquire(storage, settings, "web")
        assert row(storage, "web", "v0").reason == "blocked"
        assert inner.log == []


def test_a_video_that_a_page_names_passes_the_same_gate(world, media):
    """The page is on an allowed host; the media URL in it is not."""
    with FaultyMediaServer(media.folder) as inner:
        page = f'<html><body><video src="{inner.url}/v1.mp4"></video></body></html>'.encode()
        media.faults = lambda request: Fault.answer(200, page, {"Content-Type": "text/html"})
        storage, settings = world(urls={"v0": f"{media.url}/page"})
        acquire(storage, settings, "web")
        assert row(storage, "web", "v0").reason == "blocked"
        assert inner.log == []


def test_a_video_inside_a_page_is_found(world, media):
    page = f'<html><body><video src="{media.url}/v1.mp4"></video></body></html>'.encode()
    media.faults = lambda r: (
        Fault.answer(200, page, {"Content-Type": "text/html"}) if r.path == "/page" else None
    )
    storage, settings = world(urls={"v0": f"{media.url}/page"})
    acquire(storage, settings, "web")
    assert storage.read_bytes("VideoMarathon/videos/web/v0.mp4") == clip(1)


def test_other_containers_keep_their_own_suffix(world, media):
    (media.folder / "w.mp4").write_bytes(clip(5, suffix=".webm", codec="libvpx"))
    storage, settings = world("w")
    acquire(storage, settings, "web")
    assert row(storage, "web", "w").path == "VideoMarathon/videos/web/w.webm"
    assert storage.read_bytes("VideoMarathon/videos/web/w.webm") == clip(
        5, suffix=".webm", codec="libvpx"
    )


def test_a_duration_other_than_the_stated_one_is_refused_and_set_aside(world, media, tmp_path):
    settings = make_settings(
        tmp_path / "deployment",
        {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
        [question("v0", "web", f"{media.url}/v0.mp4", duration=60)],
    )
    storage = catalogued(settings)
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.reason) == ("permanent", "duration_differs")
    assert storage.read_bytes("VideoMarathon/quarantine/web/v0.bin") == clip(0)


def test_too_large_and_too_long_videos_are_not_wanted(world, media):
    storage, settings = world("v0", download={"max_bytes": 1000})
    acquire(storage, settings, "web")
    assert row(storage, "web", "v0").reason == "not_wanted"
    storage, settings = world("v1", download={"max_duration_s": 1.0})
    acquire(storage, settings, "web")


def test_a_lost_file_is_fetched_again_and_a_found_one_is_adopted(world, media):
    storage, settings = world("v0", "v1")
    acquire(storage, settings, "web")
    storage.remove("VideoMarathon/videos/web/v0.mp4")
    report = acquire(storage, settings, "web")
    assert (report.counts["fetched"], report.counts["ok"]) == (1, 2)
    before = len(media.log)
    for name in storage.list("VideoMarathon/catalogue/web"):
        storage.remove(name)
    storage, settings = world("v0", "v1")
    report = acquire(storage, settings, "web")
    assert (report.counts["adopted"], report.counts["ok"], len(media.log)) == (2, 2, before)


def test_coverage_below_the_threshold_fails_and_names_the_reasons(world, media):
    media.faults = in_turn({r"v1|v2": [Fault.answer(404)] * 2})
    storage, settings = world("v0", "v1", "v2", download={"coverage_threshold": 0.5})
    with pytest.raises(
        CoverageError, match=r"1 of 3 videos .*2 permanent \(http_404\).*2 question-answer pairs"
    ):
        acquire(storage, settings, "web")
    assert (
        storage.read_json("VideoMarathon/catalogue/web/part0.report.json")["counts"]["permanent"]
        == 2
    )


def test_a_full_disk_ends_the_run_and_blames_no_video(world, media):
    storage, settings = world("v0", download={"min_free_bytes": 1 << 60})
    with pytest.raises(DiskFullError, match="min_free_bytes"):
        acquire(storage, settings, "web")
    assert row(storage, "web", "v0").status == "pending"


def test_a_host_that_refuses_everything_costs_a_few_tries_each(world, media):
    media.faults = lambda request: Fault.answer(429, headers={"Retry-After": "0"})
    names = [f"v{number}" for number in range(4)]
    storage, settings = world(*names, download={"workers": 1, "attempts": 2, "cooldown_s": 0.0})
    report = acquire(storage, settings, "web")
    assert report.counts["exhausted"] == 4


def test_nothing_but_the_root_is_written(world, media, tmp_path):
    outside = files_below(tmp_path) - files_below(tmp_path / "deployment" / "root")
    storage, settings = world("v0")
    acquire(storage, settings, "web")
    after = {n for n in files_below(tmp_path) if not n.startswith("deployment/root/")}
    assert after - outside == {"deployment/qa.jsonl"}
    assert not list((tmp_path / "deployment/root/.tmp-incoming").rglob("*.mp4"))


def test_a_list_of_urls_stands_beside_a_question_file(tmp_path, media):
    listing = tmp_path / "urls.csv"
    listing.write_text(f"id,url\nv0,{media.url}/v0.mp4\nv1.mp4,{media.url}/v1.mp4\n")
    settings = make_settings(
        tmp_path / "deployment",
        {"mine": {"kind": "url", "urls": str(listing), "hosts": [f"127.0.0.1:{media.port}"]}},
        [{"video": name, "question": "Q?", "answer": "A"} for name in ("v0", "v1", "v2")],
    )
    storage = catalogued(settings)
    report = acquire(storage, settings, "mine")
    assert report.counts["ok"] == 2
    assert row(storage, "mine", "v2").reason == "no_url"


def fragmented(seed: int) -> bytes:
    """An MP4 as live recorders write it: its header says nothing of the whole."""
    raw = io.BytesIO()
    with (
        av.open(io.BytesIO(clip(seed))) as source,
        av.open(raw, "w", "mp4", options={"movflags": "frag_keyframe+empty_moov"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return raw.getvalue()


def cut(data: bytes, name: str) -> bytes:
    """Half of it, where the container has a border: elsewhere decoders notice."""
    half = len(data) // 2
    if name == "transport stream":
        return data[: half - half % 188]
    return data[: data.index(b"moof", half) - 4]


STREAMED = {
    "transport stream": lambda: clip(0, suffix=".ts"),
    "fragmented MP4": lambda: fragmented(0),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_cut_file_of_which_nobody_states_a_length_is_marked(name, world, media):
    body = cut(STREAMED[name](), name)
    answer = Fault.answer(200, body, {"Content-Type": "video/mp4", "Content-Length": None})
    media.faults = lambda request: answer
    storage, settings = world("v0")
    report = acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.unmeasured) == ("ok", True)
    assert any("1 videos may have been cut" in note for note in report.notes)


@pytest.mark.parametrize("name", STREAMED)
def test_a_cut_file_is_refused_where_the_annotations_state_its_duration(name, tmp_path, media):
    body = cut(STREAMED[name](), name)
    answer = Fault.answer(200, body, {"Content-Type": "video/mp4", "Content-Length": None})
    media.faults = lambda request: answer
    settings = make_settings(
        tmp_path / "deployment",
        {"web": {"kind": "url", "hosts": [f"127.0.0.1:{media.port}"]}},
        [question("v0", "web", f"{media.url}/v0.mp4", duration=8)],
    )
    storage = catalogued(settings)
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.reason, found.attempts) == ("exhausted", "duration_differs", 3)


@pytest.mark.parametrize("name", [*STREAMED, "plain MP4", "WebM"])
def test_a_whole_file_is_not_marked_where_its_length_is_stated(name, world, media):
    """By the server; or, of the last two, by the file itself."""
    stated = name in STREAMED
    body = STREAMED[name]() if stated else clip(0)
    if name == "WebM":
        body = clip(5, suffix=".webm", codec="libvpx")
    headers = {"Content-Type": "video/mp4"} | ({} if stated else {"Content-Length": None})
    media.faults = lambda request: Fault.answer(200, body, headers)
    storage, settings = world("v0")
    acquire(storage, settings, "web")
    found = row(storage, "web", "v0")
    assert (found.status, found.unmeasured) == ("ok", False)
