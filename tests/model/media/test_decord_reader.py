"""decord gives the same pictures where it is trusted, and is not let near the rest."""

import subprocess
import sys

import numpy as np
import pytest

from model.media import decord_reader as decord_frames
from model.media import reader as frames
from model.media.reader import DecodeReport
from model.media.refusals import MediaError
from model.media.timeline import read_timeline
from tests.model.media import clips, tricky

pytest.importorskip("decord")
SIZE = 64
TRUSTED = [
    "h264.mp4",
    "vp9.webm",
    "vp8.webm",
    "vfr_h264.mp4",
    "vfr_vp9.webm",
    "one_frame.mp4",
    "slow_0.4_fps.mp4",
    "ntsc_in_milliseconds.mkv",
    "starts_at_7_s.mkv",
    "turned_by_90.mp4",
    "turned_by_180.mp4",
    "turned_by_270.mp4",
    "anamorphic.mp4",
    "odd_size.webm",
    "odd_size_444.mp4",
    "header_promises_an_hour.mp4",
    "lists_half_its_frames.mp4",
    "counts_no_frames_fragmented.mp4",
]
NOT_TRUSTED = {
    "av1.mp4": "unsupported_codec",
    "hevc.mp4": "unsupported_codec",
    "h264.ts": "unsupported_codec",
    "joined_in_the_middle.ts": "unsupported_codec",
    "no_presentation_times.avi": "unsupported_codec",
    "mpeg2.mpg": "unsupported_codec",
    "h264.flv": "unsupported_codec",
    "edit_list.mp4": "decoder_disagrees",
    "clock_leaps_by_hours.mkv": "decoder_disagrees",
    "cut_off.mp4": "decoder_disagrees",
    "zeroed_stretch.mp4": "decoder_disagrees",
}


def built(name, folder):
    return next(clip for clip in tricky.CLIPS if clip.name == name).build(folder / name)


@pytest.mark.parametrize("name", TRUSTED)
def test_where_it_is_trusted_its_pictures_are_those_of_the_planned_decoder(name, tmp_path):
    line, report = read_timeline(built(name, tmp_path)), DecodeReport()
    every_third_twice = np.repeat(np.arange(0, line.frames, 3), 2)
    ours = list(frames.decode(line, every_third_twice, size=SIZE))
    its = list(decord_frames.decode(line, every_third_twice, size=SIZE, report=report))
    assert len(ours) == len(its) == len(every_third_twice)
    slack = (
        1 if name == "odd_size.webm" else 0
    )  # its FFmpeg is older and rounds half colour samples otherwise
    assert np.abs(np.stack(ours).astype(int) - np.stack(its)).max() <= slack
    assert report.decoder.startswith("decord 0.")


@pytest.mark.parametrize("name", NOT_TRUSTED)
def test_where_it_would_hang_or_be_wrong_it_is_refused(name, tmp_path):
    line = read_timeline(built(name, tmp_path))
    with pytest.raises(MediaError) as caught:
        list(decord_frames.decode(line, range(line.frames), size=SIZE))
    assert caught.value.reason == NOT_TRUSTED[name]


def test_frames_that_are_not_there_and_large_pictures_are_refused(tmp_path):
    line = read_timeline(clips.encode(tmp_path / "clip.mp4", 10))
    with pytest.raises(ValueError, match=r"within 0 \.\. 9"):
        decord_frames.decode(line, [10], size=SIZE)
    with pytest.raises(MediaError, match="too_large"):
        decord_frames.decode(line, [0], size=SIZE, max_pixels=100)


@pytest.mark.slow
def test_it_does_not_read_ahead_while_its_caller_is_busy(tmp_path):
    path = clips.encode(tmp_path / "clip.mp4", 1500, size=(640, 360), options=tricky.X264)
    script = (
        "import sys, time\n"
        "from model.media.decord_reader import decode\n"
        "from model.media.timeline import read_timeline\n"
        "line = read_timeline(sys.argv[1])\n"
        "pictures = decode(line, range(0, line.frames, 10), size=32)\n"
        "from tests.memory import peak_mib\n"
        "next(pictures)\n"
        "before = peak_mib()\n"
        "time.sleep(3)\n"
        "print(round(peak_mib() - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert (
        int(done.stdout) < 100
    )  # MB; left alone it takes on the whole clip, a gigabyte of pictures
