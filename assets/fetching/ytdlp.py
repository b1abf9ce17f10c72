"""One download through yt-dlp, in a folder of its own, with options that never come from data.

Each download has its own YoutubeDL object. Two that wrote to one output name have produced a
corrupt file that was reported as a success; and when yt-dlp resumes, it does not check that the
server's file is still the same one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import urllib3
import yt_dlp
from yt_dlp.networking._requests import RequestsHTTPAdapter, RequestsRH
from yt_dlp.networking.exceptions import RequestError
from yt_dlp.utils import match_filter_func
from yt_dlp.version import __version__ as YTDLP_VERSION

from assets.fetching.address_guard import BlockedError, Guard, guard_manager
from assets.fetching.direct import Downloaded
from assets.fetching.errors import MissingToolError, TransferError
from assets.fetching.options import COOKIES_VARIABLE, Download
from assets.fetching.resumed_media import ResumedMedia
from assets.fetching.ytdlp_errors import classify

COOKIES = "cookies.txt"
# About 360p in H.264, without sound if there is one; else any size, else any codec. That is enough
# for the model's frames of 384 pixels, and the cheapest to decode. The longer side is looked at,
# because it tells 360p also for pictures wider than 16:9.
WIDE_360P = "[vcodec^=avc1][aspect_ratio>=1][width>=480][width<=860]"
HIGH_360P = "[vcodec^=avc1][aspect_ratio<1][height>=480][height<=860]"
FORMAT = (
    f"bv{WIDE_360P}/bv{HIGH_360P}/b{WIDE_360P}/b{HIGH_360P}/bv[vcodec^=avc1]/b[vcodec^=avc1]/bv/b"
)
FORMAT_ORDER = ["res:360", "vcodec:h264", "ext:mp4", "proto:https"]
BLOCK_BYTES = 1 << 16  # written at a time, which a kill may cost; yt-dlp's own is up to 4 MiB
JS_RUNTIMES: dict[str, dict[str, str]] = {"deno": {}, "node": {}, "bun": {}, "quickjs": {}}


def download(
    url: str,
    folder: Path,
    *,
    extractors: tuple[str, ...],
    guard: Guard,
    limits: Download,
    watch: Callable[[int], None],
) -> Downloaded:
    """Download the video behind `url` into `folder`, which belongs to this video alone.

    Args:
        extractors: names of the only yt-dlp extractors that are used.
        watch: called with the number of bytes that came; what it raises stops the download and
            keeps the partial file for later.

    Raises:
        TransferError, OperatorError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        media = ResumedMedia(folder)
        kind = guarded_downloader(guard, media)
        options = _options(folder, extractors, limits, watch)
        options["progress_hooks"].append(media.bytes_came)
        with kind(options) as downloader:
            info = downloader.extract_info(url, download=True)
    # Extractors raise anything. What is not about this video passes through `classify`.
    except Exception as error:
        failure = classify(error)
        if failure.reason == "range_refused":
            # A partial file that is complete or too long would get the same answer (416) for ever.
            shutil.rmtree(folder, ignore_errors=True)
        raise failure from error
    finally:
        (folder / COOKIES).unlink(missing_ok=True)
    chosen = ((info or {}).get("requested_downloads") or [{}])[0]
    path = chosen.get("filepath")
    if not path or not Path(path).is_file():
        # A rejection by duration or size ends like a success, only without a file.
        raise TransferError(
            "permanent",
            "not_wanted",
            f"live, longer than {limits.max_duration_s:.0f} s or too large",
        )
    duration = (info or {}).get("duration")
    described = "+".join(
        filter(None, (chosen.get("format_id"), chosen.get("vcodec"), chosen.get("resolution")))
    )
    return Downloaded(
        Path(path),
        float(duration) if duration else None,
        described or "unknown",
        f"yt-dlp {YTDLP_VERSION}",
        media.length_stated,
    )


def preflight(log: Callable[[str], None]) -> None:
    """Look for the programs that YouTube needs, before hours of "requested format is not
    available".

    Raises:
        MissingToolError: no JavaScript runtime, or not the scripts that it runs.
    """
    with yt_dlp.YoutubeDL({"quiet": True, "js_runtimes": JS_RUNTIMES}) as downloader:
        found = {
            name: runtime.info
            for name, runtime in downloader._js_runtimes.items()
            if runtime and runtime.info
        }
    usable = [f"{name} {info.version}" for name, info in found.items() if info.supported]
    if not usable:
        too_old = ", ".join(f"{name} {info.version} is too old" for name, info in found.items())
        raise MissingToolError(
            "YouTube needs a JavaScript runtime, and none was found"
            f"{f' ({too_old})' if too_old else ''}: install Deno (https://deno.com) or a recent "
            "Node.js, and put it on the PATH of the process that runs the pipeline"
        )
    if find_spec("yt_dlp_ejs") is None:
        raise MissingToolError(
            "YouTube needs the package yt-dlp-ejs: pip install 'yt-dlp[default]'"
        )
    log(f"yt-dlp {YTDLP_VERSION}, JavaScript by {', '.join(usable)}")
    if shutil.which("ffmpeg") is None:
        log(
            "ffmpeg was not found: videos offered only as HLS stay MPEG-TS files, which works, "
            "all others do not care"
        )


def guarded_downloader(guard: Guard, media: ResumedMedia) -> type[yt_dlp.YoutubeDL]:
    """A class of YoutubeDL whose every connection (page, redirect, media) is checked by `guard`. It
    speaks http(s) only.
    """

    class Adapter(RequestsHTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            guard_manager(self.poolmanager, guard)

        def send(self, request: Any, *args: Any, **options: Any) -> Any:
            send = super().send
            try:
                guard.check_url(request.url)
                return media.send(request, lambda: send(request, *args, **options))
            except (BlockedError, TransferError) as error:
                # yt-dlp passes its own errors on; any other one it would hide.
                raise RequestError(str(error), cause=error) from error

    class GuardedRH(RequestsRH):
        def _create_instance(self, cookiejar: Any, legacy_ssl_support: Any = None) -> Any:
            session = super()._create_instance(cookiejar, legacy_ssl_support)
            adapter = Adapter(
                ssl_context=self._make_sslcontext(legacy_ssl_support=legacy_ssl_support),
                source_address=self.source_address,
                max_retries=urllib3.util.retry.Retry(False),
            )
            session.adapters.clear()
            session.mount("https://", adapter)
            session.mount("http://", adapter)
            return session

    class Guarded(yt_dlp.YoutubeDL):
        def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
            return super().build_request_director([GuardedRH], preferences)

    return Guarded


class _SilentLog:
    """yt-dlp's messages come back as exceptions; its log lines would only repeat them."""

    def debug(self, message: str) -> None:
        pass

    info = warning = error = debug


def _options(
    folder: Path, extractors: tuple[str, ...], limits: Download, watch: Callable[[int], None]
) -> dict[str, Any]:
    done = 0

    def report_bytes(state: dict[str, Any]) -> None:
        nonlocal done
        so_far = int(state.get("downloaded_bytes") or 0)
        watch(max(so_far - done, 0))
        done = so_far

    options: dict[str, Any] = {
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "logger": _SilentLog(),
        "noplaylist": True,
        "cachedir": False,
        "allowed_extractors": [f"{name}$" for name in extractors],
        "format": FORMAT,
        "format_sort": FORMAT_ORDER,
        "match_filter": match_filter_func(f"!is_live & duration <? {int(limits.max_duration_s)}"),
        "max_filesize": limits.max_bytes,
        "paths": {"home": str(folder)},
        "outtmpl": {"default": "video.%(format_id)s.%(ext)s"},
        "restrictfilenames": True,
        "buffersize": BLOCK_BYTES,
        "noresizebuffer": True,
        "retries": 3,
        "fragment_retries": 3,
        "skip_unavailable_fragments": False,  # a video with holes is no video
        "retry_sleep_functions": {
            "http": lambda n: min(2**n, 30),
            "fragment": lambda n: min(2**n, 30),
        },
        "socket_timeout": limits.timeout_s,
        "sleep_interval_requests": min(limits.min_interval_s, 1.0),
        "progress_hooks": [report_bytes],
        "js_runtimes": JS_RUNTIMES,
        "fixup": "never",
        # No other program may open a connection: ffmpeg as a downloader would not be guarded.
        "external_downloader": {"default": "native"},
        "ffmpeg_location": str(folder / "no-ffmpeg"),
    }
    cookies = os.environ.get(COOKIES_VARIABLE)
    if cookies:
        if not Path(cookies).is_file():
            raise MissingToolError(f"{COOKIES_VARIABLE} names {cookies}, which is not a file")
        private = folder / COOKIES  # yt-dlp rewrites the file, so each download has its own
        shutil.copyfile(cookies, private)
        private.chmod(0o600)
        options["cookiefile"] = str(private)
    return options
