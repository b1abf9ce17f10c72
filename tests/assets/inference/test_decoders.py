"""What is asked about is decoded in locked-up processes, in several stretches at once: the pictures
are those of decoding it in one go, and whatever a file does to its decoder is told.
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from assets.deployment.settings import Limits
from assets.inference import decoders as decoders_module
from assets.inference.decoders import StretchFailed, VideoDecoders
from assets.inference.stretches import LEAST, stretches_of
from model.media.damage import describe_damage
from model.media.reader import DecodeReport, decode
from model.media.refusals import MediaError
from model.media.sampling import feature_frame_indices
from model.media.timeline import Timeline, read_timeline
from tests.model.media import clips

pytestmark = pytest.mark.slow

SIZE, CHUNK, MIN_FRAMES = 48, 64, 8
LONG = 4 * LEAST + 20  # pictures, one a second: enough for four stretches
OPEN_GROUPS = "open-gop=1:keyint=20:min-keyint=20:scenecut=0"


@pytest.fixture(scope="module")
def decoders():
    return VideoDecoders(Limits(stall_s=2.0))


def all_pictures(decoders, path, stretches):
    """Pictures by place, and what was said of the damage."""
    with decoders.decoding(path, size=SIZE, min_frames=MIN_FRAMES, stretches=stretches) as video:
        found = np.zeros((video.frames, SIZE, SIZE, 3), np.uint8)
        seen: list[int] = []
        for places, chunk in video.chunks(CHUNK):
            found[places] = chunk
            seen += places
        assert sorted(seen) == list(range(video.frames))
        return found, video.damage


def in_one_go(path, report=None):
    line = read_timeline(path)
    chosen = feature_frame_indices(line, min_frames=MIN_FRAMES)
    return np.stack(list(decode(line, chosen, size=SIZE, report=report)))


def processes(decoders):
    """Process ids of the decoders that there are."""
    server = decoders._server._process.pid
    return Path(f"/proc/{server}/task/{server}/children").read_text().split()


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "12", "bf": "2"}),
        ("libx264", {"g": "1000"}),  # one group: every stretch decodes from the beginning
        ("libx264", {"x264-params": OPEN_GROUPS}),
        ("libvpx-vp9", {"g": "15", "deadline": "realtime", "cpu-used": "8"}),
    ],
    ids=["short groups", "one group", "open groups", "vp9"],
)
def test_every_picture_is_in_its_place_to_the_last_bit(tmp_path, decoders, codec, options):
    suffix = ".webm" if "vp" in codec else ".mp4"
    path = clips.encode(tmp_path / f"clip{suffix}", LONG, rate=1, codec=codec, options=options)
    plain = in_one_go(path)
    assert len(plain) == LONG
    for stretches in (1, 4, 7):
        found, damage = all_pictures(decoders, path, stretches)
        assert np.array_equal(found, plain)
        assert not damage


def test_a_video_too_short_for_several_stretches_is_whole(tmp_path, decoders):
    path = clips.encode(tmp_path / "clip.mp4", 40, rate=10)
    found, _ = all_pictures(decoders, path, 3)
    assert np.array_equal(found, in_one_go(path))
    assert len(found) == MIN_FRAMES


def test_damage_anywhere_is_told_so_that_it_is_decoded_from_the_beginning(tmp_path, decoders):
    path = clips.encode(tmp_path / "clip.mp4", LONG, rate=1, options={"g": "10"}, size=(320, 192))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    report = DecodeReport()
    plain = in_one_go(path, report)
    assert report.damaged
    with pytest.raises(StretchFailed, match=r"clip\.mp4"):
        all_pictures(decoders, path, 4)
    found, damage = all_pictures(decoders, path, 1)
    assert np.array_equal(found, plain)
    assert damage == describe_damage(asdict(report))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("segfault", "SIGSEGV.*about to crash"),
        ("exit", "code 7"),
        ("hang", "nothing came of it for 2 s"),
    ],
)
def test_what_a_file_does_to_its_decoder_is_told_and_the_next_is_read(
    tmp_path, decoders, monkeypatch, harm, said
):
    monkeypatch.setattr(decoders_module, "OPENER", "tests.assets.inference.faults:open_faulty")
    path = clips.encode(tmp_path / f"{harm}.mp4", LONG, rate=1)
    with pytest.raises(StretchFailed):
        all_pictures(decoders, path, 4)
    with pytest.raises(ValueError, match=rf"(?s){harm}\.mp4: .*{said}"):
        all_pictures(decoders, path, 1)
    sound = clips.encode(tmp_path / "sound.mp4", LONG, rate=1)
    assert np.array_equal(all_pictures(decoders, sound, 4)[0], in_one_go(sound))
    assert processes(decoders) == []


def test_decoders_that_do_not_agree_about_a_file_are_not_believed(tmp_path, decoders, monkeypatch):
    monkeypatch.setattr(decoders_module, "OPENER", "tests.assets.inference.faults:open_disagreeing")
    path = clips.encode(tmp_path / "clip.mp4", LONG, rate=1)
    with pytest.raises(StretchFailed, match="different numbers of pictures"):
        all_pictures(decoders, path, 4)
    assert np.array_equal(all_pictures(decoders, path, 1)[0], in_one_go(path))


def test_pictures_come_while_other_decoders_still_read_through_the_file(tmp_path, decoders):
    path = clips.encode(tmp_path / "clip.mp4", LONG, rate=1)
    with decoders.decoding(path, size=SIZE, min_frames=MIN_FRAMES, stretches=3) as video:
        assert len(video._first) == 1
        places = [place for chunk, _ in video.chunks(CHUNK) for place in chunk]
    assert sorted(places) == list(range(LONG))


def test_a_hang_is_told_while_other_decoders_still_read_through_the_file(
    tmp_path, decoders, monkeypatch
):
    opener = "tests.assets.inference.faults:open_hanging_at_once"
    monkeypatch.setattr(decoders_module, "OPENER", opener)
    path = clips.encode(tmp_path / "clip.mp4", LONG, rate=1)
    with pytest.raises(StretchFailed, match="nothing came of it for 2 s"):
        all_pictures(decoders, path, 4)


def test_what_is_no_video_is_refused_for_its_reason(tmp_path, decoders):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(MediaError) as refused:
        all_pictures(decoders, tmp_path / "notes.mp4", 1)
    assert refused.value.reason in ("not_media", "unreadable")
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        all_pictures(decoders, tmp_path / "gone.mp4", 1)


def test_who_stops_early_leaves_no_process_behind(tmp_path, decoders):
    path = clips.encode(tmp_path / "clip.mp4", LONG, rate=1)
    with decoders.decoding(path, size=SIZE, min_frames=MIN_FRAMES, stretches=3) as video:
        next(video.chunks(CHUNK))
        # The others may not have begun yet; none is done before its pictures are taken.
        until = time.monotonic() + 30
        while len(processes(decoders)) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(processes(decoders)) == 3
    assert processes(decoders) == []


def test_a_fork_server_that_was_killed_is_replaced(tmp_path, decoders):
    path = clips.encode(tmp_path / "clip.mp4", 40, rate=10)
    all_pictures(decoders, path, 1)
    killed = decoders._server._process
    killed.kill()
    killed.wait()
    assert np.array_equal(all_pictures(decoders, path, 1)[0], in_one_go(path))


def test_few_pictures_and_frames_that_only_counting_tells_are_decoded_in_one_go():
    line = Timeline.constant(100_000, 30)
    assert stretches_of(line, 3600, 16) == 16
    assert stretches_of(line, 3 * LEAST, 16) == 3
    assert stretches_of(line, LEAST - 1, 16) == 1
    counted = Timeline(**{**{n: getattr(line, n) for n in line.__slots__}, "skippable": False})
    assert stretches_of(counted, 3600, 16) == 1
