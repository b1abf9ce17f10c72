"""A file counts as a video only by what can be demuxed and decoded from it, and no file can take
the process down.
"""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from assets.fetching import probe
from assets.fetching.isolation import ENVIRONMENT
from assets.fetching.options import Download
from assets.fetching.probe import InvalidVideo, ProbePool, check_video
from tests.model.media import tricky
from tests.servers.clips import clip, sound

HEAD = "def probe(path: str, max_pixels: int) -> dict[str, Any]:"


@pytest.fixture(scope="module")
def prober():
    with ProbePool() as one:
        yield one


def verdict(prober: ProbePool, path) -> str:
    try:
        check_video(prober.probe(path), Download(), None)
    except InvalidVideo as error:
        return error.reason
    return "ok"


@pytest.mark.parametrize(
    ("suffix", "codec", "name"),
    [
        (".mp4", "libx264", "h264"),
        (".mkv", "libx264", "h264"),
        (".ts", "libx264", "h264"),
        (".avi", "mpeg4", "mpeg4"),
        (".webm", "libvpx-vp9", "vp9"),
        (".mov", "mpeg4", "mpeg4"),
        (".flv", "flv", "flv"),
    ],
)
def test_every_container_is_known_by_its_content(suffix, codec, name, prober, tmp_path):
    path = tmp_path / "without a suffix"
    path.write_bytes(clip(1, 6.0, suffix, codec))
    facts = prober.probe(path)
    check_video(facts, Download(), 6.0)
    assert (facts.suffix, facts.codec, facts.width, facts.height) == (suffix, name, 96, 64)
    assert facts.duration == pytest.approx(6.0, abs=0.15)
    assert facts.frames == 60


DAMAGE = {
    "empty": (lambda b: b"", "unreadable"),
    "a page": (lambda b: b"<!DOCTYPE html><html></html>" * 50, "not_media"),
    "a playlist": (lambda b: b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n", "hostile_format"),
    "a concat script": (lambda b: b"ffconcat version 1.0\nfile /etc/passwd\n", "hostile_format"),
    "half": (lambda b: b[: len(b) // 2], "truncated"),
    "half a header": (lambda b: b[:100], "unreadable"),
    "header alone": (lambda b: b[:700], "no_frames"),
    "zeros from the middle on": (
        lambda b: b[: len(b) // 2] + bytes(len(b) - len(b) // 2),
        "damaged",
    ),
    "zeros at the end": (lambda b: b[: -len(b) // 10] + bytes(len(b) // 10), "damaged"),
    "noise from the middle on": (
        lambda b: b[: len(b) // 2] + os.urandom(len(b) - len(b) // 2),
        "damaged",
    ),
    "sound alone": (lambda b: sound(), "no_video_stream"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_with_its_reason(name, prober, tmp_path):
    change, reason = DAMAGE[name]
    path = tmp_path / "x.mp4"
    path.write_bytes(change(clip(1)))
    assert verdict(prober, path) == reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "clip", [clip for clip in tricky.CLIPS if "bomb" not in clip.name], ids=lambda clip: clip.name
)
def test_examination_and_use_agree_on_every_tricky_clip(clip, prober, tmp_path):
    """What is refused later is refused at once, for the same reason; what can be used is as long as
    its pictures last, and whoever made it has been told what is wrong with it.
    """
    path = clip.build(tmp_path / clip.name)
    if clip.reason:
        with pytest.raises(InvalidVideo) as refused:
            prober.probe(path)
        assert refused.value.reason == clip.reason
        return
    facts = prober.probe(path)
    assert facts.frames == len(clip.times)
    assert facts.duration >= clip.times[-1]
    if clip.rate:
        assert facts.duration == pytest.approx(len(clip.times) / clip.rate)
    assert facts.damaged == (clip.damaged or clip.truncated or bool(clip.missing or clip.leapt))
    if not facts.damaged:
        check_video(facts, Download(), facts.duration)


@pytest.mark.parametrize(
    ("reason", "another"),
    [
        ("unsupported_codec", False),
        ("unsupported_container", False),
        ("not_media", False),
        ("hostile_format", False),
        ("no_video_stream", False),
        ("too_large", False),
        ("decoder_crash", False),
        ("truncated", True),
        ("damaged", True),
        ("fragments_missing", True),
        ("no_frames", True),
    ],
)
def test_what_a_file_is_at_its_source_is_not_fetched_again(reason, another):
    assert InvalidVideo(reason, "").another_download_may_help is another


def test_fragments_that_were_left_out_are_told_and_many_of_them_are_no_video(prober, tmp_path):
    few = prober.probe(tricky.without_fragments(tmp_path / "few.mp4", 4))
    assert few.damaged
    assert few.losses["missing_fragments"] == 1
    check_video(few, Download(), None)
    many = prober.probe(tricky.without_fragments(tmp_path / "many.mp4", *range(2, 10)))
    assert many.losses["missing_fragments"] == 8
    assert many.missing_s == pytest.approx(8 / 3, abs=0.1)
    with pytest.raises(InvalidVideo, match="8 fragments") as refused:
        check_video(many, Download(), None)
    assert refused.value.reason == "fragments_missing"


def test_the_clock_tells_of_fragments_where_numbers_do_not(prober, tmp_path):
    path = tricky.without_fragments(tmp_path / "x.mp4", *range(2, 9), numbered=False)
    facts = prober.probe(path)
    assert facts.losses["missing_fragments"] == 0
    assert facts.missing_s == pytest.approx(7 / 3, abs=0.1)
    assert facts.damaged


def test_the_examining_process_sees_neither_secrets_nor_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    spy = tmp_path / "probe_worker.py"
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        body = f"""
    import os, socket
    from model.media.refusals import MediaError
    reached = socket.socket().connect_ex(("127.0.0.1", {server.getsockname()[1]})) == 0
    raise MediaError("not_media", "", repr([sorted(os.environ), reached]))
"""
        spy.write_text(probe.WORKER.read_text().replace(HEAD, f"{HEAD}{body}"))
        monkeypatch.setattr(probe, "WORKER", spy)
        with ProbePool() as prober, pytest.raises(InvalidVideo) as told:
            prober.probe(path)
    known, reached = ast.literal_eval(str(told.value))
    assert set(known) <= {*ENVIRONMENT, "PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    if "no network" in isolation_here():
        assert not reached


def isolation_here() -> str:
    """What this system grants, asked by a process of its own."""
    script = "from assets.fetching.isolation import leave_network; print(leave_network())"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout


def test_trailing_bytes_and_one_flaw_in_the_middle_are_no_reason(prober, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1) + bytes(100_000))
    assert verdict(prober, path) == "ok"


def test_a_picture_that_would_fill_the_memory_is_refused(prober, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1))
    with ProbePool(max_pixels=96 * 64 - 1) as strict:
        assert verdict(strict, path) == "too_large"
    assert verdict(prober, path) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "reason"),
    [("import time; time.sleep(60)", "decoder_hang"), ("import os; os.abort()", "decoder_crash")],
)
def test_a_decoder_that_hangs_or_crashes_is_replaced(body, reason, tmp_path, monkeypatch):
    """The worker is replaced by one that misbehaves on one file."""
    real = probe.WORKER.read_text()
    bad = tmp_path / "probe_worker.py"
    bad.write_text(
        real.replace(
            HEAD,
            f"{HEAD}\n    if 'evil' in path:\n        {body}",
        )
    )
    monkeypatch.setattr(probe, "WORKER", bad)
    for name in ("evil.mp4", "good.mp4"):
        (tmp_path / name).write_bytes(clip(1))
    with ProbePool(time_limit_s=3.0) as prober:
        start = time.monotonic()
        assert verdict(prober, tmp_path / "evil.mp4") == reason
        assert time.monotonic() - start < 10
        assert verdict(prober, tmp_path / "good.mp4") == "ok"


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1))
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from assets.fetching.probe import ProbePool
        prober = ProbePool()
        prober.probe(Path({str(path)!r}))
        print(prober._children._unused.get().pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{int(out)}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{int(out)}")


def test_seconds_are_compared_with_what_is_expected(prober, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1))
    facts = prober.probe(path)
    check_video(facts, Download(), 9.9)
    with pytest.raises(InvalidVideo, match=r"8\.0 s, expected 10\.1 s"):
        check_video(facts, Download(), 10.1)
    with pytest.raises(InvalidVideo, match="allowed are 5 s"):
        check_video(facts, Download(max_duration_s=5), None)
