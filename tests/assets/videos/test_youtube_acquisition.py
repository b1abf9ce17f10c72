"""YouTube: only its extractor, only an id out of a URL, the wanted format, failures by their real
reason.

The site itself is not asked. Its extractor is replaced by one that offers YouTube's formats, on a
local server.
"""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import yt_dlp
from yt_dlp.networking.common import Response
from yt_dlp.networking.exceptions import HTTPError, TransportError
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, UnsupportedError

from assets.fetching import address_guard, ytdlp
from assets.fetching.address_guard import Guard
from assets.fetching.errors import DiskFullError, MissingToolError, OperatorError, TransferError
from assets.fetching.options import Download
from assets.fetching.ytdlp_errors import classify
from assets.sources.listed import youtube_id
from pipeline.demo.servers import MediaServer
from tests.servers.clips import clip
from tests.servers.world import acquire, catalogued, make_settings, question, row

ID = "a-b_c123456"


@pytest.mark.parametrize(
    "url",
    [
        ID,
        f"https://www.youtube.com/watch?v={ID}",
        f"http://youtube.com/watch?list=PL1&v={ID}&t=9s",
        f"https://m.youtube.com/watch?v={ID}#t=1",
        f"https://youtu.be/{ID}?si=x",
        f"youtu.be/{ID}",
        f"https://www.youtube.com/shorts/{ID}",
        f"https://www.youtube.com/embed/{ID}?start=3",
        f"https://www.youtube-nocookie.com/embed/{ID}",
        f"https://youtube-nocookie.com/embed/{ID}?rel=0",
        f"https://music.youtube.com/watch?v={ID}&list=RD1",
        f"https://www.youtube.com/live/{ID}?feature=share",
        f"https://www.youtube.com/v/{ID}/",
        f"https://m.youtube.com/shorts/{ID}/",
        f"https://WWW.YouTube.com/watch/{ID}",
    ],
)
def test_an_id_is_found_in_every_form_of_url(url):
    assert youtube_id(url) == ID


@pytest.mark.parametrize(
    "url",
    [
        None,
        "",
        "https://www.youtube.com/playlist?list=PL1",
        f"https://www.youtube.com.evil.example/watch?v={ID}",
        f"https://evil.example/?u=https://youtu.be/{ID}",
        f"file://youtu.be/{ID}",
        "https://youtu.be/short",
        f"https://youtu.be/{ID}x",
        "https://www.youtube.com/watch?v=--exec%20rm11",
        f"ytsearch:{ID}",
    ],
)
def test_nothing_else_counts_as_an_id(url):
    assert youtube_id(url) is None


# What yt-dlp says, as written in its sources or seen in its issue threads -> status and reason.
SAID = {
    "Private video. Sign in if you've been granted access to this video": ("permanent", "private"),
    "Video unavailable. This video is private": ("permanent", "private"),
    "Video unavailable. This video has been removed by the uploader": ("permanent", "removed"),
    "Video unavailable. This video is no longer available because the YouTube account associated "
    "with this video has been terminated.": ("permanent", "removed"),
    "Video unavailable": ("permanent", "unavailable"),
    "Video unavailable. This content isn't available, try again later.": (
        "transient",
        "rate_limited",
    ),
    "Sign in to confirm you’re not a bot. Use --cookies-from-browser or --cookies": (
        "needs_operator",
        "bot_check",
    ),
    "Sign in to confirm your age. This video may be inappropriate for some users.": (
        "permanent",
        "age",
    ),
    "Join this channel to get access to members-only content like this video": (
        "permanent",
        "members_only",
    ),
    "The uploader has not made this video available in your country": ("permanent", "geo"),
    "This video is DRM protected": ("permanent", "drm"),
    "This live event will begin in 3 hours.": ("permanent", "live"),
    "Premieres in 5 hours": ("permanent", "live"),
    "This video requires payment to watch": ("permanent", "payment"),
    "Requested format is not available. Use --list-formats": ("needs_operator", "no_format"),
    "unable to download video data: HTTP Error 403: Forbidden": ("transient", "forbidden"),
    "HTTP Error 429: Too Many Requests": ("transient", "rate_limited"),
    "Got error: 1048576 bytes read, 7340032 more expected. Giving up after 3 retries": (
        "transient",
        "connection",
    ),
    "Unable to download API page: The read operation timed out": ("transient", "connection"),
    "<urlopen error [Errno -3] Temporary failure in name resolution>": ("transient", "connection"),
    "This live event has ended.": ("permanent", "live"),
    "This live stream has ended. Please sign in to watch the recording": ("permanent", "live"),
    "Video unavailable. Playback on other websites has been disabled by the video owner": (
        "permanent",
        "playback_disabled",
    ),
    "Playback on other apps has been disabled by its owner. Watch on YouTube": (
        "permanent",
        "playback_disabled",
    ),
    "This video is only available to Music Premium members": ("permanent", "payment"),
    "This is a Premium-only video. Please sign in": ("permanent", "payment"),
    "The current session has been rate-limited by YouTube for up to an hour. It is recommended to "
    "use `-t sleep`": ("transient", "rate_limited"),
    "Please sign in": ("needs_operator", "login_required"),
    "This video requires login. Use --cookies": ("needs_operator", "login_required"),
    "The following content is not available on this app.. Watch on the latest version": (
        "permanent",
        "unavailable",
    ),
    "HTTP Error 400: Bad Request": ("permanent", "http_400"),
    "HTTP Error 405: Method Not Allowed": ("permanent", "http_405"),
    "something that nobody has seen before": ("transient", "unknown"),
}


@pytest.mark.parametrize("text", SAID)
def test_what_yt_dlp_says_is_understood(text):
    failure = classify(DownloadError(f"ERROR: [youtube] {ID}: {text}"))
    assert (failure.status, failure.reason) == SAID[text]


def http_error(status: int, headers: dict[str, str] | None = None) -> HTTPError:
    return HTTPError(Response(fp=None, url="https://h/v", headers=headers or {}, status=status))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ("permanent", "http_400")),
        (402, ("permanent", "http_402")),
        (405, ("permanent", "http_405")),
        (407, ("needs_operator", "proxy_login")),
        (404, ("permanent", "http_404")),
        (410, ("permanent", "http_410")),
        (451, ("permanent", "http_451")),
        (401, ("needs_operator", "login_required")),
        (403, ("transient", "forbidden")),
        (416, ("transient", "range_refused")),
        (429, ("transient", "rate_limited")),
        (500, ("transient", "server_error")),
        (503, ("transient", "server_error")),
    ],
)
@pytest.mark.parametrize("wrap", ["bare", "extractor", "download"])
def test_a_status_is_found_wherever_yt_dlp_hides_it(status, expected, wrap):
    error: Exception = http_error(status, {"Retry-After": "7"})
    if wrap != "bare":
        error = ExtractorError("Unable to download webpage", cause=error)
    if wrap == "download":
        error = DownloadError("ERROR: it failed", (type(error), error, None))
    failure = classify(error)
    assert (failure.status, failure.reason) == expected
    if status == 429:
        assert failure.retry_after == 7.0


def test_types_count_before_texts():
    assert classify(GeoRestrictedError("no")).reason == "geo"
    assert classify(UnsupportedError("http://h")).reason == "unsupported"
    assert classify(
        DownloadError("x", (None, TransportError(cause=OSError(errno.ECONNRESET, "reset")), None))
    ).status == ("transient")


def test_a_full_disk_is_never_a_videos_fault():
    with pytest.raises(DiskFullError, match="free some space"):
        classify(
            DownloadError(
                "unable to write data",
                (None, OSError(errno.ENOSPC, "No space left", "/data/x"), None),
            )
        )


def formats(url: str) -> list[dict]:
    """The formats that YouTube offers for an ordinary video."""
    common = {"url": url, "protocol": "https"}
    silent = {**common, "acodec": "none", "ext": "mp4"}
    return [
        {**common, "format_id": "140", "vcodec": "none", "acodec": "mp4a.40.2", "ext": "m4a"},
        {**silent, "format_id": "160", "vcodec": "avc1.4d400c", "height": 144, "width": 256},
        {**silent, "format_id": "133", "vcodec": "avc1.4d4015", "height": 240, "width": 426},
        {**silent, "format_id": "134", "vcodec": "avc1.4d401e", "height": 360, "width": 640},
        {**silent, "format_id": "396", "vcodec": "av01.0.01M.08", "height": 360, "width": 640},
        {**silent, "format_id": "243", "vcodec": "vp9", "height": 360, "width": 640, "ext": "webm"},
        {**silent, "format_id": "136", "vcodec": "avc1.4d401f", "height": 720, "width": 1280},
        {
            **common,
            "format_id": "18",
            "vcodec": "avc1.42001E",
            "acodec": "mp4a",
            "height": 360,
            "width": 640,
            "ext": "mp4",
        },
    ]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A local YouTube: its extractor gives `site.formats` (or raises `site.error`) for any id."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "v.mp4").write_bytes(clip(1))
    with MediaServer(served) as media:

        class Site:
            offered = formats(f"{media.url}/v.mp4")
            error: Exception | None = None
            asked: list[str] = []  # noqa: RUF012 - one object a test
            more: dict = {"duration": 8}  # noqa: RUF012

        site = Site()

        def extract(self, url):
            site.asked.append(url)
            if site.error:
                raise site.error
            return {"id": ID, "title": "t", "formats": site.offered, **site.more}

        monkeypatch.setattr(yt_dlp.extractor.youtube.YoutubeIE, "_real_extract", extract)
        monkeypatch.setattr(ytdlp, "preflight", lambda log: None)
        monkeypatch.setattr(address_guard, "Guard", lambda: Guard([f"127.0.0.1:{media.port}"]))
        yield site


@pytest.fixture
def panda(tmp_path, site):
    def build(url=f"https://youtu.be/{ID}?list=PL1", accept=True, rows=None, **download):
        settings = make_settings(
            tmp_path / "deployment",
            {"panda": {"kind": "youtube", "accept_terms": accept}},
            rows or [question("clip one.mp4", "panda", url)],
            download=download,
        )
        return catalogued(settings), settings

    return build


def without(*ids: str):
    return lambda offered: [one for one in offered if one["format_id"] not in ids]


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        (lambda offered: offered, "134"),
        (without("134"), "18"),
        (without("134", "18"), "133"),
        (without("134", "18", "133", "160"), "136"),
        (without("134", "18", "133", "160", "136"), "243"),
        (
            lambda offered: [
                {**one, "width": one.get("height"), "height": one.get("width")} for one in offered
            ],
            "134",
        ),
        (
            lambda offered: [
                {**one, "height": one["height"] * 3 // 4} if "height" in one else one
                for one in offered
            ],
            "134",
        ),
    ],
    ids=[
        "usual",
        "no silent 360p",
        "only lower and higher",
        "only higher",
        "no H.264",
        "portrait",
        "very wide",
    ],
)
def test_360p_h264_without_sound_is_preferred(change, chosen, panda, site):
    site.offered = change(site.offered)
    storage, settings = panda()
    acquire(storage, settings, "panda")
    found = row(storage, "panda", "clip one")
    assert found.format.split("+")[0] == chosen
    assert found.status == "ok"
    assert found.tool.startswith("yt-dlp 20")
    assert site.asked == [f"https://www.youtube.com/watch?v={ID}"]


def test_only_an_id_ever_reaches_yt_dlp(panda, site):
    storage, settings = panda(
        url=f"https://www.youtube.com/watch?v={ID}&list=PLx&t=5&ignored=--exec"
    )
    acquire(storage, settings, "panda")
    assert site.asked == [f"https://www.youtube.com/watch?v={ID}"]


@pytest.mark.parametrize(
    "url",
    ["https://vimeo.com/1", "https://www.youtube.com/playlist?list=PL1", "file:///etc/passwd"],
)
def test_urls_of_other_sites_are_not_fetched(url, panda, site):
    storage, settings = panda(url=url)
    acquire(storage, settings, "panda")
    assert row(storage, "panda", "clip one").reason == "bad_url"
    assert site.asked == []


def test_other_extractors_are_locked_out(tmp_path):
    for url in (
        "https://vimeo.com/76979871",
        "ytsearch:cats",
        "https://www.youtube.com/playlist?list=PL1",
    ):
        with pytest.raises(TransferError) as error:
            ytdlp.download(
                url,
                tmp_path / "x",
                extractors=("youtube",),
                guard=Guard(),
                limits=Download(),
                watch=lambda n: None,
            )
        assert (error.value.status, error.value.reason) == ("permanent", "unsupported"), url


def test_the_terms_are_the_operators_decision(panda, site):
    storage, settings = panda(accept=False)
    with pytest.raises(OperatorError, match="accept_terms"):
        acquire(storage, settings, "panda")
    assert site.asked == []


@pytest.mark.parametrize("more", [{"is_live": True}, {"duration": 4000}])
def test_live_and_overlong_videos_are_not_wanted(more, panda, site):
    site.more = more
    storage, settings = panda(max_duration_s=3900)
    acquire(storage, settings, "panda")
    assert row(storage, "panda", "clip one").reason in ("not_wanted", "live")


def test_a_file_shorter_than_the_site_says_is_refused(panda, site):
    site.more = {"duration": 600}
    storage, settings = panda()
    acquire(storage, settings, "panda")
    assert row(storage, "panda", "clip one").reason == "duration_differs"


def test_a_run_of_bot_checks_ends_the_run_and_leaves_the_rest_pending(panda, site):
    site.error = ExtractorError("Sign in to confirm you’re not a bot", expected=True)
    rows = [question(f"v{n:02d}", "panda", f"https://youtu.be/{n:011d}") for n in range(12)]
    storage, settings = panda(rows=rows, breaker=4, workers=1, cooldown_s=0.0)
    report = acquire(storage, settings, "panda")
    assert report.counts["needs_operator"] == 4
    assert report.counts["pending"] == 8
    assert any("YTDLP_COOKIES" in note for note in report.notes)
    site.error = None
    assert acquire(storage, settings, "panda").counts["ok"] == 12


def test_permanent_reasons_are_tried_again_only_when_asked_for(panda, site):
    site.error = GeoRestrictedError(
        "The uploader has not made this video available in your country"
    )
    storage, settings = panda()
    acquire(storage, settings, "panda")
    asked = len(site.asked)
    site.error = None
    acquire(storage, settings, "panda")
    assert len(site.asked) == asked
    again = settings.model_copy(
        update={"download": settings.download.model_copy(update={"retry": ["geo"]})}
    )
    assert acquire(storage, again, "panda").counts["ok"] == 1


def test_what_asked_for_an_account_is_tried_again_once_cookies_are_set(
    panda, site, tmp_path, monkeypatch
):
    site.error = ExtractorError("Sign in to confirm your age", expected=True)
    storage, settings = panda()
    acquire(storage, settings, "panda")
    assert row(storage, "panda", "clip one").reason == "age"
    asked = len(site.asked)
    site.error = None
    acquire(storage, settings, "panda")
    assert len(site.asked) == asked, "nothing has changed"
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t0\tSID\tsecret\n")
    monkeypatch.setenv("YTDLP_COOKIES", str(cookies))
    assert acquire(storage, settings, "panda").counts["ok"] == 1
    for name in storage.list("VideoMarathon"):
        assert b"secret" not in storage.read_bytes(name), name


def test_cookies_are_copied_for_each_download_and_never_changed(panda, site, tmp_path, monkeypatch):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(
        "# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t4102444800\tSID\tsecret\n"
    )
    content, mode = cookies.read_bytes(), cookies.stat().st_mtime_ns
    monkeypatch.setenv("YTDLP_COOKIES", str(cookies))
    storage, settings = panda()
    assert acquire(storage, settings, "panda").counts["ok"] == 1
    assert (cookies.read_bytes(), cookies.stat().st_mtime_ns) == (content, mode)
    site.error = ExtractorError("Video unavailable", expected=True)
    another = question("another", "panda", f"https://youtu.be/{ID}")
    acquire(*panda(rows=[another]), "panda", "part1")
    left = [p for p in Path(storage.root).rglob("*") if p.is_file() and b"secret" in p.read_bytes()]
    assert left == []
    monkeypatch.setenv("YTDLP_COOKIES", str(tmp_path / "nowhere"))
    with pytest.raises(MissingToolError, match="nowhere"):
        acquire(storage, settings, "panda", "part1")


def test_the_preflight_names_the_missing_runtime(monkeypatch):
    def having(**runtimes):
        fake = {name: SimpleNamespace(info=info) for name, info in runtimes.items()}
        monkeypatch.setattr(yt_dlp.YoutubeDL, "_js_runtimes", fake, raising=False)

    having(deno=None, node=None)
    with pytest.raises(MissingToolError, match=r"JavaScript runtime.*none was found: install Deno"):
        ytdlp.preflight(lambda line: None)
    having(deno=None, node=SimpleNamespace(version="16.0.0", supported=False))
    with pytest.raises(MissingToolError, match=r"node 16\.0\.0 is too old"):
        ytdlp.preflight(lambda line: None)
    having(deno=SimpleNamespace(version="2.5.0", supported=True))
    lines: list[str] = []
    monkeypatch.setattr(ytdlp.shutil, "which", lambda name: None)
    ytdlp.preflight(lines.append)
    assert "deno 2.5.0" in lines[0]
    assert "ffmpeg was not found" in lines[1]
    monkeypatch.setattr(ytdlp, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="yt-dlp-ejs"):
        ytdlp.preflight(lambda line: None)


def test_a_download_never_takes_options_from_data():
    options = ytdlp._options(Path("/x"), ("youtube",), Download(), lambda n: None)
    assert options["outtmpl"] == {"default": "video.%(format_id)s.%(ext)s"}
    for dangerous in (
        "postprocessors",
        "exec_cmd",
        "external_downloader_args",
        "enable_file_urls",
        "http_headers",
    ):
        assert dangerous not in options
